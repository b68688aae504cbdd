// Sixteen float32 lanes: AVX-512 F, BW, DQ and VL.
#pragma once

#include <immintrin.h>

#include "core/dtype.h"

namespace tkg {
namespace {

struct Vec {
    __m512 v;
};

constexpr int lanes = 16;
constexpr int gemm_rows = 6;  // rows of x a register tile holds: 6 * 4 accumulators of 32 registers

inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec set1(float x) { return {_mm512_set1_ps(x)}; }
inline Vec lane_index() {
    return {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }
inline Vec round_nearest(Vec a) { return {_mm512_roundscale_ps(a.v, 0)}; }
// a * 2^n for a whole number n
inline Vec scale_by_power(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// b where x < y, else a
inline Vec select_less(Vec x, Vec y, Vec a, Vec b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), a.v, b.v)};
}

inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void store_n(float* p, Vec a, int n) { _mm512_mask_storeu_ps(p, first(n), a.v); }

inline Vec widen(__m256i x, bf16) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}

inline Vec widen(__m256i x, f16) { return {_mm512_cvtph_ps(x)}; }

// FP8 to float16 bits: with the exponent field moved into place the value is 2^-8 of the true one
// (biases 7 and 15), denormals included; the multiplication by 2^8 is exact.
inline Vec widen_scaled(__m256i half) { return mul({_mm512_cvtph_ps(half)}, set1(256.0f)); }

inline __m256i fp8_as_half(__m128i x) {
    const __m256i wide = _mm256_cvtepu8_epi16(x);
    const __m256i magnitude = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
    return _mm256_or_si256(magnitude, sign);
}

inline __m256i with_bits(__m256i x, __mmask16 where, short bits) {
    return _mm256_mask_mov_epi16(x, where, _mm256_or_si256(x, _mm256_set1_epi16(bits)));
}

inline Vec widen(__m128i x, e4m3) {
    const __m256i half = fp8_as_half(x);
    const __m256i top = _mm256_set1_epi16(0x3c00);  // e4m3's all-ones exponent: inf and NaN
    const __mmask16 special = _mm256_cmpeq_epi16_mask(_mm256_and_si256(half, top), top);
    return widen_scaled(with_bits(half, special, 0x7c00));
}

inline Vec widen(__m128i x, e4m3fn) {
    const __m256i half = fp8_as_half(x);
    const __m256i top = _mm256_set1_epi16(0x3f80);  // all ones: the only NaN
    const __mmask16 special = _mm256_cmpeq_epi16_mask(_mm256_and_si256(half, top), top);
    return widen_scaled(with_bits(half, special, 0x7e00));
}

inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline Vec load(const bf16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), bf16{});
}
inline Vec load_n(const bf16* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), p), bf16{});
}
inline Vec load(const f16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), f16{});
}
inline Vec load_n(const f16* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), p), f16{});
}
inline Vec load(const e4m3* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), e4m3{});
}
inline Vec load_n(const e4m3* p, int n) { return widen(_mm_maskz_loadu_epi8(first(n), p), e4m3{}); }
inline Vec load(const e4m3fn* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), e4m3fn{});
}
inline Vec load_n(const e4m3fn* p, int n) {
    return widen(_mm_maskz_loadu_epi8(first(n), p), e4m3fn{});
}

}  // namespace
}  // namespace tkg
