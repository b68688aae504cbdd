// The scores and the weighted V of a tile by a processor's units for matrices, from rows of
// bfloat16 or FP8.
//
//   scores: K as the left factor, 16 positions to a register; 16 queries as the right one
//   weighted V: the weights of 16 rows as the left factor; V as the right one, copied in pairs
//
// What has to be copied, or widened, is copied in pieces of 4 KiB to two buffers in turn, while the
// units multiply by the piece before: so small, they stay in the first cache.
#pragma once

#include "kernels/attention_values.h"

namespace tkg {
namespace {

// With fewer rows most of a register would be empty, and float32 is as fast. FP8 is widened once
// for all rows by either, to half as many bytes here.
template <class T>
constexpr int least_matrix_rows = is_fp8<T> ? 5 : 10;

constexpr i64 value_columns = 4 * matrix_columns;  // of V at a time

struct MatrixScratch {
    alignas(64) bf16 keys[2][matrix_rows * max_d_head];
    alignas(64) bf16 values[2][matrix_terms * value_columns];
    alignas(64) float sums[matrix_rows * max_d_head];
};

// Queries [rows, d] as right factors [rows / 16, d / 2, 16] of pairs, zeros behind the last row.
inline void turn_queries(const bf16* q, int rows, i64 d, std::uint32_t* to) {
    alignas(64) static constexpr bf16 nothing[max_d_head] = {};
    for (int r = 0; r < rows; r += matrix_rows) {
        const void* row[matrix_rows];
        for (int i = 0; i < matrix_rows; ++i) row[i] = r + i < rows ? q + (r + i) * d : nothing;
        for (i64 w = 0; w < d / 2; w += lanes, to += lanes * matrix_rows)
            turn_words(row, w, lanes, to, matrix_rows);
    }
}

// 16 positions of a tile's keys as the left factor: where they lie if they do so at equal
// distances, else copied, FP8 widened. Behind the last position are copies of it.
template <class T>
struct KeyGroup {
    const bf16* first;
    i64 row;  // elements from one position to the next

    KeyGroup(const T* const* k, int count, i64 d, bf16* copy) : first(copy), row(d) {
        if constexpr (!is_fp8<T>) {
            if (count >= matrix_rows && lie_evenly(k)) {
                first = k[0];
                row = k[1] - k[0];
                return;
            }
        }
        for (int i = 0; i < matrix_rows; ++i, copy += d) {
            const T* from = k[min_of(i, count - 1)];
            if constexpr (is_fp8<T>)
                for (i64 j = 0; j < d; j += 64) widen_row(from + j, 64, copy + j);
            else
                __builtin_memcpy(copy, from, static_cast<std::size_t>(d) * sizeof(T));
        }
        finish_stores();
    }

private:
    static bool lie_evenly(const T* const* k) {
        i64 differ = 0;
        for (int i = 2; i < matrix_rows; ++i) differ |= (k[i] - k[i - 1]) ^ (k[1] - k[0]);
        return differ == 0;
    }
};

// scores[r][i] = q[r] . k[i]. Behind the last of the `count` positions some are written that mean
// nothing.
template <class T, class Next>
inline void score_by_matrices(const std::uint32_t* q, int rows, MatrixScratch& scratch,
                              const T* const* k, int count, i64 d, float* scores, Next& next) {
    for (int begin = 0; begin < count; begin += matrix_rows) {
        const int group = begin / matrix_rows;
        const KeyGroup<T> keys(k + begin, count - begin, d, scratch.keys[group % 2]);
        float* sums = scratch.sums + group * matrix_rows * matrix_columns;
        for (int r = 0; r < rows; r += matrix_rows) {
            const auto* query = reinterpret_cast<const bf16*>(q + r * d / 2);
            zero_sum();
            for (i64 j = 0; j < d; j += matrix_terms) {
                multiply_one(keys.first + j, keys.row, query + j * matrix_columns);
                if (r == 0) next.template ask<matrix_rows * matrix_terms / lanes>();
            }
            store_sum(sums);
            finish_stores();
            for (int i = r; i < min_of(rows, r + matrix_rows); i += 4) {
                Vec score[4];
                turn_four_columns(sums + i - r, matrix_columns, score);
                for (int s = 0; s < min_of(4, rows - i); ++s)
                    store(scores + (i + s) * tile_len + begin, score[s]);
            }
        }
    }
}

// V as the right factor, in chunks of 32 positions by 64 columns. Behind the last position and
// column is nothing.
template <class T>
struct ValueChunks {
    const T* const* v;
    int count;
    i64 d;
    bf16 (&buffer)[2][matrix_terms * value_columns];

    int of_columns() const { return static_cast<int>(ceil_div(count, matrix_terms)); }
    int all() const { return of_columns() * static_cast<int>(ceil_div(d, value_columns)); }
    const bf16* at(int chunk) const { return buffer[chunk % 2]; }

    template <class Next>
    void copy(int chunk, Next& next) const {
        constexpr int together = is_fp8<T> ? 64 : 32;  // columns
        alignas(64) static constexpr T nothing[value_columns] = {};
        const i64 begin = chunk % of_columns() * matrix_terms,
                  j = chunk / of_columns() * value_columns;
        bf16* to = buffer[chunk % 2];
        for (i64 i = begin; i < begin + matrix_terms; i += 2) {
            const T *first = i < count ? v[i] + j : nothing,
                    *second = i + 1 < count ? v[i + 1] + j : nothing;
            for (int c = 0; c < value_columns; c += together, to += 2 * together) {
                next.template ask<2 * together / lanes>();
                const bool there = j + c < d;
                Pairs some[together / lanes];
                interleave_rows(there ? first + c : nothing, there ? second + c : nothing, some);
                for (int x = 0; x < together / lanes; ++x) store_pairs(some[x], to + 2 * lanes * x);
            }
        }
        finish_stores();
    }
};

// acc[0..d) = acc * factor + one row of sums [d / 64, 16, 64].
inline void add_sums(const float* sums, float factor, i64 d, float* acc) {
    for (i64 j = 0; j < d; j += 2 * lanes) {
        const float* sum =
            sums + j / value_columns * value_columns * matrix_rows + j % value_columns;
        Vec two[2] = {load(sum), load(sum + lanes)};
        put_in_order(two);
        for (int x = 0; x < 2; ++x, acc += lanes) store(acc, fma(load(acc), set1(factor), two[x]));
    }
}

// acc[r] = acc[r] * factor[r] + sum over positions of p[r][i] * v[i], for up to 16 rows; the first
// chunk of V has been copied.
template <class T, class Next>
inline void weigh_by_matrices(const bf16* p, int rows, const ValueChunks<T>& values,
                              const float* factor, float* sums, float* acc, Next& next) {
    const int chunks = values.all(), of_columns = values.of_columns();
    finish_stores();
    for (int chunk = 0; chunk < chunks; ++chunk) {
        if (chunk + 1 < chunks) values.copy(chunk + 1, next);
        const int part_of_columns = chunk % of_columns;
        if (part_of_columns == 0) zero_sums();
        multiply_matrices(p + part_of_columns * matrix_terms, weight_stride<bf16>, values.at(chunk),
                          [] {});
        if (part_of_columns == of_columns - 1)
            store_sums(sums + chunk / of_columns * value_columns * matrix_rows, value_columns);
    }
    finish_stores();
    for (int r = 0; r < rows; ++r)
        add_sums(sums + r * value_columns, factor[r], values.d, acc + r * values.d);
}

// The scores of a tile into the sums of all rows.
template <class T, class Next>
inline void attend_by_matrices(float* scores, int rows, MatrixScratch& scratch, const Tile<T>& tile,
                               const T* const* v, i64 d, const Collected& to, Next& next) {
    const ValueChunks<T> values{v, tile.count, d, scratch.values};
    bf16* p = weights_of<bf16>(scores);
    Next nothing;
    float factor[max_block_rows];
    for (int r = 0; r < rows; r += matrix_rows) {
        Next& ahead = r == 0 ? next : nothing;
        values.copy(0, ahead);
        if (r == 0) {
            softmax_tile<bf16>(scores, rows, tile.count, to.m, to.l, factor);
            // Behind the last weight are zeros, up to a whole vector: here, to a whole matrix.
            const i64 end = round_up(tile.count, lanes);
            for (int i = 0; i < rows && end % matrix_terms; ++i)
                __builtin_memset(p + i * weight_stride<bf16> + end, 0, lanes * sizeof(bf16));
        }
        weigh_by_matrices(p + r * weight_stride<bf16>,
                          static_cast<int>(min_of(matrix_rows, rows - r)), values, factor + r,
                          scratch.sums, to.acc + r * d, ahead);
    }
}

}  // namespace
}  // namespace tkg
