// Small words that the kernels share.
#pragma once

#include <cstdint>

#include "core/calls.h"
#include "simd/convert.h"
#include "simd/simd.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace tkg {
namespace {

using i64 = std::int64_t;

inline i64 min_of(i64 a, i64 b) { return a < b ? a : b; }
inline i64 max_of(i64 a, i64 b) { return a > b ? a : b; }
inline i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
inline i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }

// Calls f(T{}) with the type that a dtype names.
template <class F>
inline void with_type(DType dtype, F&& f) {
    switch (dtype) {
        case DType::float32: f(float{}); break;
        case DType::float16: f(f16{}); break;
        case DType::bfloat16: f(bf16{}); break;
        case DType::float8_e4m3: f(e4m3{}); break;
        case DType::float8_e4m3fn: f(e4m3fn{}); break;
    }
}

// Calls f(T{}) for the types of hidden states.
template <class F>
inline void with_activation_type(DType dtype, F&& f) {
    if (dtype == DType::float32) f(float{});
    if (dtype == DType::float16) f(f16{});
    if (dtype == DType::bfloat16) f(bf16{});
}

// This thread's number in its parallel region.
inline int thread_index() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// The lanes of a vector that fall into n elements from i on.
inline int valid_lanes(i64 i, i64 n) { return static_cast<int>(min_of(lanes, n - i)); }

}  // namespace
}  // namespace tkg
