// The vector layer: `Vec` with `lanes` float32 lanes, and exact loads from every stored type.
// Nothing outside this folder knows an instruction set. Everything here has internal linkage, so
// that code compiled for one instruction set is never linked into another variant.
#pragma once

#if defined(TKG_ISA_AVX512)
#include "simd/avx512_fp8.h"
#if defined(TKG_ISA_AMX)
#include "simd/amx.h"
#endif
#elif defined(TKG_ISA_AVX2)
#include "simd/avx2.h"
#else
#include "simd/baseline.h"
#endif

namespace tkg {
namespace {

#if !defined(TKG_ISA_AVX512_VBMI)
constexpr bool widens_fp8_in_registers = false;
template <class T>
void widen_64(const T*, Vec*) = delete;
// What rows of FP8 are widened to, as 2^-8 of their value; n <= 64, to holds 64.
using WideFp8 = f16;
template <class T>
inline void widen_row(const T* p, int n, WideFp8* to) {
    fp8_to_half(p, n, to);
}
#endif

#if !defined(TKG_ISA_AVX512_BF16)
constexpr bool multiplies_bf16 = false;  // no units for it, or they are not used
struct Pairs {};
#endif

#if !defined(TKG_ISA_AMX)
constexpr int prefetch_locality = 3;  // into the first cache
constexpr bool multiplies_matrices = false;
constexpr int matrix_rows = 16, matrix_terms = 32, matrix_columns = 16;
struct RoundingOfMatrices {};
inline void shape_matrices(int) {}
inline void release_matrices() {}
inline void zero_sums() {}
inline void load_sums(const float*, std::int64_t) {}
inline void store_sums(float*, std::int64_t) {}
inline void finish_stores() {}
inline void store_pairs(const Pairs&, bf16*) {}
inline void zero_sum() {}
inline void store_sum(float*) {}
inline void multiply_one(const bf16*, std::int64_t, const bf16*) {}
inline void put_in_order(Vec*) {}
inline void turn_four_columns(const float*, std::int64_t, Vec*) {}
template <class T>
inline void interleave_rows(const T*, const T*, Pairs*) {}
template <class F>
inline void multiply_matrices(const bf16*, std::int64_t, const bf16*, F&&) {}
#endif

inline Vec spread(const float* p) { return set1(*p); }

// exp(x) for x <= 0, within 2 units in the last place; 0 below -87.3 (the smallest normal
// float32), -inf included. x = n ln 2 + r, exp(x) = 2^n exp(r), exp(r) by its Taylor series to
// degree 7 on |r| <= ln(2) / 2 (remainder below 2^-27). Nothing on the way is denormal, which takes
// some processors a hundred times as long.
inline Vec exp_nonpositive(Vec x) {
    const Vec lowest = set1(-87.3365402f);
    const Vec clamped = select_less(x, lowest, x, zero());
    const Vec n = round_nearest(mul(clamped, set1(1.44269504f)));
    Vec r =
        fma(n, set1(-0.693145752f), clamped);  // ln 2 in two parts: the first is exact in n * it
    r = fma(n, set1(-1.42860677e-6f), r);
    Vec p = set1(1.0f / 5040);
    p = fma(p, r, set1(1.0f / 720));
    p = fma(p, r, set1(1.0f / 120));
    p = fma(p, r, set1(1.0f / 24));
    p = fma(p, r, set1(1.0f / 6));
    p = fma(p, r, set1(0.5f));
    p = fma(p, r, set1(1.0f));
    p = fma(p, r, set1(1.0f));
    return select_less(x, lowest, scale_by_power(p, n), zero());
}

inline float exp_nonpositive(float x) {
    float lane[lanes];
    store(lane, exp_nonpositive(set1(x)));
    return lane[0];
}

}  // namespace
}  // namespace tkg
