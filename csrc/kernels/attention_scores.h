// The scores of a tile: s[r][i] = q[r] . k[i], q being scaled already.
//
// K has d contiguous, mostly; then lanes are elements of d, and several dot products are added up
// over their lanes at once. In a transposed cache positions are contiguous, and so they are the
// lanes.
#pragma once

#include "kernels/attention_tile.h"

namespace tkg {
namespace {

// Positions beside each other in a register tile of R rows.
template <int R>
constexpr int dot_positions = R == 1   ? dot_sums
                              : R == 2 ? dot_sums / 2
                                       : dot_sums / 4;

// Elements of d that one multiply-add takes.
template <class T>
constexpr int width = terms<T> * lanes;

// So many of them; n count.
template <class V, bool Tail, class T>
TKG_INLINE V load_factors(const T* p, int n) {
    if constexpr (std::is_same_v<V, Pairs>)
        return Tail ? load_pairs_n(p, n) : load_pairs(p);
    else
        return Tail ? load_n(p, n) : load(p);
}

// scores[r][i] for R rows and as many positions as a tile has: one dot product over d each. d is a
// multiple of the width, or there is a Tail.
template <int R, bool Tail, class T, class V>
TKG_INLINE void dot_tile(const Factor<T>* q, const T* const* k, i64 d, float* scores,
                         Ahead<V>& ahead) {
    constexpr int N = dot_positions<R>;
    Vec c[R][N];
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < N; ++i) c[r][i] = zero();
    for (i64 j = 0; j < d; j += width<T>) {
        const int n = static_cast<int>(min_of(width<T>, d - j));
        Factors<T> query[R];
        for (int r = 0; r < R; ++r) query[r] = load_factors<Factors<T>, Tail>(q + r * d + j, n);
        ahead.template ask<terms<T> * N>();
        for (int i = 0; i < N; ++i) {
            const auto key = load_factors<Factors<T>, Tail>(k[i] + j, n);
            for (int r = 0; r < R; ++r) c[r][i] = fma(query[r], key, c[r][i]);
        }
    }
    Vec all[dot_sums];
    for (int i = 0; i < dot_sums; ++i) all[i] = c[i / N % R][i % N];
    alignas(64) float sums[dot_sums];
    sum_each(all, sums);
    for (int r = 0; r < R; ++r)
        __builtin_memcpy(scores + r * tile_len, sums + r * N, N * sizeof(float));
}

// The same for FP8 rows that are widened in registers, 64 values at once; d is a multiple of 64.
template <int R, class T, class V>
    requires is_fp8<T>
TKG_INLINE void dot_tile_in_registers(const Factor<T>* q, const T* const* k, i64 d, float* scores,
                                      Ahead<V>& ahead) {
    constexpr int N = dot_positions<R>, vecs = 64 / width<T>, pair = 2;
    Vec c[dot_sums];
    for (Vec& sum : c) sum = zero();
    for (i64 j = 0; j < d; j += 64)
#pragma GCC unroll 8
        for (int i = 0; i < N; i += pair) {
            ahead.template ask<pair * 64 / lanes>();
            Factors<T> key[pair][vecs];
            for (int p = 0; p < pair; ++p) widen_64(k[i + p] + j, key[p]);
            for (int e = 0; e < vecs; ++e)
                for (int r = 0; r < R; ++r) {
                    const auto query =
                        load_factors<Factors<T>, false>(q + r * d + j + e * width<T>, width<T>);
                    for (int p = 0; p < pair; ++p)
                        c[r * N + i + p] = fma(query, key[p][e], c[r * N + i + p]);
                }
        }
    alignas(64) float sums[dot_sums];
    sum_each(c, sums);
    for (int r = 0; r < R; ++r)
        __builtin_memcpy(scores + r * tile_len, sums + r * N, N * sizeof(float));
}

// K with d contiguous. The first rows ask for what comes next. Behind the last of the `count`
// positions some scores are written that mean nothing.
template <class T, class V>
inline void score_tile(const Factor<T>* q, int rows, const T* const* k, int count, i64 d,
                       float* scores, Ahead<V>& next) {
    for_row_groups<dot_rows>(rows, [=, &next](auto group, i64 r) {
        constexpr int N = dot_positions<group()>;
        Ahead<V> ahead = r == 0 ? next : Ahead<V>{};
        for (int i = 0; i < count; i += N) {
            const T* some[N];
            for (int p = 0; p < N; ++p) some[p] = k[min_of(i + p, count - 1)];
            if constexpr (is_fp8<T>)
                dot_tile_in_registers<group()>(q + r * d, some, d, scores + r * tile_len + i,
                                               ahead);
            else if (d % width<T>)
                dot_tile<group(), true>(q + r * d, some, d, scores + r * tile_len + i, ahead);
            else
                dot_tile<group(), false>(q + r * d, some, d, scores + r * tile_len + i, ahead);
        }
        if (r == 0) next = ahead;
    });
}

// Scores of n positions beside each other, `stride` elements from one element of d to the next.
template <int R, class T>
inline void dot_tile_transposed(const Factor<T>* q, const T* k, i64 stride, int n, i64 d,
                                float* scores) {
    Vec c[R];
    for (int r = 0; r < R; ++r) c[r] = zero();
    for (i64 j = 0; j < d; j += terms<T>) {
        Factors<T> key;
        if constexpr (attends_in_pairs<T>)
            key = pairs_of(load_n(k + j * stride, n), load_n(k + (j + 1) * stride, n));
        else
            key = load_n(k + j * stride, n);
        for (int r = 0; r < R; ++r) c[r] = fma(spread(q + r * d + j), key, c[r]);
    }
    for (int r = 0; r < R; ++r) store(scores + r * tile_len, c[r]);
}

// K with positions contiguous (transposed cache). Positions that are not listed are computed and
// dropped.
template <class T>
inline void score_tile_transposed(const Factor<T>* q, int rows, const Tile<T>& tile, i64 d,
                                  i64 d_stride, float* scores) {
    const int first = tile.position[0], end = tile.position[tile.count - 1] + 1;
    const T* base = tile.k[0] - first;
    for (int p = first / lanes * lanes; p < end; p += lanes)
        for_row_groups<attention_rows>(rows, [&](auto group, i64 r) {
            dot_tile_transposed<group()>(q + r * d, base + p, d_stride, valid_lanes(p, end), d,
                                         scores + r * tile_len + p);
        });
    for (int r = 0; r < rows; ++r)
        for (int i = 0; i < tile.count; ++i)
            scores[r * tile_len + i] = scores[r * tile_len + tile.position[i]];
}

}  // namespace
}  // namespace tkg
