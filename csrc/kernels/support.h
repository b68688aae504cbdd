// Small words that the kernels share.
#pragma once

#include <cstdint>

#include "core/calls.h"
#include "core/team.h"
#include "simd/convert.h"
#include "simd/simd.h"

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

// What one thread of a team sees while a call runs.
class Worker {
public:
    Worker(Team& team, int thread) : team_(team), thread_(thread) {}

    int thread() const { return thread_; }
    void barrier() { team_.barrier(); }

    // f(i) for this thread's even share of 0 to n - 1.
    template <class F>
    void split(i64 n, F&& f) {
        const i64 end = n * (thread_ + 1) / team_.size();
        for (i64 i = n * thread_ / team_.size(); i < end; ++i) f(i);
    }

    // f(i) for 0 to n - 1, each taken by whichever thread is free; once between two barriers.
    template <class F>
    void share(i64 n, F&& f) {
        for (i64 i = team_.next(); i < n; i = team_.next()) f(i);
    }

private:
    Team& team_;
    int thread_;
};

// f(worker) on every thread of a team.
template <class F>
inline void run_on(Team& team, F&& f) {
    struct Context {
        Team& team;
        F& f;
    } context{team, f};
    team.run(
        [](void* p, int thread) {
            Context& c = *static_cast<Context*>(p);
            Worker worker(c.team, thread);
            c.f(worker);
        },
        &context);
}

// FP8 is widened to float16 of 2^-8 of its value, which the sums make good by this.
template <class T>
constexpr bool is_fp8 = sizeof(T) == 1;
constexpr float fp8_half_scale = 256.0f;

// Ask for the cache lines of `bytes` bytes. GCC takes a function that only prefetches for one
// without effect and drops calls to it, unless they are inlined before it looks.
#define TKG_INLINE [[gnu::always_inline]] inline
TKG_INLINE void prefetch(const void* p, i64 bytes) {
    for (i64 byte = 0; byte < bytes; byte += 64)
        __builtin_prefetch(static_cast<const char*>(p) + byte);
}

// The lanes of a vector that fall into n elements from i on.
inline int valid_lanes(i64 i, i64 n) { return static_cast<int>(min_of(lanes, n - i)); }

}  // namespace
}  // namespace tkg
