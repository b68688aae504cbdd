// A tile: some positions beside each other of one split, and which rows may attend to them.
#pragma once

#include "kernels/attention_plan.h"

namespace tkg {
namespace {

constexpr int tile_len = 64;  // positions a tile

// The positions of one tile that count, where their K and V are, and which rows may attend.
template <class T>
struct Tile {
    int count;
    bool partial;  // some row may not attend to some position of the tile
    int position[tile_len];
    const T* k[tile_len];
    const T* v[tile_len];
    unsigned char may[max_block_rows][tile_len];  // only where partial
};

template <class T>
struct Task {
    const Layer& layer;
    const Step& step;
    const AttentionPlan& plan;
    const Unit& unit;
    i64 first_row;
    int rows;
    const float* q;  // of the whole call

    i64 head(int r) const { return unit.kv_head * plan.group + (first_row + r) / step.tokens; }
    i64 token(int r) const { return (first_row + r) % step.tokens; }
    const float* query(int r) const {
        const i64 row = unit.batch * step.tokens + token(r);
        return q + (row * layer.q_heads + head(r)) * layer.d_head;
    }
};

// K and V of consecutive positions [first, end).
template <class T>
struct Run {
    i64 first = 0, end = 0;
    const T *k = nullptr, *v = nullptr;
    i64 k_stride = 0, v_stride = 0;  // from one position to the next
};

// The positions from p on that lie at equal distances in memory.
template <class T>
inline Run<T> run_from(const Task<T>& task, i64 p) {
    const Step& step = task.step;
    const Unit& unit = task.unit;
    if (unit.is_new) {
        const i64 stride = task.layer.kv_heads * task.layer.d_head;
        const i64 first = unit.batch * step.tokens * stride + unit.kv_head * task.layer.d_head;
        return {
            0,      step.tokens, at<const T>(step.k_new) + first, at<const T>(step.v_new) + first,
            stride, stride};
    }
    i64 outer = unit.batch, first = 0, end = unit.last;
    if (step.block_len) {
        const i64 column = p / step.block_len;
        outer = at<const std::int32_t>(step.block_table)[unit.batch * step.table_columns + column];
        first = column * step.block_len;
        end = first + step.block_len;
    }
    const auto start = [&](const CacheView& view) {
        return at<const T>(view.data) + outer * view.outer_stride + unit.kv_head * view.head_stride;
    };
    return {first, end, start(step.k), start(step.v), step.k.slot_stride, step.v.slot_stride};
}

// Whether row r may attend to a position: by the mask, or by order and window.
template <class T>
inline bool may_attend(const Task<T>& task, int r, i64 position) {
    const Step& step = task.step;
    const i64 token = task.token(r);
    if (step.mask) {
        const i64 p = task.unit.is_new ? step.prior + position : position;
        const i64* s = step.mask_strides;
        return at<const unsigned char>(step.mask)[p * s[0] + task.unit.batch * s[1] +
                                                  task.head(r) * s[2] + token * s[3]] != 0;
    }
    const i64 start = row_start(step, task.unit.batch);
    const i64 p = task.unit.is_new ? start + position : position;
    const i64 query = start + token;
    return p <= query && (!task.layer.window || p > query - task.layer.window);
}

// Adds positions [p, end) to a tile, as far as they lie at equal distances.
template <class T>
inline void list_run(const Run<T>& run, i64 p, i64 end, i64 tile_begin, Tile<T>& tile) {
    const T *k = run.k + (p - run.first) * run.k_stride,
            *v = run.v + (p - run.first) * run.v_stride;
    const int n = static_cast<int>(end - p), old = tile.count;
    for (int i = 0; i < n; ++i) tile.position[old + i] = static_cast<int>(p - tile_begin) + i;
    for (int i = 0; i < n; ++i) tile.k[old + i] = k + i * run.k_stride;
    for (int i = 0; i < n; ++i) tile.v[old + i] = v + i * run.v_stride;
    tile.count = old + n;
}

// Positions [begin, end): decide who may attend, and list the positions that anyone may.
template <class T>
inline void list_positions(const Task<T>& task, i64 begin, i64 end, Tile<T>& tile) {
    const Step& step = task.step;
    const Unit& unit = task.unit;
    const i64 start = row_start(step, unit.batch);
    const bool all = !step.mask && !unit.is_new &&
                     (!task.layer.window || begin > start + step.tokens - 1 - task.layer.window);
    tile.count = 0;
    tile.partial = false;
    Run<T> run;
    for (i64 p = begin, next = 0; p < end; p = next) {
        next = p + 1;
        if (!all) {
            int seen = 0;
            for (int r = 0; r < task.rows; ++r) {
                tile.may[r][tile.count] = may_attend(task, r, p);
                seen += tile.may[r][tile.count];
            }
            if (seen == 0) continue;
            tile.partial |= seen < task.rows;
        }
        if (p >= run.end) run = run_from(task, p);
        if (all) next = min_of(end, run.end);
        list_run(run, p, next, begin, tile);
    }
}

// Rows of K or V that will be needed next, asked for in the order of memory, which the processor's
// own prefetching follows, and evenly: many lines at once hold up the loads behind them.
template <class T>
class Ahead {
public:
    Ahead() = default;
    Ahead(const T* const* rows, int count, i64 d) : rows_(rows), left_(count), elements_(d) {
        // Mostly they are one piece of memory. What lies otherwise between such ends is asked for
        // in vain.
        if (count && rows[count - 1] == rows[0] + (count - 1) * d) {
            left_ = 1;
            elements_ = count * d;
        }
    }
    // As many bytes as so many vectors have.
    template <int vectors>
    TKG_INLINE void ask() {
        constexpr int line_vectors = 64 / (lanes * static_cast<int>(sizeof(T)));
        constexpr int lines = (vectors + line_vectors - 1) / line_vectors;
        if (row_end_ - next_ >= lines * 64) {
            prefetch(next_, lines * 64);
            next_ += lines * 64;
            return;
        }
        for (int i = 0; i < lines && has_more(); ++i) ask_for_line();
    }
    void ask_for_all() {
        while (has_more()) ask_for_line();
    }

private:
    TKG_INLINE bool has_more() const { return next_ < row_end_ || left_; }
    TKG_INLINE void ask_for_line() {
        if (next_ >= row_end_) {
            next_ = reinterpret_cast<const char*>(*rows_);
            row_end_ = reinterpret_cast<const char*>(*rows_ + elements_);
            ++rows_;
            --left_;
        }
        prefetch(next_, 64);
        next_ += 64;
    }
    const T* const* rows_ = nullptr;
    int left_ = 0;
    i64 elements_ = 0;  // of a row
    const char* next_ = nullptr;
    const char* row_end_ = nullptr;
};

}  // namespace
}  // namespace tkg
