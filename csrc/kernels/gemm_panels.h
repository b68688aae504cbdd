// A projection of weights that lie as panels (core/panels.h). A thread's tasks lie beside each
// other, so it reads one stream from beginning to end.
#pragma once

#include "core/panels.h"
#include "kernels/gemm_tile.h"

namespace tkg {
namespace {

constexpr i64 panel_n = panel_columns;
static_assert(panel_n == part && panel_n % strip_n == 0);

// How far ahead of its use the stream is asked for: what memory delivers to one processor in the
// time that it takes to answer. Measured: 2 KiB loses a fifth of the bandwidth, 16 KiB gain
// nothing.
constexpr i64 ahead_bytes = 8192;

// A strip of a panel.
template <class T>
struct PanelStrip {
    static constexpr int rows = std::is_same_v<T, bf16> ? 2 : 1;
    const T* row;
    int column;

    TKG_INLINE void load(i64 i, int e, Vec* b) const {
        load_strip(row + i * panel_n, column, e, b);
    }
    TKG_INLINE void load(i64 i, Pairs* b) const { load_strip(row + i * panel_n, column, b); }
};

// The same, asking for whole rows of the panel, and of the one after it, ahead of time.
template <class T>
struct PanelStripAhead : PanelStrip<T> {
    TKG_INLINE void load(i64 i, int e, Vec* b) const {
        if (e == 0) ask(i);
        PanelStrip<T>::load(i, e, b);
    }
    TKG_INLINE void load(i64 i, Pairs* b) const {
        ask(i);
        PanelStrip<T>::load(i, b);
    }

private:
    TKG_INLINE void ask(i64 i) const {
        prefetch(reinterpret_cast<const char*>(this->row + i * panel_n) + ahead_bytes,
                 this->rows * panel_n * static_cast<i64>(sizeof(T)));
    }
};

// One task: partial[chunk][0..m)[panel]. Tasks follow each other as the panels do in memory.
template <class T>
inline void panel_task(const GemmPlan& plan, i64 task, const Operand<T>* x, const T* panels,
                       float* partial) {
    const i64 panel = task / plan.chunks, chunk = task % plan.chunks;
    const i64 first = chunk * plan.chunk_k, end = plan.chunk_end(chunk);
    const i64 panel_rows = round_up(plan.k, PanelStrip<T>::rows);
    float* sums = partial + plan.partial_index(chunk, 0, panel * panel_n);
    for (i64 k = first; k < end; k += part) {
        GemmBlock<Operand<T>> block{x + plan.operand_index(0, k), plan.m, min_of(part, end - k),
                                    k == first, sums};
        PanelStripAhead<T> strip{{panels + (panel * panel_rows + k) * panel_n, 0}};
        const PanelStrip<T>& later = strip;
        block.run(strip, later);
        for (strip.column = strip_n; strip.column < panel_n;
             strip.column += static_cast<int>(strip_n)) {
            block.sums = sums + strip.column;
            block.run(later, later);
        }
    }
}

}  // namespace
}  // namespace tkg
