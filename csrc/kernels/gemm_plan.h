// y = x @ w for a few rows of x: how the work is cut, and what holds whichever way w is stored.
//
//   x [K / 64, M, 64] float32    partial [chunks, N / 64, M, 64] float32
//
// x and partial are in parts of 64 because rows that are pages apart would share few sets of the
// caches and many entries of the TLB.
//
// The sum over k is cut into chunks. Inside a chunk every output element is one chain of
// multiply-adds in the order of k; chunks are added in order. Chunks depend on K and N alone, so an
// element has the same bits whatever the threads, the other rows, the columns computed beside it,
// and the order in which w is stored. Work is cut into (chunk, column range) tasks; only the ranges
// depend on the number of threads. How often a chain passes through memory on the way changes no
// bit.
//
// Where products are taken in pairs (support.h), x is rounded to bfloat16, and a step of a chain is
// a pair of k: a product of pairs is added.
//
// FP8 weights take part as 2^-8 of their value, which float16 holds; `gemm_finish` puts it right.
#pragma once

#include "kernels/support.h"

namespace tkg {
namespace {

constexpr i64 part = 64;  // of x and partial
// Chunks are work for many threads that leaves the rows of w long, but their sums pass through
// memory.
constexpr i64 min_chunk_k = 512, max_chunks = 4;
constexpr i64 narrow_n = 2048, max_narrow_chunks = 8;  // with few columns, more of them

struct GemmPlan {
    i64 m, k, n;
    i64 chunk_k, chunks;  // rows of w a chunk
    i64 range_n, ranges;  // columns a task
    bool in_pairs;        // x is bfloat16
    i64 tasks() const { return chunks * ranges; }
    i64 operand_floats() const { return m * round_up(k, part) / (in_pairs ? 2 : 1); }
    i64 partial_floats() const { return chunks * m * round_up(n, part); }
    i64 operand_index(i64 row, i64 i) const { return i / part * part * m + row * part + i % part; }
    i64 partial_index(i64 chunk, i64 row, i64 j) const {
        return chunk * m * round_up(n, part) + j / part * part * m + row * part + j % part;
    }
    i64 chunk_end(i64 chunk) const { return min_of(k, (chunk + 1) * chunk_k); }
};

inline GemmPlan plan_gemm(i64 m, const Linear& linear, int threads) {
    const i64 k = linear.in, n = linear.out;
    GemmPlan plan{m, k, n, 0, 0, part, 0, in_pairs_of(linear.dtype)};
    const i64 most = n < narrow_n ? max_narrow_chunks : max_chunks;
    plan.chunk_k = max_of(min_chunk_k, round_up(ceil_div(k, most), part));
    plan.chunks = max_of(1, ceil_div(k, plan.chunk_k));
    if (!linear.panels) {
        // About four tasks a thread for balance, but column ranges long enough to stream.
        const i64 wanted = ceil_div(4 * threads, plan.chunks);
        plan.range_n = max_of(256, round_up(ceil_div(n, wanted), part));
    }
    plan.ranges = ceil_div(n, plan.range_n);
    return plan;
}

template <class X>
inline void put_operand_as(const GemmPlan& plan, i64 row, i64 k0, i64 n, const float* x,
                           X* operand) {
    for (i64 i = 0; i < n;) {
        const i64 count = min_of(n - i, part - (k0 + i) % part);
        put_values(x + i, count, operand + plan.operand_index(row, k0 + i));
        i += count;
    }
    // What the last ones are multiplied beside.
    constexpr i64 together = multiplies_matrices ? matrix_terms : 2;
    if (k0 + n == plan.k)
        for (i64 i = plan.k; i % together; ++i) operand[plan.operand_index(row, i)] = X{};
}

// x[row][k0..k0 + n) into its place.
inline void put_operand(const GemmPlan& plan, i64 row, i64 k0, i64 n, const float* x,
                        float* operand) {
    if (plan.in_pairs)
        put_operand_as(plan, row, k0, n, x, reinterpret_cast<Operand<bf16>*>(operand));
    else
        put_operand_as(plan, row, k0, n, x, operand);
}

// y[0..n) = columns [n0, n0 + n) of row m: chunks added in order, scaled, bias added.
inline void gemm_finish(const GemmPlan& plan, const float* partial, const Linear& linear, i64 m,
                        i64 n0, i64 n, float* y) {
    const float* scale = at<const float>(linear.column_scale);
    const float* bias = at<const float>(linear.bias);
    const bool fp8 = size_of(linear.dtype) == 1;
    const i64 next_chunk = plan.m * round_up(plan.n, part);
    const auto finish = [&](i64 i, auto valid) {
        const i64 j = n0 + i;
        const float* p = partial + plan.partial_index(0, m, j);
        Vec sum = load_n(p, valid);
        for (i64 chunk = 1; chunk < plan.chunks; ++chunk)
            sum = add(sum, load_n(p + chunk * next_chunk, valid));
        if (fp8) sum = mul(sum, set1(fp8_half_scale));
        if (scale) sum = mul(sum, load_n(scale + j, valid));
        if (bias) sum = add(sum, load_n(bias + j, valid));
        store_n(y + i, sum, valid);
    };
    for (i64 i = 0; i < n;) {
        const i64 count = min_of(n - i, part - (n0 + i) % part);
        for_vectors(count, [&](i64 v, auto valid) { finish(i + v, valid); });
        i += count;
    }
}

// STATIC's activations: x_q = fp8(clip(x / input_scale)), kept as float32.
inline void round_to_fp8(float* x, i64 n, float input_scale) {
    for (i64 i = 0; i < n; ++i) x[i] = to_float(e4m3{fp8_bits(x[i] / input_scale)});
}

}  // namespace
}  // namespace tkg
