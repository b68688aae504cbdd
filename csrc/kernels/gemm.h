// y = x @ w for a few rows of x: weights are streamed once, whatever the number of rows.
//
//   x [K / 64, M, 64] float32    w [K, N] any type, rows contiguous
//   partial [chunks, N / 64, M, 64] float32
//
// x and partial are in parts of 64 because rows that are pages apart would share few sets of the
// caches and many entries of the TLB.
//
// The sum over k is cut into chunks. Inside a chunk every output element is one chain of
// multiply-adds in the order of k; chunks are added in order. Chunks depend on K and N alone, so an
// element has the same bits whatever the threads, the other rows, and the columns computed beside
// it. Work is cut into (chunk, column range) tasks; only the ranges depend on the number of
// threads. A task walks over blocks of rows of w, from left to right in strips of columns; how
// often a chain passes through memory on the way changes no bit.
//
// FP8 weights take part as 2^-8 of their value, which float16 holds; `gemm_finish` puts it right.
#pragma once

#include "kernels/support.h"

namespace tkg {
namespace {

// Vectors of columns in a register tile; twice as many for FP8 and very few rows, so that more of a
// row of w is read at a time and more chains run at once.
constexpr int strip_vecs = 4, wide_vecs = 8;
constexpr i64 strip_n = strip_vecs * lanes, wide_n = wide_vecs * lanes;
// Rows of w in a block. With 128, walking over a matrix whose rows are pages apart reads memory at
// a third of the speed; with 16, sums pass through memory twice as often.
constexpr i64 block_k = 32;
constexpr i64 part = 64;  // of x and partial
// Chunks are work for many threads that leaves the rows of w long, but their sums pass through
// memory.
constexpr i64 min_chunk_k = 512, max_chunks = 4;
constexpr i64 narrow_n = 2048, max_narrow_chunks = 8;  // with few columns, more of them

struct GemmPlan {
    i64 m, k, n;
    i64 chunk_k, chunks;  // rows of w a chunk
    i64 range_n, ranges;  // columns a task
    i64 tasks() const { return chunks * ranges; }
    i64 operand_floats() const { return m * round_up(k, part); }
    i64 partial_floats() const { return chunks * m * round_up(n, part); }
    i64 operand_index(i64 row, i64 i) const { return i / part * part * m + row * part + i % part; }
    i64 partial_index(i64 chunk, i64 row, i64 j) const {
        return chunk * m * round_up(n, part) + j / part * part * m + row * part + j % part;
    }
};

// x[row][k0..k0 + n) into its place.
inline void put_operand(const GemmPlan& plan, i64 row, i64 k0, i64 n, const float* x,
                        float* operand) {
    for (i64 i = 0; i < n;) {
        const i64 count = min_of(n - i, part - (k0 + i) % part);
        __builtin_memcpy(operand + plan.operand_index(row, k0 + i), x + i,
                         static_cast<std::size_t>(count) * sizeof(float));
        i += count;
    }
}

inline GemmPlan plan_gemm(i64 m, i64 k, i64 n, int threads) {
    GemmPlan plan{m, k, n, 0, 0, 0, 0};
    const i64 most = n < narrow_n ? max_narrow_chunks : max_chunks;
    plan.chunk_k = max_of(min_chunk_k, round_up(ceil_div(k, most), part));
    plan.chunks = ceil_div(k, plan.chunk_k);
    // About four tasks a thread for balance, but column ranges long enough to stream.
    const i64 wanted = ceil_div(4 * threads, plan.chunks);
    plan.range_n = max_of(256, round_up(ceil_div(n, wanted), 64));
    plan.ranges = ceil_div(n, plan.range_n);
    return plan;
}

// Weights that will be needed next: some cache lines of each row of a block.
struct Ahead {
    const char* row = nullptr;
    i64 stride = 0;
    int lines = 0;

    TKG_INLINE void fetch(i64 i) const { prefetch(row + i * stride, 64 * lines); }
};

// Where a row of x meets a strip: acc is `next_part` further on from one part to the next.
struct Sums {
    float* acc;
    i64 next_part;
    bool from_zero;

    float* at(i64 m, i64 j) const { return acc + j / part * next_part + m * part + j % part; }
};

// sums[m][0..NV*lanes) (+)= sum over k of x[m][k] * w[k][0..NV*lanes). With Tail, NV is 1 and only
// n lanes count.
template <int MR, int NV, bool Tail, class T>
inline void gemm_tile(const float* x, const T* w, i64 ldw, i64 k, const Sums& sums, int n,
                      const Ahead& ahead) {
    Vec c[MR][NV];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) {
            const float* from = sums.at(m, v * lanes);
            c[m][v] = sums.from_zero ? zero() : Tail ? load_n(from, n) : load(from);
        }
    for (i64 i = 0; i < k; ++i) {
        Vec b[NV];
        for (int v = 0; v < NV; ++v)
            b[v] = Tail ? load_n(w + i * ldw, n) : load(w + i * ldw + v * lanes);
        ahead.fetch(i);
        for (int m = 0; m < MR; ++m) {
            const Vec a = set1(x[m * part + i]);
            for (int v = 0; v < NV; ++v) c[m][v] = fma(a, b[v], c[m][v]);
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) {
            float* to = sums.at(m, v * lanes);
            if (Tail)
                store_n(to, c[m][v], n);
            else
                store(to, c[m][v]);
        }
}

// A block of w and what it meets: rows [0, k) of one strip, and of x and acc.
struct GemmBlock {
    const float* x;
    i64 m, k;
    Sums sums;
    Ahead next;  // with as many lines as the whole strip has
};

template <int MR, int NV, bool Tail, class T>
inline void gemm_rows_from(const GemmBlock& block, i64 m, const T* w, i64 ldw, int n,
                           const Ahead& ahead) {
    Sums sums = block.sums;
    sums.acc += m * part;
    gemm_tile<MR, NV, Tail>(block.x + m * part, w, ldw, block.k, sums, n, ahead);
}

// All rows of x, in groups of nearly the same size that fit the registers. Each group asks for its
// share of the next strip.
template <int NV, bool Tail, class T>
inline void gemm_strip(const GemmBlock& block, const T* w, i64 ldw, int n) {
    const i64 groups = ceil_div(block.m, gemm_rows);
    const int lines = static_cast<int>(ceil_div(block.next.lines, groups));
    i64 m = 0;
    for (i64 group = 0; group < groups; ++group) {
        const int first_line = static_cast<int>(group) * lines;
        Ahead ahead = block.next;
        ahead.row += 64 * first_line;
        ahead.lines = static_cast<int>(max_of(0, min_of(lines, block.next.lines - first_line)));
        const i64 rows = block.m * (group + 1) / groups - m;
        switch (rows) {
            case 1: gemm_rows_from<1, NV, Tail>(block, m, w, ldw, n, ahead); break;
            case 2: gemm_rows_from<2, NV, Tail>(block, m, w, ldw, n, ahead); break;
            default:
                if constexpr (gemm_rows > 2) {
                    if (rows == 3) gemm_rows_from<3, NV, Tail>(block, m, w, ldw, n, ahead);
                    if (rows == 4) gemm_rows_from<4, NV, Tail>(block, m, w, ldw, n, ahead);
                    if (rows == 5) gemm_rows_from<5, NV, Tail>(block, m, w, ldw, n, ahead);
                    if (rows == 6) gemm_rows_from<6, NV, Tail>(block, m, w, ldw, n, ahead);
                }
        }
        m += rows;
    }
}

// A strip of full vectors, from the weights as they lie or as float32 widened once for all rows.
template <class T>
inline void gemm_full_strip(const GemmBlock& block, const T* w, i64 ldw) {
    if (block.m <= gemm_rows) {
        gemm_strip<strip_vecs, false>(block, w, ldw, 0);
        return;
    }
    alignas(64) float wide[block_k * strip_n];
    for (i64 i = 0; i < block.k; ++i)
        for (int v = 0; v < strip_vecs; ++v)
            store(wide + i * strip_n + v * lanes, load(w + i * ldw + v * lanes));
    gemm_strip<strip_vecs, false>(block, wide, strip_n, 0);
}

// Very few rows over a wide strip.
template <class T>
inline void gemm_wide_strip(const GemmBlock& block, const T* w, i64 ldw) {
    static_assert(wide_rows <= 2);
    if (block.m == 1)
        gemm_rows_from<1, wide_vecs, false>(block, 0, w, ldw, 0, block.next);
    else if constexpr (wide_rows == 2)
        gemm_rows_from<2, wide_vecs, false>(block, 0, w, ldw, 0, block.next);
}

// One strip of up to wide_n columns.
template <class T>
inline void gemm_columns(GemmBlock block, const T* w, i64 ldw, i64 n) {
    if constexpr (is_fp8<T>) {
        alignas(64) f16 half[block_k * wide_n];
        for (i64 i = 0; i < block.k; ++i)
            for (i64 j = 0; j < n; j += 64)
                fp8_to_half(w + i * ldw + j, static_cast<int>(min_of(64, n - j)),
                            half + i * wide_n + j);
        gemm_columns(block, half, wide_n, n);
        return;
    } else {
        if (n == wide_n && block.m <= wide_rows) {
            gemm_wide_strip(block, w, ldw);
            return;
        }
        float* acc = block.sums.acc;
        for (i64 j = 0; j < n; block.next.lines = 0) {
            block.sums.acc = acc + j / part * block.sums.next_part + j % part;
            if (j + strip_n <= n) {
                gemm_full_strip(block, w + j, ldw);
                j += strip_n;
            } else {
                gemm_strip<1, true>(block, w + j, ldw, valid_lanes(j, n));
                j += lanes;
            }
        }
    }
}

// One task: partial[chunk][0..m)[n0..n1).
template <class T>
inline void gemm_task(const GemmPlan& plan, i64 task, const float* x, const T* w, i64 ldw,
                      float* partial) {
    const i64 chunk = task / plan.ranges, range = task % plan.ranges;
    const i64 k0 = chunk * plan.chunk_k, k1 = min_of(plan.k, k0 + plan.chunk_k);
    const i64 n0 = range * plan.range_n, n1 = min_of(plan.n, n0 + plan.range_n);
    const i64 width = is_fp8<T> && plan.m <= wide_rows ? wide_n : strip_n;
    GemmBlock block{nullptr, plan.m, 0, {nullptr, plan.m * part, true}, {}};
    block.next.stride = ldw * static_cast<i64>(sizeof(T));
    for (i64 k = k0; k < k1; k += block_k) {
        block.x = x + plan.operand_index(0, k);
        block.k = min_of(block_k, k1 - k);
        block.sums.from_zero = k == k0;
        for (i64 n = n0; n < n1; n += width) {
            const bool right = n + 2 * width <= n1, below = k + 2 * block_k <= k1;
            const i64 to = right ? k * ldw + n + width : (k + block_k) * ldw + n0;
            const i64 bytes = min_of(width, n1 - n0) * static_cast<i64>(sizeof(T));
            block.next.row = reinterpret_cast<const char*>(w + to);
            block.next.lines = right || below ? static_cast<int>(ceil_div(bytes, 64)) : 0;
            block.sums.acc = partial + plan.partial_index(chunk, 0, n);
            gemm_columns(block, w + k * ldw + n, ldw, min_of(width, n1 - n));
        }
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
    const bool fp8 = size_of(linear.dtype) == 1;
    const i64 next_chunk = plan.m * round_up(plan.n, part);
    for (i64 i = 0; i < n;) {
        const i64 j = n0 + i;
        const int valid = valid_lanes(0, min_of(n - i, part - j % part));
        const float* p = partial + plan.partial_index(0, m, j);
        Vec sum = load_n(p, valid);
        for (i64 chunk = 1; chunk < plan.chunks; ++chunk)
            sum = add(sum, load_n(p + chunk * next_chunk, valid));
        if (fp8) sum = mul(sum, set1(fp8_half_scale));
        if (scale) sum = mul(sum, load_n(scale + j, valid));
        if (bias) sum = add(sum, load_n(bias + j, valid));
        store_n(y + i, sum, valid);
        i += valid;
    }
}

// STATIC's activations: x_q = fp8(clip(x / input_scale)), kept as float32.
inline void round_to_fp8(float* x, i64 n, float input_scale) {
    for (i64 i = 0; i < n; ++i) x[i] = to_float(e4m3{fp8_bits(x[i] / input_scale)});
}

}  // namespace
}  // namespace tkg
