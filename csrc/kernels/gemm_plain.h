// Weights as the caller has them: [K, N], rows contiguous.
//
// A task walks over blocks of 16 rows and up to 512 columns and asks for the next block row by row:
// pieces of a kilobyte, where memory that is asked for 128 bytes of each row gives a third less.
// Within a block it computes strips of columns.
#pragma once

#include "kernels/gemm_tile.h"

namespace tkg {
namespace {

constexpr i64 block_k = multiplies_matrices ? 32 : 16, max_block_n = 512;

// The next block, asked for a piece at a time.
template <class T>
struct NextBlock {
    const T* w;
    i64 ldw;
    i64 strips;  // of a row; 0 if there is no next block
    i64 piece;   // of its rows * strips, in this order

    TKG_INLINE void fetch(i64 i) const {
        if (!strips) return;
        const i64 row = (piece + i) / strips, strip = (piece + i) % strips;
        prefetch(w + row * ldw + strip * strip_n, strip_n * static_cast<i64>(sizeof(T)));
    }
};

// A strip where it lies; of one that is not Full, `columns` count and the others are 0.
template <bool Full, class T>
struct PlainStrip {
    static constexpr int rows = in_pairs<T> ? 2 : 1;
    static constexpr bool lies_in_pairs = false;
    const T* w;
    i64 ldw, columns;
    i64 k;  // rows that it has

    PlainStrip share(i64, i64, i64) const { return *this; }
    TKG_INLINE int valid(int v) const {
        return Full ? lanes : valid_lanes(min_of(v * lanes, columns), columns);
    }
    void load(i64 i, int e, Vec* b) const {
        for (int v = 0; v < strip_vecs; ++v) {
            const T* p = w + (i + e) * ldw + v * lanes;
            b[v] = Full ? tkg::load(p) : load_n(p, valid(v));
        }
    }
    void load(i64 i, Pairs* b) const {
        const T* p = w + i * ldw;
        const bool both = i + 1 < k;
        if (Full && both) {
            for (int v = 0; v < strip_vecs; v += 2)
                load_rows(p + v * lanes, p + ldw + v * lanes, b + v);
            return;
        }
        for (int v = 0; v < strip_vecs; ++v) {
            const T* at = p + v * lanes;
            b[v] = pairs_of(load_n(at, valid(v)), both ? load_n(at + ldw, valid(v)) : zero());
        }
    }
};

template <bool Full, class T>
struct PlainStripAhead : PlainStrip<Full, T> {
    NextBlock<T> next;

    // The first group asks for all.
    PlainStripAhead share(i64 g, i64, i64) const {
        PlainStripAhead one = *this;
        if (g > 0) one.next.strips = 0;
        return one;
    }
    TKG_INLINE void load(i64 i, int e, Vec* b) const {
        next.fetch(i + e);
        PlainStrip<Full, T>::load(i, e, b);
    }
    TKG_INLINE void load(i64 i, Pairs* b) const {
        next.fetch(i);
        next.fetch(i + 1);
        PlainStrip<Full, T>::load(i, b);
    }
};

template <bool Full, class T>
inline void plain_strip(const GemmBlock<Operand<T>>& block, const PlainStrip<Full, T>& strip,
                        const NextBlock<T>& next) {
    if constexpr (is_fp8<T>) {
        alignas(64) WideFp8 wide[block_k * part] = {};
        const int columns = static_cast<int>(strip.columns);
        for (i64 i = 0; i < block.k; ++i) {
            next.fetch(i);
            widen_row(strip.w + i * strip.ldw, columns, wide + i * part);
        }
        const PlainStrip<true, WideFp8> widened{wide, part, strip_n, block.k};
        block.run(widened);
    } else {
        block.run(PlainStripAhead<Full, T>{strip, next});
    }
}

// One task: partial[chunk][0..m)[a range of columns].
template <class T>
inline void plain_task(const GemmPlan& plan, i64 task, const Operand<T>* x, const T* w, i64 ldw,
                       float* partial) {
    const i64 chunk = task / plan.ranges, range = task % plan.ranges;
    const i64 k0 = chunk * plan.chunk_k, k1 = plan.chunk_end(chunk);
    const i64 n0 = range * plan.range_n, n1 = min_of(plan.n, n0 + plan.range_n);
    // Of nearly the same width, so that each asks for all of the next one.
    const i64 block_n = round_up(ceil_div(n1 - n0, ceil_div(n1 - n0, max_block_n)), part);
    for (i64 k = k0; k < k1; k += block_k)
        for (i64 n = n0; n < n1; n += block_n) {
            const bool right = n + block_n < n1, below = k + 2 * block_k <= k1;
            const i64 next_n = right ? n + block_n : n0, next_k = right ? k : k + block_k;
            const i64 strips = min_of(block_n, n1 - next_n) / strip_n;
            NextBlock<T> next{w + next_k * ldw + next_n, ldw, right || below ? strips : 0, 0};
            GemmBlock<Operand<T>> block{x + plan.operand_index(0, k), plan.m,
                                        min_of(block_k, k1 - k), k == k0, nullptr};
            for (i64 j = n; j < min_of(n + block_n, n1); j += strip_n, next.piece += block.k) {
                block.sums = partial + plan.partial_index(chunk, 0, j);
                const T* strip = w + k * ldw + j;
                if (j + strip_n <= n1)
                    plain_strip(block, PlainStrip<true, T>{strip, ldw, strip_n, block.k}, next);
                else
                    plain_strip(block, PlainStrip<false, T>{strip, ldw, n1 - j, block.k}, next);
            }
        }
}

}  // namespace
}  // namespace tkg
