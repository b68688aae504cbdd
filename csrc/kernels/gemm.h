// y = x @ w for a few rows of x: weights are streamed once, whatever the number of rows.
//
//   x [M, K] float32    w [K, N] any type, rows contiguous    partial [chunks, M, N] float32
//
// The sum over k is cut into chunks, a chunk into blocks of `block_k`. Inside a block every output
// element is one chain of multiply-adds in order of k; blocks are added in order, then chunks.
// Chunks depend on K alone, so an element has the same bits whatever the threads, the other rows,
// and the columns computed beside it. Work is cut into (chunk, column range) tasks; only the
// ranges depend on the number of threads.
#pragma once

#include "kernels/support.h"

namespace tkg {
namespace {

constexpr int block_k = 16;   // rows of w in a block: as many streams as prefetchers follow
constexpr int tile_vecs = 4;  // vectors of columns in a register tile
constexpr int tile_n = tile_vecs * lanes;
constexpr i64 min_chunk_k = 64;
constexpr i64 max_chunks = 8;  // at most, so that partial sums stay small beside the weights

struct GemmPlan {
    i64 m, k, n;
    i64 chunk_k, chunks;  // rows of w a chunk
    i64 range_n, ranges;  // columns a task
    i64 tasks() const { return chunks * ranges; }
    i64 partial_floats() const { return chunks * m * n; }
};

inline GemmPlan plan_gemm(i64 m, i64 k, i64 n, int threads) {
    GemmPlan plan{m, k, n, 0, 0, 0, 0};
    plan.chunk_k = round_up(ceil_div(k, max_chunks), min_chunk_k);
    plan.chunks = ceil_div(k, plan.chunk_k);
    // About four tasks a thread for balance, but column ranges long enough to stream.
    const i64 wanted = ceil_div(4 * threads, plan.chunks);
    plan.range_n = max_of(256, round_up(ceil_div(n, wanted), 64));
    plan.ranges = ceil_div(n, plan.range_n);
    return plan;
}

// acc[m][0..NV*lanes) (+)= sum over k of x[m][k] * w[k][0..NV*lanes). With NV == 1, n may be less
// than a vector.
template <int MR, int NV, bool Tail, class T>
inline void gemm_tile(const float* x, i64 ldx, const T* w, i64 ldw, i64 k, float* acc, i64 ldacc,
                      bool first_block, int n, const T* ahead) {
    Vec c[MR][NV];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) c[m][v] = zero();
    for (i64 i = 0; i < k; ++i) {
        Vec b[NV];
        for (int v = 0; v < NV; ++v)
            b[v] = Tail ? load_n(w + i * ldw, n) : load(w + i * ldw + v * lanes);
        if (ahead)
            for (int byte = 0; byte < static_cast<int>(NV * lanes * sizeof(T)); byte += 64)
                __builtin_prefetch(reinterpret_cast<const char*>(ahead + i * ldw) + byte);
        for (int m = 0; m < MR; ++m) {
            const Vec a = set1(x[m * ldx + i]);
            for (int v = 0; v < NV; ++v) c[m][v] = fma(a, b[v], c[m][v]);
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) {
            float* out = acc + m * ldacc + v * lanes;
            if (Tail)
                store_n(out, first_block ? c[m][v] : add(load_n(out, n), c[m][v]), n);
            else
                store(out, first_block ? c[m][v] : add(load(out), c[m][v]));
        }
}

// All rows of x over one tile of columns: full register tiles, then single rows.
template <int NV, bool Tail, class T>
inline void gemm_rows_of_tile(const float* x, i64 ldx, i64 m, const T* w, i64 ldw, i64 k,
                              float* acc, i64 ldacc, bool first_block, int n, const T* ahead) {
    constexpr int MR = gemm_rows;
    i64 i = 0;
    for (; i + MR <= m; i += MR, ahead = nullptr)
        gemm_tile<MR, NV, Tail>(x + i * ldx, ldx, w, ldw, k, acc + i * ldacc, ldacc, first_block, n,
                                ahead);
    if constexpr (MR > 2) {
        for (; i + 2 <= m; i += 2, ahead = nullptr)
            gemm_tile<2, NV, Tail>(x + i * ldx, ldx, w, ldw, k, acc + i * ldacc, ldacc, first_block,
                                   n, ahead);
    }
    for (; i < m; ++i, ahead = nullptr)
        gemm_tile<1, NV, Tail>(x + i * ldx, ldx, w, ldw, k, acc + i * ldacc, ldacc, first_block, n,
                               ahead);
}

// One full tile. With many rows the weights are widened once for all of them.
template <class T>
inline void gemm_full_tile(const float* x, i64 ldx, i64 m, const T* w, i64 ldw, i64 k, float* acc,
                           i64 ldacc, bool first_block, const T* ahead) {
    if constexpr (sizeof(T) < sizeof(float)) {
        if (m > 2 * gemm_rows) {
            float wide[block_k * tile_n];
            for (i64 i = 0; i < k; ++i)
                for (int v = 0; v < tile_vecs; ++v)
                    store(wide + i * tile_n + v * lanes, load(w + i * ldw + v * lanes));
            gemm_rows_of_tile<tile_vecs, false>(x, ldx, m, wide, tile_n, k, acc, ldacc, first_block,
                                                0, static_cast<const float*>(nullptr));
            return;
        }
    }
    gemm_rows_of_tile<tile_vecs, false>(x, ldx, m, w, ldw, k, acc, ldacc, first_block, 0, ahead);
}

// One task: partial[chunk][0..m)[n0..n1).
template <class T>
inline void gemm_task(const GemmPlan& plan, i64 task, const float* x, const T* w, i64 ldw,
                      float* partial) {
    const i64 chunk = task / plan.ranges, range = task % plan.ranges;
    const i64 k0 = chunk * plan.chunk_k, k1 = min_of(plan.k, k0 + plan.chunk_k);
    const i64 n0 = range * plan.range_n, n1 = min_of(plan.n, n0 + plan.range_n);
    float* acc = partial + chunk * plan.m * plan.n;
    for (i64 kb = k0; kb < k1; kb += block_k) {
        const i64 k = min_of(block_k, k1 - kb);
        const bool first_block = kb == k0;
        i64 n = n0;
        for (; n + tile_n <= n1; n += tile_n) {
            // Prefetch the next tile: to the right, or at the left of the next block of rows.
            const bool right = n + 2 * tile_n <= n1, below = kb + 2 * block_k <= k1;
            const T* ahead = right   ? w + kb * ldw + n + tile_n
                             : below ? w + (kb + block_k) * ldw + n0
                                     : nullptr;
            gemm_full_tile(x + kb, plan.k, plan.m, w + kb * ldw + n, ldw, k, acc + n, plan.n,
                           first_block, ahead);
        }
        for (; n < n1; n += lanes)
            gemm_rows_of_tile<1, true>(x + kb, plan.k, plan.m, w + kb * ldw + n, ldw, k, acc + n,
                                       plan.n, first_block, valid_lanes(n, n1),
                                       static_cast<const T*>(nullptr));
    }
}

inline void gemm_task(const GemmPlan& plan, i64 task, const float* x, const Linear& linear,
                      float* partial) {
    with_type(linear.dtype, [&](auto type) {
        using T = decltype(type);
        gemm_task(plan, task, x, at<const T>(linear.weight), linear.row_stride, partial);
    });
}

// y[0..n) = columns [n0, n0 + n) of row m: chunks added in order, scaled, bias added.
inline void gemm_finish(const GemmPlan& plan, const float* partial, const Linear& linear, i64 m,
                        i64 n0, i64 n, float* y) {
    const float* scale = at<const float>(linear.column_scale);
    const float* bias = at<const float>(linear.bias);
    for (i64 i = 0; i < n; i += lanes) {
        const int valid = valid_lanes(i, n);
        const float* p = partial + m * plan.n + n0 + i;
        Vec sum = load_n(p, valid);
        for (i64 chunk = 1; chunk < plan.chunks; ++chunk)
            sum = add(sum, load_n(p + chunk * plan.m * plan.n, valid));
        if (scale) sum = mul(sum, load_n(scale + n0 + i, valid));
        if (bias) sum = add(sum, load_n(bias + n0 + i, valid));
        store_n(y + i, sum, valid);
    }
}

// STATIC's activations: x_q = fp8(clip(x / input_scale)), kept as float32.
inline void round_to_fp8(float* x, i64 n, float input_scale) {
    for (i64 i = 0; i < n; ++i) x[i] = to_float(e4m3{fp8_bits(x[i] / input_scale)});
}

}  // namespace
}  // namespace tkg
