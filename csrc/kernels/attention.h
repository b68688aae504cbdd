// Attention of the new tokens over the cache and themselves, K and V read once for all query heads
// and tokens that share a KV head.
//
//   q [B*S, q_heads, d] float32    k, v: cache view or new tokens, any type
//   row r of a KV head: query head r / S of its group, token r % S
//
// Online softmax, a tile of positions at a time (attention_scores.h, attention_values.h); splits
// are merged in order. Positions that no row may attend to are not read; a pair (row, position)
// that is masked takes no part in any sum.
#pragma once

#include "kernels/attention_matrices.h"
#include "kernels/attention_turned.h"

namespace tkg {
namespace {

// Rows of K or V as the inner loops read them: where they lie, or FP8 widened once a tile, to 2^-8
// of its value.
template <class T>
struct RowsInPlace {
    const T* const* of(const T* const* rows, int, i64) { return rows; }
};

template <class T>
struct WidenedRows {
    WideFp8 wide[tile_len * max_d_head];
    const WideFp8* row[tile_len];

    const WideFp8* const* of(const T* const* rows, int count, i64 d) {
        for (int i = 0; i < count; ++i) {
            WideFp8* to = wide + i * round_up(d, 64);
            for (i64 j = 0; j < d; j += 64)
                widen_row(rows[i] + j, static_cast<int>(min_of(64, d - j)), to + j);
            row[i] = to;
        }
        return row;
    }
};

template <class T>
using TileRows = std::conditional_t<is_fp8<T>, WidenedRows<T>, RowsInPlace<T>>;

// The tile that begins at a position.
template <class T>
inline void list_tile(const Task<T>& task, i64 begin, Tile<T>& tile) {
    list_positions(task, max_of(begin, task.unit.first), min_of(begin + tile_len, task.unit.last),
                   tile);
}

// The first tile of another task, which this thread will mostly do next.
template <class T>
inline void list_first_tile(const Task<T>& task, i64 index, Tile<T>& tile) {
    tile.count = 0;
    if (index >= task.plan.tasks()) return;
    const Unit& unit = task.plan.unit[units_of(task.plan, index).first];
    const Task<T> next{task.layer, task.step, task.plan, unit, 0, task.rows, task.q};
    list_tile(next, unit.first / tile_len * tile_len, tile);
}

// f(tile, what comes after it) for each tile of a task, one after the other: behind the last one
// comes the first of the next task.
template <class T, class F>
inline void for_each_tile(const Task<T>& task, i64 index, F&& f) {
    Tile<T> tiles[2];
    i64 begin = task.unit.first / tile_len * tile_len;
    list_tile(task, begin, tiles[0]);
    for (int current = 0; begin < task.unit.last; begin += tile_len, current = 1 - current) {
        Tile<T>& next = tiles[1 - current];
        if (begin + tile_len < task.unit.last)
            list_tile(task, begin + tile_len, next);
        else
            list_first_tile(task, index + 1, next);
        const Tile<T>& tile = tiles[current];
        if (tile.count) f(tile, next);
    }
}

// Whether K of a task has positions contiguous.
template <class T>
inline bool has_transposed_keys(const Task<T>& task) {
    return !task.unit.is_new && task.step.k.d_stride != 1;
}

// Whether a task is done by units for matrices.
template <class T>
inline bool uses_matrices(const Task<T>& task) {
    if constexpr (multiplies_matrices && in_pairs<T>)
        return task.rows >= least_matrix_rows<T> &&
               task.layer.d_head % (is_fp8<T> ? 64 : matrix_terms) == 0 && !task.unit.is_new &&
               !has_transposed_keys(task);
    return false;
}

// One KV head of a task: its scaled queries, and what they have collected.
template <class T>
struct HeadOfTask {
    Task<T> task;
    Collected to;
    Factor<T>* query;  // for units for matrices as a right factor

    void begin() const {
        const i64 d = task.layer.d_head;
        const bool transposed = has_transposed_keys(task);
        const float scale =
            task.step.softmax_scale * (is_fp8<T> && !transposed ? fp8_half_scale : 1.0f);
        const bool matrices = uses_matrices(task);
        alignas(64) Operand<T> rounded[max_block_rows * max_d_head];
        for (int r = 0; r < task.rows; ++r) {
            to.m[r] = minus_infinity;
            to.l[r] = 0;
            const float* from = task.query(r);
            float scaled[max_d_head];
            for (i64 j = 0; j < d; ++j) scaled[j] = from[j] * scale;
            if (matrices)
                put_values(scaled, d, rounded + r * d);
            else
                put_values(scaled, d, query + r * d);
        }
        if constexpr (multiplies_matrices && in_pairs<T>) {
            if (matrices)
                turn_queries(rounded, task.rows, d, reinterpret_cast<std::uint32_t*>(query));
        }
        __builtin_memset(to.acc, 0, static_cast<std::size_t>(task.rows * d) * sizeof(float));
    }
};

// What a tile is worked on with.
template <class T>
struct TileScratch {
    TileRows<T> stored;
    TurnedTile turned;
    struct Nothing {};
    std::conditional_t<multiplies_matrices, MatrixScratch, Nothing> matrices;
    // Units for matrices take 16 rows of them, however many there are.
    alignas(64) float scores[(max_task_rows + matrix_rows) * tile_len];
};

// What is between K or V and the sums: f(rows of them as they are multiplied).
template <class T, class F>
inline void with_rows(const HeadOfTask<T>& head, TileScratch<T>& scratch, const T* const* rows,
                      int count, F&& f) {
    const i64 d = head.task.layer.d_head;
    if constexpr (is_fp8<T> && widens_fp8_in_registers) {
        if (d % 64 == 0 && head.task.rows < turned_rows) return f(rows);
    }
    f(scratch.stored.of(rows, count, d));
}

// The scores of a head's rows for positions whose K has d contiguous; what comes next is asked for.
template <class T>
inline void score_rows(const HeadOfTask<T>& head, TileScratch<T>& scratch, const T* const* k,
                       int count, float* scores, Ahead<T>& next) {
    const i64 d = head.task.layer.d_head;
    const int rows = head.task.rows;
    if constexpr (multiplies_matrices && in_pairs<T>) {
        if (uses_matrices(head.task))
            return score_by_matrices(reinterpret_cast<const std::uint32_t*>(head.query), rows,
                                     scratch.matrices, k, count, d, scores, next);
    }
    if (rows >= turned_rows) {
        score_tile_turned(head.query, rows, scratch.turned, scratch.stored.of(k, count, d), count,
                          d, scores, next);
        return;
    }
    with_rows(head, scratch, k, count, [&](auto* const* stored) {
        score_tile(head.query, rows, stored, count, d, scores, next);
    });
}

// The scores of a tile into the sums of a head's rows; what comes next is asked for.
template <class T>
inline void attend_rows(const HeadOfTask<T>& head, TileScratch<T>& scratch, const Tile<T>& tile,
                        const T* const* v, float* scores, Ahead<T>& next) {
    const i64 d = head.task.layer.d_head;
    if constexpr (multiplies_matrices && in_pairs<T>) {
        if (uses_matrices(head.task) && !tile.partial) {
            return attend_by_matrices(scores, head.task.rows, scratch.matrices, tile, v, d, head.to,
                                      next);
        }
    }
    with_rows(head, scratch, v, tile.count, [&](auto* const* stored) {
        attend_tile(head.task, tile, stored, scores, head.to, next);
    });
}

// A task of one KV head.
template <class T>
inline void attend_head(const HeadOfTask<T>& head, i64 index, TileScratch<T>& scratch) {
    const Task<T>& task = head.task;
    const i64 d = task.layer.d_head;
    const bool transposed = has_transposed_keys(task);
    for_each_tile(task, index, [&](const Tile<T>& tile, const Tile<T>& next) {
        if (transposed) {
            Ahead<T> nothing;
            score_tile_transposed(head.query, task.rows, tile, d, task.step.k.d_stride,
                                  scratch.scores);
            attend_tile(task, tile, scratch.stored.of(tile.v, tile.count, d), scratch.scores,
                        head.to, nothing);
            return;
        }
        Ahead<T> next_k(next.k, next.count, d);
        if (task.rows >= turned_rows || uses_matrices(task)) {
            // They take longer than memory does: what is asked for is used a tile later.
            Ahead<T> next_v(next.v, next.count, d);
            score_rows(head, scratch, tile.k, tile.count, scratch.scores, next_k);
            attend_rows(head, scratch, tile, tile.v, scratch.scores, next_v);
            next_v.ask_for_all();
        } else {
            // While the scores are computed the tile's V is asked for.
            Ahead<T> v(tile.v, tile.count, d);
            score_rows(head, scratch, tile.k, tile.count, scratch.scores, v);
            attend_rows(head, scratch, tile, tile.v, scratch.scores, next_k);
        }
        next_k.ask_for_all();
    });
}

// A task of all KV heads, which a slot has side by side: of each tile the scores of all, then all
// their sums. Memory is read in its own order, a tile ahead.
template <class T, class HeadOf>
inline void attend_heads(const HeadOf& head_of, i64 index, TileScratch<T>& scratch) {
    const HeadOfTask<T> first = head_of(0);
    const Task<T>& task = first.task;
    const i64 heads = task.plan.heads, d = task.layer.d_head, size = task.rows * tile_len;
    const T* moved[tile_len];
    const auto of_head = [&](const T* const* slots, int count, i64 h) {
        for (int i = 0; i < count; ++i) moved[i] = slots[i] + h * d;
        return moved;
    };
    for_each_tile(task, index, [&](const Tile<T>& tile, const Tile<T>& next) {
        Ahead<T> v(tile.v, tile.count, heads * d), next_k(next.k, next.count, heads * d);
        for (i64 h = 0; h < heads; ++h)
            score_rows(head_of(h), scratch, of_head(tile.k, tile.count, h), tile.count,
                       scratch.scores + h * size, v);
        v.ask_for_all();
        for (i64 h = 0; h < heads; ++h)
            attend_rows(head_of(h), scratch, tile, of_head(tile.v, tile.count, h),
                        scratch.scores + h * size, next_k);
        next_k.ask_for_all();
    });
}

template <class T>
inline void attention_task(const Layer& layer, const Step& step, const AttentionPlan& plan,
                           i64 index, const float* q) {
    const i64 first_row = index % plan.row_blocks * max_block_rows, d = layer.d_head;
    const int rows = static_cast<int>(min_of(max_block_rows, plan.rows - first_row));
    const TaskUnits units = units_of(plan, index);
    alignas(64) Factor<T> queries[query_floats];
    TileScratch<T> scratch;
    const i64 query_stride = max_of(rows, least_query_rows) * d;
    const auto head_of = [&](i64 h) {
        const i64 unit = units.first + h * units.step, state = unit * plan.rows + first_row;
        return HeadOfTask<T>{{layer, step, plan, plan.unit[unit], first_row, rows, q},
                             {plan.m + state, plan.l + state, plan.acc + state * d},
                             queries + h * query_stride};
    };
    for (i64 h = 0; h < plan.heads; ++h) head_of(h).begin();
    const bool matrices = uses_matrices(head_of(0).task);
    if (matrices) shape_matrices(matrix_rows);
    if (plan.heads == 1)
        attend_head(head_of(0), index, scratch);
    else
        attend_heads(head_of, index, scratch);
    if (matrices) release_matrices();
}

// out[0..d) of one query head and token: all splits of its row, merged in order.
inline void merge_row(const Layer& layer, const Step& step, const AttentionPlan& plan, i64 b,
                      i64 token, i64 head, float* out) {
    const i64 d = layer.d_head, kv = head / plan.group;
    const i64 row = head % plan.group * step.tokens + token;
    const i64 begin = plan.unit_begin[b * layer.kv_heads + kv];
    const i64 end = plan.unit_begin[b * layer.kv_heads + kv + 1];
    const bool has_sink = layer.sink != 0;
    const float sink = has_sink ? at<const float>(layer.sink)[head] : 0.0f;
    float m = has_sink ? sink : minus_infinity;
    for (i64 u = begin; u < end; ++u) {
        const float unit_m = plan.m[u * plan.rows + row];
        if (unit_m > m) m = unit_m;
    }
    float l = has_sink ? exp_nonpositive(sink - m) : 0.0f;
    bool anything = false;
    for (i64 u = begin; u < end; u += lanes) {
        const int n = valid_lanes(u, end);
        float factor[lanes] = {};
        for (int i = 0; i < n; ++i) factor[i] = plan.m[(u + i) * plan.rows + row] - m;
        store(factor, exp_nonpositive(load(factor)));
        for (int i = 0; i < n; ++i) {
            const i64 state = (u + i) * plan.rows + row;
            const bool empty = plan.l[state] == 0;  // nothing to attend to in this split
            anything |= !empty;
            plan.m[state] = empty ? 0.0f : factor[i];  // what is multiplied below
            l += plan.l[state] * plan.m[state];
        }
    }
    const float widened = size_of(step.cache_dtype) == 1 ? fp8_half_scale : 1.0f;
    const Vec scale = set1(anything ? step.attention_scale / l * widened : 0.0f);
    for (i64 j = 0; j < d; j += lanes) {
        const int n = valid_lanes(j, d);
        Vec total = zero();
        for (i64 u = begin; u < end; ++u) {
            const i64 state = u * plan.rows + row;
            total = fma(load_n(plan.acc + state * d + j, n), set1(plan.m[state]), total);
        }
        store_n(out + j, mul(total, scale), n);
    }
}

}  // namespace
}  // namespace tkg
