// Eight float32 lanes: AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "core/dtype.h"
#include "simd/convert.h"

namespace tkg {
namespace {

struct Vec {
    __m256 v;
};

constexpr int lanes = 8;
// Register tiles: rows of x by 4 vectors of columns; rows by positions, and dot products, of
// scores; rows, and sums, of weighted V.
constexpr int gemm_rows = 2, dot_rows = 2, dot_sums = 8, attention_rows = 4, weigh_sums = 8;
constexpr bool widens_slowly = false;
// From so many rows on, scores are computed from K turned (kernels/attention_turned.h).
constexpr int turned_rows = 5;

inline Vec zero() { return {_mm256_setzero_ps()}; }
inline Vec set1(float x) { return {_mm256_set1_ps(x)}; }
inline Vec lane_index() { return {_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }

inline float sum(Vec a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

// to[i] = sum(c[i])
inline void sum_each(const Vec* c, float* to) {
    for (int i = 0; i < dot_sums; ++i) to[i] = sum(c[i]);
}
inline float largest(Vec a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline Vec round_nearest(Vec a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for a whole number n from -126 to 127
inline Vec scale_by_power(Vec a, Vec n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
}
// b where x < y, else a
inline Vec select_less(Vec x, Vec y, Vec a, Vec b) {
    return {_mm256_blendv_ps(a.v, b.v, _mm256_cmp_ps(x.v, y.v, _CMP_LT_OQ))};
}

inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline void store_n(float* p, Vec a, int n) {
    float all[lanes];
    store(all, a);
    for (int i = 0; i < n; ++i) p[i] = all[i];
}

inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const bf16* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
}
inline Vec load(const f16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

// Eight FP8 values as float16 bits, 2^-8 of the true value (biases 7 and 15), denormals included.
// Where all of `top` is set in the magnitude, `special` is or-ed in: float16's infinity or NaN.
inline __m128i fp8_halves(__m128i x, int top, int special) {
    const __m128i wide = _mm_cvtepu8_epi16(x);
    const __m128i magnitude = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x7f)), 7);
    const __m128i sign = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x80)), 8);
    const __m128i mark = _mm_set1_epi16(static_cast<short>(top));
    const __m128i is_special = _mm_cmpeq_epi16(_mm_and_si128(magnitude, mark), mark);
    const __m128i extra = _mm_and_si128(is_special, _mm_set1_epi16(static_cast<short>(special)));
    return _mm_or_si128(_mm_or_si128(magnitude, sign), extra);
}
inline __m128i halves(__m128i x, e4m3) { return fp8_halves(x, 0x3c00, 0x7c00); }
inline __m128i halves(__m128i x, e4m3fn) { return fp8_halves(x, 0x3f80, 0x7e00); }

template <class T>
inline Vec load_fp8(const T* p) {
    const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return mul({_mm256_cvtph_ps(halves(x, T{}))}, set1(256.0f));
}
inline Vec load(const e4m3* p) { return load_fp8(p); }
inline Vec load(const e4m3fn* p) { return load_fp8(p); }

// n FP8 values as float16 of 2^-8 of their value.
template <class T>
inline void fp8_to_half(const T* p, int n, f16* to) {
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                         halves(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i)), T{}));
    for (; i < n; ++i) to[i] = half_of(p[i]);
}

template <class T>
inline Vec load_n(const T* p, int n) {
    T all[lanes] = {};
    for (int i = 0; i < n; ++i) all[i] = p[i];
    return load(all);
}

// to[w * stride + i] = 32-bit word first + w of row i, for 8 rows and n <= 8 words.
inline void turn_words(const void* const* row, std::int64_t first, int n, std::uint32_t* to,
                       std::int64_t stride) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; ++i) {
        const int* from = static_cast<const int*>(row[i]) + first;
        a[i] = _mm256_maskload_epi32(
            from,
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
    }
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int h = 0; h < 2; ++h) {
            a[i + 2 * h] = _mm256_unpacklo_epi64(b[i + h], b[i + h + 2]);
            a[i + 2 * h + 1] = _mm256_unpackhi_epi64(b[i + h], b[i + h + 2]);
        }
    // a[4 * g + w]: words w and w + 4 of rows 4 * g to 4 * g + 3.
    for (int w = 0; w < 4; ++w) {
        b[w] = _mm256_permute2x128_si256(a[w], a[w + 4], 0x20);
        b[w + 4] = _mm256_permute2x128_si256(a[w], a[w + 4], 0x31);
    }
    for (int w = 0; w < n; ++w)
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + w * stride), b[w]);
}
// The values in 8 words, in order.
inline void widen_words(const std::uint32_t* p, float, Vec* b) {
    b[0] = {_mm256_load_ps(reinterpret_cast<const float*>(p))};
}
inline void widen_words(const std::uint32_t* p, bf16, Vec* b) {
    const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
    b[0] = {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16))};
    b[1] = {
        _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline void widen_words(const std::uint32_t* p, f16, Vec* b) {
    const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
    const auto halves = [](__m256i words) {
        return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    };
    b[0] = {_mm256_cvtph_ps(halves(_mm256_and_si256(x, _mm256_set1_epi32(0xffff))))};
    b[1] = {_mm256_cvtph_ps(halves(_mm256_srli_epi32(x, 16)))};
}

// 32 columns of a panel's row (core/panels.h); FP8 as 2^-8 of the value.
inline void load_strip(const float* row, int column, int, Vec* b) {
    for (int v = 0; v < 4; ++v) b[v] = load(row + column + v * lanes);
}
inline void load_strip(const f16* row, int column, int, Vec* b) {
    for (int v = 0; v < 4; ++v) b[v] = load(row + column + v * lanes);
}
// Of two rows, the first or the second.
inline void load_strip(const bf16* rows, int column, int second, Vec* b) {
    const __m256i* p = reinterpret_cast<const __m256i*>(rows + 2 * column);
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    for (int v = 0; v < 4; ++v) {
        const __m256i pairs = _mm256_loadu_si256(p + v);
        b[v] = {_mm256_castsi256_ps(second ? _mm256_and_si256(pairs, high)
                                           : _mm256_slli_epi32(pairs, 16))};
    }
}
// A byte in the upper half of 16 bits, shifted right by one with its sign: float16 but for bit 14.
inline __m256i half_of_high_bytes(__m256i x) {
    return _mm256_and_si256(_mm256_srai_epi16(x, 1), _mm256_set1_epi16(static_cast<short>(0xbf80)));
}
template <class T>
inline void load_strip(const T* row, int column, int, Vec* b) {
    static_assert(sizeof(T) == 1);
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + column));
    const __m256i low = half_of_high_bytes(_mm256_slli_epi16(pairs, 8));
    const __m256i high = half_of_high_bytes(pairs);
    b[0] = {_mm256_cvtph_ps(_mm256_castsi256_si128(low))};
    b[1] = {_mm256_cvtph_ps(_mm256_extracti128_si256(low, 1))};
    b[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(high))};
    b[3] = {_mm256_cvtph_ps(_mm256_extracti128_si256(high, 1))};
}

}  // namespace
}  // namespace tkg
