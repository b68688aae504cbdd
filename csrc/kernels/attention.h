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

#include "kernels/attention_turned.h"
#include "kernels/attention_values.h"

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
    const Unit& unit = task.plan.unit[index / task.plan.row_blocks];
    const Task<T> next{task.layer, task.step, task.plan, unit, 0, task.rows, task.q};
    list_tile(next, unit.first / tile_len * tile_len, tile);
}

// A tile for few rows. While the scores are computed its V is asked for, while V is summed up what
// comes next.
template <class T, class Rows>
inline void attend_few(const Task<T>& task, const Tile<T>& tile, const float* query, Rows& rows,
                       float* scores, const Collected& to, Ahead<T>& next) {
    const i64 d = task.layer.d_head;
    Ahead<T> v(tile.v, tile.count, d);
    score_tile(query, task.rows, rows.of(tile.k, tile.count, d), tile.count, d, scores, v);
    attend_tile(task, tile, rows.of(tile.v, tile.count, d), scores, to, next);
}

template <class T>
inline void attention_task(const Layer& layer, const Step& step, const AttentionPlan& plan,
                           i64 index, const float* q) {
    const i64 unit = index / plan.row_blocks, block = index % plan.row_blocks;
    const i64 first_row = block * max_block_rows;
    const int rows = static_cast<int>(min_of(max_block_rows, plan.rows - first_row));
    const Task<T> task{layer, step, plan, plan.unit[unit], first_row, rows, q};
    const i64 d = layer.d_head;
    const bool transposed = !task.unit.is_new && step.k.d_stride != 1;
    float* m = plan.m + unit * plan.rows + first_row;
    float* l = plan.l + unit * plan.rows + first_row;
    float* acc = plan.acc + (unit * plan.rows + first_row) * d;
    const float widened = is_fp8<T> && !transposed ? fp8_half_scale : 1.0f;
    alignas(64) float query[max_block_rows * max_d_head];
    for (int r = 0; r < rows; ++r) {
        m[r] = minus_infinity;
        l[r] = 0;
        const float* from = task.query(r);
        for (i64 j = 0; j < d; ++j) query[r * d + j] = from[j] * (step.softmax_scale * widened);
    }
    __builtin_memset(acc, 0, static_cast<std::size_t>(rows * d) * sizeof(float));

    Tile<T> tiles[2];
    TileRows<T> stored;
    TurnedTile turned;
    alignas(64) float scores[max_block_rows * tile_len];
    const Unit& positions = task.unit;
    i64 begin = positions.first / tile_len * tile_len;
    list_tile(task, begin, tiles[0]);
    for (int current = 0; begin < positions.last; begin += tile_len, current = 1 - current) {
        const Tile<T>& tile = tiles[current];
        Tile<T>& next = tiles[1 - current];
        if (begin + tile_len < positions.last)
            list_tile(task, begin + tile_len, next);
        else
            list_first_tile(task, index + 1, next);
        if (!tile.count) continue;
        const Collected collected{m, l, acc};
        Ahead<T> next_k(next.k, next.count, d);
        if (transposed) {
            Ahead<T> nothing;
            score_tile_transposed(query, rows, tile, d, step.k.d_stride, scores);
            attend_tile(task, tile, stored.of(tile.v, tile.count, d), scores, collected, nothing);
        } else if (rows >= turned_rows) {
            // They take longer than memory does: what is asked for is used a tile later.
            Ahead<T> next_v(next.v, next.count, d);
            score_tile_turned(query, rows, turned, stored.of(tile.k, tile.count, d), tile.count, d,
                              scores, next_k);
            attend_tile(task, tile, stored.of(tile.v, tile.count, d), scores, collected, next_v);
            next_v.ask_for_all();
        } else if constexpr (is_fp8<T> && widens_fp8_in_registers) {
            RowsInPlace<T> in_place;
            if (d % 64 == 0)
                attend_few(task, tile, query, in_place, scores, collected, next_k);
            else
                attend_few(task, tile, query, stored, scores, collected, next_k);
        } else {
            attend_few(task, tile, query, stored, scores, collected, next_k);
        }
        if (!transposed) next_k.ask_for_all();
    }
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
