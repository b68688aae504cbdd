// From scores to weights, and the weighted sum of V: what a tile adds to the rows' m, l and acc.
//
//   m' = max(m, max s)    p = exp(s - m')    l = l exp(m - m') + sum p
//   acc = acc exp(m - m') + p v
#pragma once

#include "kernels/attention_scores.h"

namespace tkg {
namespace {

constexpr float minus_infinity = -__builtin_inff();

// A weight a position of each row, where its scores were: as V is multiplied by it.
template <class W>
constexpr i64 weight_stride = tile_len * static_cast<i64>(sizeof(float) / sizeof(W));
template <class W>
inline W* weights_of(float* scores) {
    return reinterpret_cast<W*>(scores);
}

// Stores weights; returns them as they are then.
inline Vec put_weights(Vec p, float* to) {
    store(to, p);
    return p;
}
template <class W>
    requires std::is_same_v<W, bf16>
inline Vec put_weights(Vec p, W* to) {
    store_n(to, p, lanes);
    return load(to);
}

// Scores [rows, count] become weights, m and l are brought up to date, factor[r] is what acc must
// be multiplied by. Behind the last weight are zeros, up to a whole vector.
template <class W>
inline void softmax_tile(float* scores, int rows, int count, float* m, float* l, float* factor) {
    float shift[max_block_rows];
    for (int r = 0; r < rows; ++r) {
        float* row = scores + r * tile_len;
        for (int i = count; i % lanes; ++i) row[i] = minus_infinity;
        Vec top = load(row);
        for (int i = lanes; i < count; i += lanes) top = max(top, load(row + i));
        const float tile_m = largest(top), new_m = tile_m > m[r] ? tile_m : m[r];
        shift[r] = new_m == minus_infinity ? 0.0f : new_m;
        factor[r] = m[r] - shift[r];
        m[r] = new_m;
    }
    for (int r = 0; r < rows; r += lanes) {
        const int n = valid_lanes(r, rows);
        store_n(factor + r, exp_nonpositive(load_n(factor + r, n)), n);
    }
    for (int r = 0; r < rows; ++r) {
        float* row = scores + r * tile_len;
        Vec total = zero();
        for (int i = 0; i < count; i += lanes) {
            const Vec p = exp_nonpositive(sub(load(row + i), set1(shift[r])));
            total = add(total, put_weights(p, weights_of<W>(row) + i));
        }
        l[r] = l[r] * factor[r] + sum(total);
    }
}

// NV vectors of d from j on of a row of V, or of two rows of which the second may be missing; of
// the last one, n lanes if Tail.
template <int NV, bool Tail, class T>
TKG_INLINE void load_values(const T* const* v, bool, i64 j, int n, Vec* value) {
    if constexpr (is_fp8<T>)
        for (int x = 0; x < NV; x += 64 / lanes) widen_64(*v + j + x * lanes, value + x);
    else
        for (int x = 0; x < NV; ++x) value[x] = Tail ? load_n(*v + j, n) : load(*v + j + x * lanes);
}
template <int NV, bool Tail, class T, class P>
    requires std::is_same_v<P, Pairs>
TKG_INLINE void load_values(const T* const* v, bool both, i64 j, int n, P* value) {
    alignas(64) static constexpr T nothing[max_d_head] = {};
    const T *a = v[0] + j, *b = both ? v[1] + j : nothing;
    if constexpr (NV == 1) {
        *value = pairs_of(load_n(a, n), load_n(b, n));
    } else {
        constexpr int together = is_fp8<T> ? 64 / lanes : 2;
        for (int x = 0; x < NV; x += together) load_rows(a + x * lanes, b + x * lanes, value + x);
    }
}

// acc[r] = acc[r] * factor[r] + sum over positions of p[r][i] * v[i], for R rows and NV vectors of
// d from j on; of the last one, n lanes if Tail.
template <int R, int NV, bool Tail, class T, class Next>
inline void weigh_tile(const Factor<T>* p, const T* const* v, int count, i64 j, int n,
                       const float* factor, float* acc, i64 d, Next& next) {
    Next ahead = next;
    Vec c[R][NV];
    for (int r = 0; r < R; ++r)
        for (int x = 0; x < NV; ++x) {
            const float* from = acc + r * d + j + x * lanes;
            c[r][x] = mul(Tail ? load_n(from, n) : load(from), set1(factor[r]));
        }
    for (int i = 0; i < count; i += terms<T>) {
        Factors<T> value[NV];
        ahead.template ask<terms<T> * NV>();
        load_values<NV, Tail>(v + i, i + 1 < count, j, n, value);
        for (int r = 0; r < R; ++r) {
            const auto weight = spread(p + r * weight_stride<Factor<T>> + i);
            for (int x = 0; x < NV; ++x) c[r][x] = fma(weight, value[x], c[r][x]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int x = 0; x < NV; ++x) {
            float* to = acc + r * d + j + x * lanes;
            if (Tail)
                store_n(to, c[r][x], n);
            else
                store(to, c[r][x]);
        }
    next = ahead;
}

// Vectors of d beside each other in a register tile of R rows.
template <int R>
constexpr int weigh_vecs = R <= weigh_sums / 8   ? 8
                           : R <= weigh_sums / 4 ? 4
                                                 : 2;

template <int R, class T, class Next>
inline void weigh_rows(const Factor<T>* p, const T* const* v, int count, const float* factor,
                       float* acc, i64 d, Next& next) {
    constexpr int vecs = weigh_vecs<R>;
    i64 j = 0;
    for (; j + vecs * lanes <= d; j += vecs * lanes)
        weigh_tile<R, vecs, false>(p, v, count, j, 0, factor, acc, d, next);
    if constexpr (is_fp8<T>) {  // d is a multiple of 64
        for (; j < d; j += 64)
            weigh_tile<R, 64 / lanes, false>(p, v, count, j, 0, factor, acc, d, next);
        return;
    }
    for (; j + lanes <= d; j += lanes)
        weigh_tile<R, 1, false>(p, v, count, j, lanes, factor, acc, d, next);
    if (j < d) weigh_tile<R, 1, true>(p, v, count, j, valid_lanes(j, d), factor, acc, d, next);
}

// One row over the positions that it may attend to, for tiles where rows differ.
template <class T, class V>
inline int pick_allowed(const Tile<T>& tile, int r, float* scores, const V* const* from,
                        const V** v) {
    int n = 0;
    for (int i = 0; i < tile.count; ++i)
        if (tile.may[r][i]) {
            scores[n] = scores[i];
            v[n++] = from[i];
        }
    return n;
}

// What the rows of a task have collected so far.
struct Collected {
    float *m, *l, *acc;
};

// A tile's scores into the rows' sums; v are the tile's rows of V. The first rows ask for what
// comes next.
template <class T, class V>
inline void attend_tile(const Task<T>& task, const Tile<T>& tile, const V* const* v, float* scores,
                        const Collected& to, Ahead<T>& next) {
    Ahead<T> nothing;
    const i64 d = task.layer.d_head;
    float factor[max_block_rows];
    if (tile.partial) {
        for (int r = 0; r < task.rows; ++r) {
            const V* allowed[tile_len];
            float* p = scores + r * tile_len;
            const int count = pick_allowed(tile, r, p, v, allowed);
            if (!count) continue;
            softmax_tile<Factor<V>>(p, 1, count, to.m + r, to.l + r, factor);
            weigh_rows<1>(weights_of<Factor<V>>(p), allowed, count, factor, to.acc + r * d, d,
                          r == 0 ? next : nothing);
        }
        return;
    }
    softmax_tile<Factor<V>>(scores, task.rows, tile.count, to.m, to.l, factor);
    // FP8 that is widened in registers takes four vectors of d.
    constexpr int most = is_fp8<V> ? weigh_sums / 4 : attention_rows;
    for_row_groups<most>(task.rows, [&](auto group, i64 r) {
        weigh_rows<group()>(weights_of<Factor<V>>(scores + r * tile_len), v, tile.count, factor + r,
                            to.acc + r * d, d, r == 0 ? next : nothing);
    });
}

}  // namespace
}  // namespace tkg
