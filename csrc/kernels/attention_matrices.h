// The scores and the weighted V of a tile by a processor's units for matrices, from rows of
// bfloat16 with d a multiple of 32. K is the left factor, as it lies: 16 positions by 16 rows are a
// register. V's rows are copied in pairs.
#pragma once

#include "kernels/attention_values.h"

namespace tkg {
namespace {

// With fewer rows most of a register would be empty, and float32 is as fast.
constexpr int least_matrix_rows = 10;

constexpr int position_groups = tile_len / matrix_rows;
static_assert(position_groups == 4);
constexpr i64 value_columns = 4 * matrix_columns;  // of V at a time

struct MatrixScratch {
    alignas(64) std::uint32_t queries[max_d_head / 2][matrix_rows];  // pairs of d, by row
    alignas(64) bf16 keys[tile_len * max_d_head];
    alignas(64) bf16 values[tile_len * value_columns];
    alignas(64) float sums[matrix_rows * tile_len];
};

// Up to 16 queries as the right factor.
inline void turn_queries(const bf16* q, int rows, i64 d, MatrixScratch& scratch) {
    alignas(64) static constexpr bf16 nothing[max_d_head] = {};
    const void* row[matrix_rows];
    for (int r = 0; r < matrix_rows; ++r) row[r] = r < rows ? q + r * d : nothing;
    for (i64 w = 0; w < d / 2; w += lanes)
        turn_words(row, w, valid_lanes(w, d / 2), scratch.queries[w], matrix_rows);
}

// The groups of a tile's keys: where they lie if they do so at equal distances, else copied. Behind
// the last position are copies of it.
struct KeyGroups {
    const bf16* first[position_groups];
    i64 row[position_groups];  // elements from one position to the next

    KeyGroups(const bf16* const* k, int count, i64 d, bf16* copies) {
        for (int g = 0; g < position_groups; ++g) {
            const int begin = g * matrix_rows;
            const i64 distance = begin + 1 < count ? k[begin + 1] - k[begin] : 0;
            bool even = begin + matrix_rows <= count;
            for (int i = 1; even && i < matrix_rows; ++i)
                even = k[begin + i] == k[begin] + i * distance;
            first[g] = even ? k[begin] : copies + begin * d;
            row[g] = even ? distance : d;
            for (int i = 0; !even && i < matrix_rows; ++i)
                __builtin_memcpy(copies + (begin + i) * d, k[min_of(begin + i, count - 1)],
                                 static_cast<std::size_t>(d) * sizeof(bf16));
        }
        finish_stores();
    }
};

// scores[r][i] = q[r] . k[i]. Behind the last of the `count` positions some are written that mean
// nothing.
template <class Next>
inline void score_by_matrices(const bf16* q, int rows, MatrixScratch& scratch, const bf16* const* k,
                              int count, i64 d, float* scores, Next& next) {
    const KeyGroups keys(k, count, d, scratch.keys);
    for (int r = 0; r < rows; r += matrix_rows) {
        const int some = static_cast<int>(min_of(matrix_rows, rows - r));
        turn_queries(q + r * d, some, d, scratch);
        finish_stores();
        zero_sums();
        const bf16* group[position_groups];
        for (int g = 0; g < position_groups; ++g) group[g] = keys.first[g];
        for (i64 j = 0; j < d; j += matrix_terms) {
            multiply_four(group, keys.row, reinterpret_cast<const bf16*>(scratch.queries[j / 2]),
                          [&] { next.template ask<matrix_rows * matrix_terms / lanes>(); });
            for (int g = 0; g < position_groups; ++g) group[g] += matrix_terms;
        }
        store_column(scratch.sums);
        for (int g = 0; g * matrix_rows < count; ++g) {
            const void* row[matrix_rows];
            for (int i = 0; i < matrix_rows; ++i)
                row[i] = scratch.sums + (g * matrix_rows + i) * matrix_rows;
            turn_words(row, 0, some,
                       reinterpret_cast<std::uint32_t*>(scores + r * tile_len + g * matrix_rows),
                       tile_len);
        }
    }
}

// 64 columns of V from j on, the rows in pairs; nothing stands behind the last row and column.
template <class T, class Next>
inline void pair_values(const T* const* v, int count, i64 j, i64 d, bf16* to, Next& next) {
    alignas(64) static constexpr T nothing[max_d_head] = {};
    for (i64 i = 0; i < round_up(count, matrix_terms); i += 2) {
        next.template ask<2 * value_columns / lanes>();
        for (i64 c = j; c < j + value_columns; c += 2 * lanes, to += 4 * lanes) {
            Pairs some[2];
            load_rows((i < count && c < d ? v[i] : nothing) + c % d,
                      (i + 1 < count && c < d ? v[i + 1] : nothing) + c % d, some);
            store_pairs(some[0], to);
            store_pairs(some[1], to + 2 * lanes);
        }
    }
    finish_stores();
}

// acc[r] = acc[r] * factor[r] + sum over positions of p[r][i] * v[i], for all rows.
template <class T, class Next>
inline void weigh_by_matrices(bf16* p, int rows, MatrixScratch& scratch, const T* const* v,
                              int count, const float* factor, float* acc, i64 d, Next& next) {
    constexpr i64 p_row = weight_stride<bf16>;
    // Behind the last weight are zeros, up to a whole vector.
    if (round_up(count, lanes) % matrix_terms)
        for (int r = 0; r < rows; ++r)
            __builtin_memset(p + r * p_row + round_up(count, lanes), 0, lanes * sizeof(bf16));
    for (i64 j = 0; j < d; j += value_columns) {
        pair_values(v, count, j, d, scratch.values, next);
        for (int r = 0; r < rows; r += matrix_rows) {
            zero_sums();
            for (i64 i = 0; i < count; i += matrix_terms)
                multiply_matrices(p + r * p_row + i, p_row, scratch.values + i * value_columns,
                                  [] {});
            store_sums(scratch.sums, value_columns);
            for (int s = 0; s < min_of(matrix_rows, rows - r); ++s)
                for (i64 c = 0; c < min_of(value_columns, d - j); c += lanes) {
                    float* to = acc + (r + s) * d + j + c;
                    store(to, fma(load(to), set1(factor[r + s]),
                                  load(scratch.sums + s * value_columns + c)));
                }
        }
    }
}

}  // namespace
}  // namespace tkg
