// RMSNorm and RoPE of one vector, and moving vectors between float32 and the stored types.
#pragma once

#include "kernels/support.h"

namespace tkg {
namespace {

template <class T>
inline void widen(const T* p, i64 n, float* x) {
    for_vectors(n, [&](i64 i, auto valid) { store_n(x + i, load_n(p + i, valid), valid); });
}

// x / sqrt(mean(x^2) + eps) * weight, in place; nothing if the norm is off.
inline void rms_norm(float* x, i64 n, const Norm& norm) {
    if (norm.eps < 0) return;
    Vec squares = zero();
    for_vectors(n, [&](i64 i, auto valid) {
        const Vec a = load_n(x + i, valid);
        squares = fma(a, a, squares);
    });
    const Vec inverse =
        set1(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + norm.eps));
    const float* weight = at<const float>(norm.weight);
    for_vectors(n, [&](i64 i, auto valid) {
        Vec y = mul(load_n(x + i, valid), inverse);
        if (weight) y = mul(y, load_n(weight + i, valid));
        store_n(x + i, y, valid);
    });
}

// r' = r cos - i sin, i' = r sin + i cos, in place. cos and sin are `stride` floats apart.
inline void rotate(float* x, i64 d, Rope style, const float* cos, const float* sin, i64 stride) {
    if (style == Rope::none) return;
    const i64 half = d / 2;
    if (style == Rope::half && stride == 1) {
        for_vectors(half, [&](i64 pair, auto n) {
            const Vec c = load_n(cos + pair, n), s = load_n(sin + pair, n);
            const Vec r = load_n(x + pair, n), i = load_n(x + half + pair, n);
            store_n(x + pair, sub(mul(r, c), mul(i, s)), n);
            store_n(x + half + pair, add(mul(r, s), mul(i, c)), n);
        });
        return;
    }
    for (i64 pair = 0; pair < half; ++pair) {
        float* re = style == Rope::half ? x + pair : x + 2 * pair;
        float* im = style == Rope::half ? x + half + pair : x + 2 * pair + 1;
        const float c = cos[pair * stride], s = sin[pair * stride], r = *re, i = *im;
        *re = r * c - i * s;
        *im = r * s + i * c;
    }
}

// K or V as the cache stores it: scaled (FP8), rounded.
template <class T>
inline void narrow(const float* x, i64 n, float scale, T* p) {
    for (i64 i = 0; i < n; ++i) from_float(x[i] * scale, p + i);
}

// Row m of a projection's output: [rows, n], or [128, lnc, n / lnc / 128, rows] with
// h = h0 * (n / lnc) + h1 * (n / lnc / 128) + h2 at index [h1, h0, h2, m].
template <class T>
inline void store_row(const float* y, i64 n0, i64 count, i64 n, i64 m, i64 rows, bool transposed,
                      i64 lnc, T* out) {
    if (!transposed) {
        for (i64 i = 0; i < count; ++i) from_float(y[i], out + m * n + n0 + i);
        return;
    }
    const i64 per_core = n / lnc, inner = per_core / 128;
    for (i64 i = 0; i < count; ++i) {
        const i64 h = n0 + i, h0 = h / per_core, h1 = h % per_core / inner, h2 = h % inner;
        from_float(y[i], out + ((h1 * lnc + h0) * inner + h2) * rows + m);
    }
}

}  // namespace
}  // namespace tkg
