// How the attention of a call is cut into pieces of work.
//
// The positions of a row of the batch are cut into splits at fixed logical positions (the new
// tokens are the last split), splits into tiles at fixed logical positions. Both depend on the
// row's own length, the window, the heads and S alone: the bits of a row do not depend on threads,
// batch-mates or where its pages lie.
#pragma once

#include "kernels/support.h"

namespace tkg {
namespace {

constexpr int max_block_rows = 32;  // rows a task
// Positions a split, for up to max_block_rows rows: at least so many, and doubled until there are
// not more splits than these. Beginning and merging one takes about half a microsecond.
constexpr i64 min_split_len = 256, max_splits = 16;
constexpr i64 tasks_a_thread = 4;   // at least, where each takes all KV heads
constexpr i64 max_task_rows = 128;  // of all its KV heads
constexpr int max_d_head = 512;
constexpr i64 query_floats = max_block_rows * max_d_head;  // of all rows and KV heads of a task
// As right factors of units for matrices fewer take the room of so many: 16 rows of bfloat16.
constexpr i64 least_query_rows = multiplies_matrices ? matrix_rows / 2 : 1;

// A piece of work: one split of one row of the batch, for one KV head.
struct Unit {
    i64 batch, kv_head;
    i64 first, last;  // cache positions; the new tokens if is_new
    bool is_new;
};

struct AttentionPlan {
    i64 group, rows, row_blocks;
    i64 heads = 1;  // KV heads a task
    i64 units = 0;
    Unit* unit = nullptr;
    i64* unit_begin = nullptr;  // [batch * kv_heads + 1] into unit
    int* missing = nullptr;     // [batch * kv_heads] tasks that are not done yet
    float* m = nullptr;         // [units, rows]
    float* l = nullptr;         // [units, rows]
    float* acc = nullptr;       // [units, rows, d]
    i64 tasks() const { return units / heads * row_blocks; }
};

// The units of a task: one of each of its KV heads, `step` apart.
struct TaskUnits {
    i64 first, step;
};

inline TaskUnits units_of(const AttentionPlan& plan, i64 task) {
    if (plan.heads == 1) return {task / plan.row_blocks, 0};
    // All heads of a row of the batch: their units lie one head after the other.
    const i64 row = plan.unit[task * plan.heads].batch * plan.heads;
    const i64 begin = plan.unit_begin[row], splits = plan.unit_begin[row + 1] - begin;
    return {begin + task - begin / plan.heads, splits};
}

inline i64 row_start(const Step& step, i64 b) {
    return step.start ? at<const i64>(step.start)[b] : 0;
}

// Cache positions of a row of the batch that some new token may attend to: [first, last).
inline void position_range(const Layer& layer, const Step& step, i64 b, i64* first, i64* last) {
    *first = 0;
    *last = step.prior;
    if (!step.start) return;
    *last = row_start(step, b);
    if (layer.window) *first = max_of(0, *last - layer.window + 1);
}

template <class F>
inline void for_each_split(const AttentionPlan& plan, const Layer& layer, const Step& step, i64 b,
                           F&& f) {
    if (row_start(step, b) < 0) return;  // a padded row
    i64 first, last, split_len = min_split_len * plan.row_blocks;
    position_range(layer, step, b, &first, &last);
    while (last - first > max_splits * split_len) split_len *= 2;
    for (i64 begin = first / split_len * split_len; begin < last; begin += split_len)
        f(max_of(begin, first), min_of(begin + split_len, last), false);
    f(0, step.tokens, true);
}

// Whether a slot of the cache has its KV heads side by side.
inline bool heads_adjoin(const Layer& layer, const CacheView& view) {
    return view.head_stride == layer.d_head && view.slot_stride == layer.kv_heads * layer.d_head;
}

inline AttentionPlan plan_attention(const Layer& layer, const Step& step, int threads) {
    AttentionPlan plan;
    plan.group = layer.q_heads / layer.kv_heads;
    plan.rows = plan.group * step.tokens;
    plan.row_blocks = ceil_div(plan.rows, max_block_rows);
    for (i64 b = 0; b < step.batch; ++b)
        for_each_split(plan, layer, step, b, [&](i64, i64, bool) { plan.units += layer.kv_heads; });
    // A page has all heads of its slots: where tasks are many, each reads whole pages.
    if (step.block_len && !step.mask && plan.row_blocks == 1 &&
        layer.kv_heads * plan.rows <= max_task_rows &&
        layer.kv_heads * max_of(plan.rows, least_query_rows) * layer.d_head <= query_floats &&
        heads_adjoin(layer, step.k) && heads_adjoin(layer, step.v) &&
        plan.units >= layer.kv_heads * tasks_a_thread * threads)
        plan.heads = layer.kv_heads;
    return plan;
}

inline void list_units(AttentionPlan& plan, const Layer& layer, const Step& step) {
    i64 n = 0, row = 0;
    for (i64 b = 0; b < step.batch; ++b)
        for (i64 kv = 0; kv < layer.kv_heads; ++kv) {
            plan.unit_begin[row++] = n;
            for_each_split(plan, layer, step, b, [&](i64 first, i64 last, bool is_new) {
                plan.unit[n++] = Unit{b, kv, first, last, is_new};
            });
            plan.missing[row - 1] =
                static_cast<int>((n - plan.unit_begin[row - 1]) * plan.row_blocks);
        }
    plan.unit_begin[row] = n;
}

// Called after each task: whether all of a row of the batch and KV head are done, and their results
// to be seen. True for one thread only.
inline bool completes(const AttentionPlan& plan, const Layer& layer, const Unit& unit) {
    int* missing = plan.missing + unit.batch * layer.kv_heads + unit.kv_head;
    return __atomic_sub_fetch(missing, 1, __ATOMIC_ACQ_REL) == 0;
}

}  // namespace
}  // namespace tkg
