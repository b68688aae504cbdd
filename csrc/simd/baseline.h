// Four float32 lanes in plain C++ with the compiler's vector extension: SSE2 on x86-64, NEON on
// Arm. Multiply-adds are rounded twice.
#pragma once

#include <array>

#include "core/dtype.h"
#include "core/panels.h"
#include "simd/convert.h"

namespace tkg {
namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef std::int32_t Int4 __attribute__((vector_size(16)));

struct Vec {
    Float4 v;
};

constexpr int lanes = 4;
// Register tiles: rows of x by 4 vectors of columns; rows by positions, and dot products, of
// scores; rows, and sums, of weighted V.
constexpr int gemm_rows = 2, dot_rows = 2, dot_sums = 8, attention_rows = 4, weigh_sums = 8;
constexpr bool widens_slowly = true;
// From so many rows on, scores are computed from K turned (kernels/attention_turned.h).
constexpr int turned_rows = 2;

inline Vec zero() { return {Float4{0, 0, 0, 0}}; }
inline Vec set1(float x) { return {Float4{x, x, x, x}}; }
inline Vec lane_index() { return {Float4{0, 1, 2, 3}}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline Vec add(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec sub(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec mul(Vec a, Vec b) { return {a.v * b.v}; }
// b where x < y, else a
inline Vec select_less(Vec x, Vec y, Vec a, Vec b) {
    const Int4 less = x.v < y.v;
    return {(Float4)(((Int4)b.v & less) | ((Int4)a.v & ~less))};
}
inline Vec max(Vec a, Vec b) { return select_less(b, a, b, a); }
inline float sum(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
// to[i] = sum(c[i])
inline void sum_each(const Vec* c, float* to) {
    for (int i = 0; i < dot_sums; ++i) to[i] = sum(c[i]);
}
inline float largest(Vec a) {
    const float x = a.v[0] > a.v[2] ? a.v[0] : a.v[2], y = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
    return x > y ? x : y;
}
// To the nearest whole number, |a| < 2^22: adding 1.5 * 2^23 leaves no fraction bits.
inline Vec round_nearest(Vec a) {
    const Vec magic = set1(12582912.0f);
    return sub(add(a, magic), magic);
}
// a * 2^n for a whole number n from -126 to 127
inline Vec scale_by_power(Vec a, Vec n) {
    const Int4 exponent = __builtin_convertvector(n.v, Int4) + 127;
    return {a.v * (Float4)(exponent << 23)};
}

inline void store(float* p, Vec a) { __builtin_memcpy(p, &a.v, sizeof a.v); }
inline void store_n(float* p, Vec a, int n) {
    for (int i = 0; i < n; ++i) p[i] = a.v[i];
}

inline Vec load(const float* p) {
    Vec a;
    __builtin_memcpy(&a.v, p, sizeof a.v);
    return a;
}
template <class T>
inline Vec load(const T* p) {
    return {Float4{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}};
}
template <class T>
inline Vec load_n(const T* p, int n) {
    Vec a = zero();
    for (int i = 0; i < n; ++i) a.v[i] = to_float(p[i]);
    return a;
}

// n FP8 values as float16 of 2^-8 of their value.
template <class T>
inline void fp8_to_half(const T* p, int n, f16* to) {
    for (int i = 0; i < n; ++i) to[i] = half_of(p[i]);
}

// to[w * stride + i] = 32-bit word first + w of row i, for 4 rows and n <= 4 words.
inline void turn_words(const void* const* row, std::int64_t first, int n, std::uint32_t* to,
                       std::int64_t stride) {
    for (int i = 0; i < lanes; ++i)
        for (int w = 0; w < n; ++w)
            __builtin_memcpy(to + w * stride + i,
                             static_cast<const unsigned char*>(row[i]) + (first + w) * 4, 4);
}
// The values in 4 words, in order.
inline void widen_words(const std::uint32_t* p, float, Vec* b) {
    b[0] = load(reinterpret_cast<const float*>(p));
}
inline void widen_words(const std::uint32_t* p, bf16, Vec* b) {
    Int4 pairs;
    __builtin_memcpy(&pairs, p, sizeof pairs);
    b[0] = {(Float4)(pairs << 16)};
    b[1] = {(Float4)(pairs & static_cast<int>(0xffff0000u))};
}
inline void widen_words(const std::uint32_t* p, f16, Vec* b) {
    for (int i = 0; i < lanes; ++i) {
        b[0].v[i] = to_float(f16{static_cast<std::uint16_t>(p[i])});
        b[1].v[i] = to_float(f16{static_cast<std::uint16_t>(p[i] >> 16)});
    }
}

// Sixteen columns of a panel's row (core/panels.h); FP8 as 2^-8 of the value.
inline void load_strip(const float* row, int column, int, Vec* b) {
    for (int v = 0; v < 4; ++v) b[v] = load(row + column + v * lanes);
}
inline void load_strip(const f16* row, int column, int, Vec* b) {
    for (int v = 0; v < 4; ++v) b[v] = load(row + column + v * lanes);
}
// Of two rows, the first or the second.
inline void load_strip(const bf16* rows, int column, int second, Vec* b) {
    const bf16* p = rows + 2 * column;
    for (int v = 0; v < 4; ++v) {
        Int4 pairs;
        __builtin_memcpy(&pairs, p + 2 * v * lanes, sizeof pairs);
        b[v] = {(Float4)(second ? pairs & static_cast<int>(0xffff0000u) : pairs << 16)};
    }
}
// 2^-8 of the value of each of the 256 bytes.
template <class T>
inline const float* fp8_values() {
    static const std::array<float, 256> values = [] {
        std::array<float, 256> table;
        for (int bits = 0; bits < 256; ++bits)
            table[static_cast<std::size_t>(bits)] =
                to_float(half_of(T{static_cast<std::uint8_t>(bits)}));
        return table;
    }();
    return values.data();
}
template <class T>
inline void load_strip(const T* row, int column, int, Vec* b) {
    static_assert(sizeof(T) == 1);
    const float* values = fp8_values<T>();
    const T* p = row + place_of_pair(column);
    for (int v = 0; v < 4; ++v, p += 2 * lanes)
        b[v] = {Float4{values[p[0].bits], values[p[2].bits], values[p[4].bits], values[p[6].bits]}};
}

}  // namespace
}  // namespace tkg
