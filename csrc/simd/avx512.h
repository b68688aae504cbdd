// Sixteen float32 lanes: AVX-512 F, BW, DQ and VL. FP8 is in avx512_fp8.h.
#pragma once

#include <immintrin.h>

#include "core/dtype.h"

namespace tkg {
namespace {

struct Vec {
    __m512 v;
};

constexpr int lanes = 16;
// Register tiles: rows of x by 4 vectors of columns; rows by positions, and dot products, of
// scores; rows, and sums, of weighted V.
constexpr int gemm_rows = 6, dot_rows = 4, dot_sums = 16, attention_rows = 8, weigh_sums = 16;
constexpr bool widens_slowly = false;
// From so many rows on, scores are computed from K turned (kernels/attention_turned.h).
constexpr int turned_rows = 5;

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
// to[i] = sum(c[i]), each added up in the order of `sum`: halves, quarters, pairs.
inline void sum_each(const Vec* c, float* to) {
    const auto halves = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    };
    const auto quarters = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    __m512 four[4];
    for (int i = 0; i < 4; ++i) {
        // Vectors i, i + 4, i + 8, i + 12 go to the four lanes.
        four[i] = quarters(halves(c[i].v, c[i + 4].v), halves(c[i + 8].v, c[i + 12].v));
    }
    const auto pairs = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    };
    const __m512 a = pairs(four[0], four[1]), b = pairs(four[2], four[3]);
    _mm512_storeu_ps(to,
                     _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd)));
}
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
// to[w * stride + i] = 32-bit word first + w of row i, for 16 rows and n <= 16 words.
inline void turn_words(const void* const* row, std::int64_t first_word, int n, std::uint32_t* to,
                       std::int64_t stride) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i)
        a[i] = _mm512_maskz_loadu_epi32(first(n),
                                        static_cast<const std::uint32_t*>(row[i]) + first_word);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; ++h) {
            a[i + 2 * h] = _mm512_unpacklo_epi64(b[i + h], b[i + h + 2]);
            a[i + 2 * h + 1] = _mm512_unpackhi_epi64(b[i + h], b[i + h + 2]);
        }
    // a[4 * g + w]: words w, w + 4, w + 8, w + 12 of rows 4 * g to 4 * g + 3.
    for (int w = 0; w < 4; ++w) {
        const __m512i low01 = _mm512_shuffle_i32x4(a[w], a[w + 4], 0x44);
        const __m512i high01 = _mm512_shuffle_i32x4(a[w], a[w + 4], 0xee);
        const __m512i low23 = _mm512_shuffle_i32x4(a[w + 8], a[w + 12], 0x44);
        const __m512i high23 = _mm512_shuffle_i32x4(a[w + 8], a[w + 12], 0xee);
        b[w] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        b[w + 4] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        b[w + 8] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        b[w + 12] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
    for (int w = 0; w < n; ++w) _mm512_store_si512(to + w * stride, b[w]);
}
// The values in 16 words, in order.
inline void widen_words(const std::uint32_t* p, float, Vec* b) {
    b[0] = {_mm512_castsi512_ps(_mm512_load_si512(p))};
}
inline void widen_words(const std::uint32_t* p, bf16, Vec* b) {
    const __m512i x = _mm512_load_si512(p);
    b[0] = {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))};
    b[1] = {
        _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline void widen_words(const std::uint32_t* p, f16, Vec* b) {
    const __m512i x = _mm512_load_si512(p);
    b[0] = {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(x))};
    b[1] = {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)))};
}

// The 64 columns of a panel's row (core/panels.h); FP8 as 2^-8 of the value.
inline void load_strip(const float* row, int, int, Vec* b) {
    for (int v = 0; v < 4; ++v) b[v] = load(row + v * lanes);
}
inline void load_strip(const f16* row, int, int, Vec* b) {
    for (int v = 0; v < 4; ++v) b[v] = load(row + v * lanes);
}
// Of two rows, the first or the second.
inline void load_strip(const bf16* rows, int, int second, Vec* b) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (int v = 0; v < 4; ++v) {
        const __m512i pairs = _mm512_loadu_si512(rows + 2 * v * lanes);
        b[v] = {_mm512_castsi512_ps(second ? _mm512_and_si512(pairs, high)
                                           : _mm512_slli_epi32(pairs, 16))};
    }
}
#if defined(TKG_ISA_AVX512_BF16)
// Sixteen pairs of bfloat16 that are multiplied and added up in float32.
struct Pairs {
    __m512i v;
};
constexpr bool multiplies_bf16 = true;

// The order in which 16 columns of two rows of 32 are taken for pairs.
struct PairOrder {
    alignas(64) std::uint16_t from[32];
};
constexpr PairOrder pair_order(int column) {
    PairOrder order{};
    for (int i = 0; i < 32; ++i)
        order.from[i] = static_cast<std::uint16_t>(column + i / 2 + i % 2 * 32);
    return order;
}

inline Pairs spread(const bf16* p) {
    int pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return {_mm512_set1_epi32(pair)};
}
// c[i] + a[i][0] * b[i][0] + a[i][1] * b[i][1]
inline Vec fma(Pairs a, Pairs b, Vec c) {
    return {
        _mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}
// The 64 columns of two rows of a panel.
inline void load_strip(const bf16* rows, int, Pairs* b) {
    for (int v = 0; v < 4; ++v) b[v] = {_mm512_loadu_si512(rows + 2 * v * lanes)};
}
// Values that bfloat16 has, in pairs: each of `even` and its neighbour of `odd`.
inline Pairs pairs_of(Vec even, Vec odd) {
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even.v), 16);
    return {_mm512_or_si512(low, _mm512_castps_si512(odd.v))};
}
// Neighbours of a row; n <= 32 values.
inline Pairs load_pairs(const void* p) { return {_mm512_loadu_si512(p)}; }
inline Pairs load_pairs_n(const bf16* p, int n) {
    return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p)};
}
// 32 columns of two rows.
inline void load_rows(const bf16* first_row, const bf16* second_row, Pairs* to) {
    const __m512i a = _mm512_loadu_si512(first_row), b = _mm512_loadu_si512(second_row);
    static constexpr PairOrder low = pair_order(0), high = pair_order(16);
    to[0] = {_mm512_permutex2var_epi16(a, _mm512_load_si512(low.from), b)};
    to[1] = {_mm512_permutex2var_epi16(a, _mm512_load_si512(high.from), b)};
}
inline void widen_words(const std::uint32_t* p, bf16, Pairs* b) { b[0] = load_pairs(p); }
// n values, rounded.
inline void store_n(bf16* p, Vec a, int n) {
    _mm256_mask_storeu_epi16(p, first(n), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)));
}
#endif

}  // namespace
}  // namespace tkg
