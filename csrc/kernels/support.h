// Small words that the kernels share.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/calls.h"
#include "core/team.h"
#include "simd/convert.h"
#include "simd/simd.h"

namespace tkg {
namespace {

#define TKG_INLINE [[gnu::always_inline]] inline

using i64 = std::int64_t;

constexpr i64 min_of(i64 a, i64 b) { return a < b ? a : b; }
constexpr i64 max_of(i64 a, i64 b) { return a > b ? a : b; }
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

    // f(i) for 0 to n - 1: this thread's even share in order, then what is left of the others' from
    // the back. Neighbouring pieces mostly follow each other on one thread, which reads a stream;
    // once between two barriers.
    template <class F>
    void share(i64 n, F&& f) {
        const int threads = team_.size();
        for (int step = 0; step < threads; ++step) {
            const int owner = (thread_ + step) % threads;
            const i64 begin = n * owner / threads, size = n * (owner + 1) / threads - begin;
            for (i64 i; (i = team_.take(owner, size, step == 0)) >= 0;) f(begin + i);
        }
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

// Where a processor has units for bfloat16 that are used, products of a projection with values of
// this type, or of FP8, take both factors in bfloat16, neighbours of a sum at a time.
template <class T>
constexpr bool in_pairs = multiplies_bf16 && (std::is_same_v<T, bf16> || is_fp8<T>);
inline bool in_pairs_of(DType dtype) {
    return multiplies_bf16 && (dtype == DType::bfloat16 || size_of(dtype) == 1);
}
// What the other factor is rounded to.
template <class T>
using Operand = std::conditional_t<in_pairs<T>, bf16, float>;

// The same in attention, with units for pairs alone: those for matrices are for many rows
// (attention_matrices.h).
template <class T>
constexpr bool attends_in_pairs = in_pairs<T> && !multiplies_matrices;
template <class T>
using Factor = std::conditional_t<attends_in_pairs<T>, bf16, float>;
// As many of both factors as one multiply-add takes, and how many terms of a sum a lane adds.
template <class T>
using Factors = std::conditional_t<attends_in_pairs<T>, Pairs, Vec>;
template <class T>
constexpr int terms = attends_in_pairs<T> ? 2 : 1;

// What a loop over vectors hands on for a whole one: loads and stores without a mask, since what
// was stored with one cannot be forwarded to a load.
struct Whole {};
template <class T>
inline Vec load_n(const T* p, Whole) {
    return load(p);
}
template <class T>
inline void store_n(T* p, Vec a, Whole) {
    if constexpr (std::is_same_v<T, float>)
        store(p, a);
    else
        store_n(p, a, lanes);
}

// f(i, n) for the vectors of n elements from i on that `count` has: Whole, at the end their number.
template <class F>
TKG_INLINE void for_vectors(i64 count, F&& f) {
    i64 i = 0;
    for (; i + lanes <= count; i += lanes) f(i, Whole{});
    if (i < count) f(i, static_cast<int>(count - i));
}

// n values as such a factor has them.
inline void put_values(const float* x, i64 n, float* to) {
    __builtin_memcpy(to, x, static_cast<std::size_t>(n) * sizeof(float));
}
template <class X>
    requires std::is_same_v<X, bf16>
inline void put_values(const float* x, i64 n, X* to) {
    for_vectors(n, [&](i64 i, auto valid) { store_n(to + i, load_n(x + i, valid), valid); });
}

// Ask for the cache lines of `bytes` bytes. GCC takes a function that only prefetches for one
// without effect and drops calls to it, unless they are inlined before it looks.
TKG_INLINE void prefetch(const void* p, i64 bytes) {
    for (i64 byte = 0; byte < bytes; byte += 64)
        __builtin_prefetch(static_cast<const char*>(p) + byte, 0, prefetch_locality);
}

// The lanes of a vector that fall into n elements from i on.
inline int valid_lanes(i64 i, i64 n) { return static_cast<int>(min_of(lanes, n - i)); }

// f(R, r) for groups of up to Max of `rows` rows, of nearly the same size: R rows (a constant) from
// row r on.
template <int Max, class F>
inline void for_row_groups(i64 rows, F&& f) {
    static_assert(Max <= 8);
    const i64 groups = ceil_div(rows, Max);
    i64 r = 0;
    for (i64 group = 0; group < groups; ++group) {
        const i64 count = rows * (group + 1) / groups - r;
        const auto call = [&](auto size) {
            if constexpr (size() <= Max) f(size, r);
        };
        switch (count) {
            case 1: call(std::integral_constant<int, 1>{}); break;
            case 2: call(std::integral_constant<int, 2>{}); break;
            case 3: call(std::integral_constant<int, 3>{}); break;
            case 4: call(std::integral_constant<int, 4>{}); break;
            case 5: call(std::integral_constant<int, 5>{}); break;
            case 6: call(std::integral_constant<int, 6>{}); break;
            case 7: call(std::integral_constant<int, 7>{}); break;
            case 8: call(std::integral_constant<int, 8>{}); break;
        }
        r += count;
    }
}

}  // namespace
}  // namespace tkg
