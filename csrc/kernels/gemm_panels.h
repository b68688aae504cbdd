// A projection of weights that lie as panels (core/panels.h). A thread's tasks lie beside each
// other, so it reads one stream from beginning to end.
#pragma once

#include "core/panels.h"
#include "kernels/gemm_tile.h"

namespace tkg {
namespace {

constexpr i64 panel_n = panel_columns;
static_assert(panel_n == part && panel_n % strip_n == 0);

// How far ahead of its use a stream is asked for: what memory delivers to one processor in the time
// that it takes to answer. Measured: 2 KiB loses a fifth of the bandwidth, 16 KiB gain nothing.
constexpr i64 ahead_bytes = 8192;

// Bytes of a panel that stay in the first cache while all rows of x are multiplied with them. Sums
// then pass through memory every 256 rows of bfloat16; every 64 rows it takes 5 to 8 % longer.
constexpr i64 block_bytes = 32768;
template <class T>
constexpr i64 block_rows =
    min_of(max_block_k, block_bytes / (panel_n * static_cast<i64>(sizeof(T))));

// Where one group reads a strip where it lies, there is nothing to stay.
template <class T>
inline i64 rows_a_block(const GemmPlan& plan) {
    const bool one = multiplies_matrices && in_pairs<T> && plan.m <= matrix_rows;
    return one ? plan.chunk_k : block_rows<T>;
}

// Rows of a panel that lie in pairs.
template <class T>
constexpr int paired_rows = std::is_same_v<T, bf16> ? 2 : 1;

// A strip of a panel.
template <class T>
struct PanelStrip {
    static constexpr int rows = in_pairs<T> ? 2 : paired_rows<T>;
    static constexpr bool lies_in_pairs = paired_rows<T> == 2;
    const T* row;
    int column;
    i64 k;  // rows that it has

    PanelStrip share(i64, i64, i64) const { return *this; }
    TKG_INLINE void load(i64 i, int e, Vec* b) const {
        load_strip(row + (i + (lies_in_pairs ? 0 : e)) * panel_n, column, e, b);
    }
    TKG_INLINE void load(i64 i, Pairs* b) const {
        const T* p = row + i * panel_n;
        if constexpr (paired_rows<T> == 2)
            load_strip(p, column, b);
        else
            load_strip(p, i + 1 < k ? p + panel_n : nullptr, b);
    }
    const T* pairs() const { return row; }
    void ask_for_rows(int) {}
};

// The same, asking for what comes next in memory. One group of rows of x reads a stream; several
// read a block again and again, and ask for the next block meanwhile.
template <class T>
struct PanelStripAhead : PanelStrip<T> {
    static constexpr int lines =
        PanelStrip<T>::rows * panel_n * static_cast<int>(sizeof(T)) / 64;  // of a load
    const char* next = nullptr;
    int groups = 1, due = 0;

    PanelStripAhead share(i64 g, i64 n, i64 k) const {
        PanelStripAhead one = *this;
        const i64 bytes = k * panel_n * static_cast<i64>(sizeof(T));
        one.next = reinterpret_cast<const char*>(this->row) +
                   (n == 1 ? ahead_bytes : bytes + bytes * g / n);
        one.groups = static_cast<int>(n);
        return one;
    }
    TKG_INLINE void ask_for_rows(int n) {
        for (int i = 0; i < n; i += PanelStrip<T>::rows) ask();
    }
    TKG_INLINE void load(i64 i, int e, Vec* b) {
        if (e == 0) ask();
        PanelStrip<T>::load(i, e, b);
    }
    TKG_INLINE void load(i64 i, Pairs* b) {
        ask();
        PanelStrip<T>::load(i, b);
    }

private:
    TKG_INLINE void ask() {
        if (groups == 1) {
            prefetch(next, lines * 64);
            next += lines * 64;
            return;
        }
        for (due += lines; due >= groups; due -= groups, next += 64) prefetch(next, 64);
    }
};

// One task: partial[chunk][0..m)[panel]. Tasks follow each other as the panels do in memory.
template <class T>
inline void panel_task(const GemmPlan& plan, i64 task, const Operand<T>* x, const T* panels,
                       float* partial) {
    const i64 panel = task / plan.chunks, chunk = task % plan.chunks;
    const i64 first = chunk * plan.chunk_k, end = plan.chunk_end(chunk);
    const i64 panel_rows = round_up(plan.k, paired_rows<T>);
    float* sums = partial + plan.partial_index(chunk, 0, panel * panel_n);
    const i64 step = rows_a_block<T>(plan);
    for (i64 k = first; k < end; k += step) {
        GemmBlock<Operand<T>> block{x + plan.operand_index(0, k), plan.m, min_of(step, end - k),
                                    k == first, sums};
        const T* rows = panels + (panel * panel_rows + k) * panel_n;
        block.run(PanelStripAhead<T>{{rows, 0, block.k}});
        for (int column = strip_n; column < panel_n; column += static_cast<int>(strip_n)) {
            block.sums = sums + column;
            block.run(PanelStrip<T>{rows, column, block.k});
        }
    }
}

}  // namespace
}  // namespace tkg
