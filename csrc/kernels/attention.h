// Attention of the new tokens over the cache and themselves, K and V read once for all query heads
// and tokens that share a KV head.
//
//   q [B*S, q_heads, d] float32    k, v: cache view or new tokens, any type
//   row r of a KV head: query head r / S of its group, token r % S
//
// Online softmax, per tile of positions:
//   s = q k^T * scale    m' = max(m, max s)    p = exp(s - m')
//   l = l exp(m - m') + sum p        acc = acc exp(m - m') + p v
//
// The positions of a row of the batch are cut into splits at fixed logical positions (the new
// tokens are the last split), splits into tiles at fixed logical positions. Both depend on the
// row's own length, the heads and S alone: the bits of a row do not depend on threads, batch-mates
// or where its pages lie. Positions that no row may attend to are not read; a pair (row, position)
// that is masked takes no part in any sum.
#pragma once

#include <type_traits>

#include "kernels/support.h"

namespace tkg {
namespace {

constexpr int max_d_head = 512;
constexpr int tile_len = 32;        // positions a tile: K and V of two stay in the first cache
constexpr int max_block_rows = 32;  // rows a task
constexpr i64 min_split_len = 256;  // positions a split, for up to max_block_rows rows
constexpr int dot_rows = gemm_rows > 4 ? 4 : 2;  // rows that a register tile holds
constexpr float minus_infinity = -__builtin_inff();

// A piece of work: one split of one row of the batch, for one KV head.
struct Unit {
    i64 batch, kv_head;
    i64 first, last;  // cache positions; the new tokens if is_new
    bool is_new;
};

struct AttentionPlan {
    i64 group, rows, row_blocks, split_len;
    i64 units = 0;
    Unit* unit = nullptr;
    i64* unit_begin = nullptr;  // [batch * kv_heads + 1] into unit
    float* m = nullptr;         // [units, rows]
    float* l = nullptr;         // [units, rows]
    float* acc = nullptr;       // [units, rows, d]
    i64 tasks() const { return units * row_blocks; }
};

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
    i64 first, last;
    position_range(layer, step, b, &first, &last);
    for (i64 begin = first / plan.split_len * plan.split_len; begin < last; begin += plan.split_len)
        f(max_of(begin, first), min_of(begin + plan.split_len, last), false);
    f(0, step.tokens, true);
}

inline AttentionPlan plan_attention(const Layer& layer, const Step& step) {
    AttentionPlan plan;
    plan.group = layer.q_heads / layer.kv_heads;
    plan.rows = plan.group * step.tokens;
    plan.row_blocks = ceil_div(plan.rows, max_block_rows);
    plan.split_len = min_split_len * plan.row_blocks;
    for (i64 b = 0; b < step.batch; ++b)
        for_each_split(plan, layer, step, b, [&](i64, i64, bool) { plan.units += layer.kv_heads; });
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
        }
    plan.unit_begin[row] = n;
}

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

// Element offset of a cache position, d = 0.
inline i64 cache_offset(const Step& step, const CacheView& view, i64 b, i64 kv, i64 position) {
    i64 outer = b, slot = position;
    if (step.block_len) {
        const std::int32_t* table = at<const std::int32_t>(step.block_table);
        outer = table[b * step.table_columns + position / step.block_len];
        slot = position % step.block_len;
    }
    return outer * view.outer_stride + slot * view.slot_stride + kv * view.head_stride;
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
    for (i64 p = begin; p < end; ++p) {
        const int i = tile.count;
        if (!all) {
            int seen = 0;
            for (int r = 0; r < task.rows; ++r) {
                tile.may[r][i] = may_attend(task, r, p);
                seen += tile.may[r][i];
            }
            if (seen == 0) continue;
            tile.partial |= seen < task.rows;
        }
        tile.position[i] = static_cast<int>(p - begin);
        if (unit.is_new) {
            const i64 row = (unit.batch * step.tokens + p) * task.layer.kv_heads + unit.kv_head;
            tile.k[i] = at<const T>(step.k_new) + row * task.layer.d_head;
            tile.v[i] = at<const T>(step.v_new) + row * task.layer.d_head;
        } else {
            tile.k[i] =
                at<const T>(step.k.data) + cache_offset(step, step.k, unit.batch, unit.kv_head, p);
            tile.v[i] =
                at<const T>(step.v.data) + cache_offset(step, step.v, unit.batch, unit.kv_head, p);
        }
        ++tile.count;
    }
}

// Positions beside each other in a register tile of R rows: eight chains of multiply-adds or more.
template <int R>
constexpr int dot_positions = R > 2 || dot_rows == 2 ? 4 : 8;

// Rows of K or V that will be needed next.
template <class T>
struct NextRows {
    const T* const* row;
    int count;
    i64 bytes;

    TKG_INLINE void fetch(int i) const {
        if (i < count) prefetch(row[i], bytes);
    }
};

// scores[r][i] for R rows and N positions: one dot product over d each.
template <int R, int N, class T>
inline void dot_tile(const float* const* q, const T* const* k, i64 d, float scale, float* scores) {
    Vec c[R * N];
    for (int i = 0; i < R * N; ++i) c[i] = zero();
    i64 j = 0;
    for (; j + lanes <= d; j += lanes) {
        Vec key[N];
        for (int i = 0; i < N; ++i) key[i] = load(k[i] + j);
        for (int r = 0; r < R; ++r) {
            const Vec query = load(q[r] + j);
            for (int i = 0; i < N; ++i) c[r * N + i] = fma(query, key[i], c[r * N + i]);
        }
    }
    if (j < d) {
        const int n = valid_lanes(j, d);
        for (int i = 0; i < N; ++i) {
            const Vec key = load_n(k[i] + j, n);
            for (int r = 0; r < R; ++r) c[r * N + i] = fma(load_n(q[r] + j, n), key, c[r * N + i]);
        }
    }
    float sums[R * N];
    sum_each<R * N>(c, sums);
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < N; ++i) scores[r * tile_len + i] = sums[r * N + i] * scale;
}

template <int R, class T, class Next>
inline void dot_positions_of(const float* const* q, const T* const* k, int count, i64 d,
                             float scale, float* scores, const Next& next) {
    constexpr int N = dot_positions<R>;
    int i = 0;
    for (; i + N <= count; i += N) {
        for (int p = 0; p < N; ++p) next.fetch(i + p);
        dot_tile<R, N>(q, k + i, d, scale, scores + i);
    }
    for (; i < count; ++i) {
        next.fetch(i);
        dot_tile<R, 1>(q, k + i, d, scale, scores + i);
    }
}

// f(R, first row) for groups of up to dot_rows rows, R as a constant.
template <class F>
inline void for_row_groups(int rows, F&& f) {
    int r = 0;
    for (; r + dot_rows <= rows; r += dot_rows) f(std::integral_constant<int, dot_rows>{}, r);
    if constexpr (dot_rows > 2) {
        if (rows - r == 3) f(std::integral_constant<int, 3>{}, r);
        if (rows - r == 2) f(std::integral_constant<int, 2>{}, r);
    }
    if (rows - r == 1) f(std::integral_constant<int, 1>{}, r);
}

// K with d contiguous: s = q k^T * scale. The first rows ask for what comes next.
template <class T, class Next>
inline void score_rows(const float* const* q, int rows, const T* const* k, int count, i64 d,
                       float scale, float* scores, Next next) {
    for_row_groups(rows, [&](auto group, int r) {
        dot_positions_of<group()>(q + r, k, count, d, scale, scores + r * tile_len, next);
        next.count = 0;
    });
}

// K with positions contiguous (transposed cache): lanes are positions. Lanes of positions that are
// not listed are computed and dropped.
template <class T>
inline void score_rows_transposed(const float* const* q, int rows, const Tile<T>& tile, i64 d,
                                  i64 d_stride, float scale, float* scores) {
    if (!tile.count) return;
    const T* base = tile.k[0] - tile.position[0];
    const int end = tile.position[tile.count - 1] + 1;
    for (int r = 0; r < rows; ++r) {
        float dense[tile_len];
        for (int p = tile.position[0] / lanes * lanes; p < end; p += lanes) {
            const int n = valid_lanes(p, end);
            Vec c = zero();
            for (i64 j = 0; j < d; ++j)
                c = fma(set1(q[r][j]), load_n(base + j * d_stride + p, n), c);
            store_n(dense + p, mul(c, set1(scale)), n);
        }
        for (int i = 0; i < tile.count; ++i) scores[r * tile_len + i] = dense[tile.position[i]];
    }
}

// m, l and p of one row for one tile; returns what acc must be multiplied by.
inline float softmax_row(float* p, int count, float* m, float* l) {
    Vec top = set1(*m);
    for (int i = 0; i < count; i += lanes) {
        const int n = valid_lanes(i, count);
        const Vec s = load_n(p + i, n);
        top = max(top, n == lanes ? s
                                  : select_less(lane_index(), set1(static_cast<float>(n)),
                                                set1(minus_infinity), s));
    }
    float new_m = largest(top);
    const float shift = new_m == minus_infinity ? 0.0f : new_m;
    Vec total = zero();
    for (int i = 0; i < count; i += lanes) {
        const int n = valid_lanes(i, count);
        const Vec e = exp_nonpositive(sub(load_n(p + i, n), set1(shift)));
        store_n(p + i, e, n);
        total = add(total, load_n(p + i, n));
    }
    const float factor = exp_nonpositive(*m - shift);
    *l = *l * factor + sum(total);
    *m = new_m;
    return factor;
}

// acc[r] = acc[r] * factor[r] + sum over positions of p[r][i] * v[i], for R rows and NV vectors.
template <int R, int NV, bool Tail, class T, class Next>
inline void weigh_tile(const float* p, const T* const* v, int count, i64 j, int n,
                       const float* factor, float* acc, i64 d, const Next& next) {
    Vec c[R][NV];
    for (int r = 0; r < R; ++r)
        for (int x = 0; x < NV; ++x) {
            const float* from = acc + r * d + j + x * lanes;
            c[r][x] = mul(Tail ? load_n(from, n) : load(from), set1(factor[r]));
        }
    for (int i = 0; i < count; ++i) {
        next.fetch(i);
        Vec value[NV];
        for (int x = 0; x < NV; ++x)
            value[x] = Tail ? load_n(v[i] + j, n) : load(v[i] + j + x * lanes);
        for (int r = 0; r < R; ++r) {
            const Vec weight = set1(p[r * tile_len + i]);
            for (int x = 0; x < NV; ++x) c[r][x] = fma(weight, value[x], c[r][x]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int x = 0; x < NV; ++x) {
            float* to = acc + r * d + j + x * lanes;
            if (Tail)
                store_n(to, c[r][x], n);
            else
                store(to, c[r][x]);
        }
}

template <int R, class T, class Next>
inline void weigh_rows(const float* p, const T* const* v, int count, const float* factor,
                       float* acc, i64 d, Next next) {
    constexpr int wide = R > 2 || dot_rows == 2 ? 4 : 8;
    i64 j = 0;
    for (; j + wide * lanes <= d; j += wide * lanes, next.count = 0)
        weigh_tile<R, wide, false>(p, v, count, j, 0, factor, acc, d, next);
    for (; j + lanes <= d; j += lanes, next.count = 0)
        weigh_tile<R, 1, false>(p, v, count, j, 0, factor, acc, d, next);
    if (j < d) weigh_tile<R, 1, true>(p, v, count, j, valid_lanes(j, d), factor, acc, d, next);
}

// One row over the positions that it may attend to, for tiles where rows differ.
template <class T, class V>
inline int pick_allowed(const Tile<T>& tile, int r, float* scores, const V* const* from,
                        const V** v) {
    int n = 0;
    for (int i = 0; i < tile.count; ++i)
        if (tile.may[r][i]) {
            scores[n] = scores[i];
            v[n++] = from[i];
        }
    return n;
}

// What the rows of a task have collected so far.
struct Collected {
    float *m, *l, *acc;
};

// A tile's scores into the rows' sums; v are the tile's rows of V.
template <class T, class V>
inline void attend_tile(const Task<T>& task, const Tile<T>& tile, const V* const* v, float* scores,
                        const Collected& to, NextRows<T> next) {
    const i64 d = task.layer.d_head;
    float factor[max_block_rows];
    if (tile.partial) {
        for (int r = 0; r < task.rows; ++r) {
            const V* allowed[tile_len];
            float* p = scores + r * tile_len;
            const int count = pick_allowed(tile, r, p, v, allowed);
            if (!count) continue;
            factor[0] = softmax_row(p, count, to.m + r, to.l + r);
            weigh_rows<1>(p, allowed, count, factor, to.acc + r * d, d, next);
            next.count = 0;
        }
        return;
    }
    for (int r = 0; r < task.rows; ++r)
        factor[r] = softmax_row(scores + r * tile_len, tile.count, to.m + r, to.l + r);
    for_row_groups(task.rows, [&](auto group, int r) {
        weigh_rows<group()>(scores + r * tile_len, v, tile.count, factor + r, to.acc + r * d, d,
                            next);
        next.count = 0;
    });
}

// Rows of K or V as the inner loops read them: FP8 as float16 of 2^-8 of the value, widened once a
// tile, everything else where it lies.
template <class T>
struct TileRows {
    const T* const* of(const T* const* rows, int, i64) { return rows; }
};

template <class T>
    requires is_fp8<T>
struct TileRows<T> {
    f16 half[tile_len * max_d_head];
    const f16* row[tile_len];

    const f16* const* of(const T* const* rows, int count, i64 d) {
        for (int i = 0; i < count; ++i) {
            f16* to = half + i * round_up(d, 64);
            for (i64 j = 0; j < d; j += 64)
                fp8_to_half(rows[i] + j, static_cast<int>(min_of(64, d - j)), to + j);
            row[i] = to;
        }
        return row;
    }
};

template <class T>
inline void attention_task(const Layer& layer, const Step& step, const AttentionPlan& plan,
                           i64 index, const float* q) {
    const i64 unit = index / plan.row_blocks, block = index % plan.row_blocks;
    const i64 first_row = block * max_block_rows;
    const int rows = static_cast<int>(min_of(max_block_rows, plan.rows - first_row));
    const Task<T> task{layer, step, plan, plan.unit[unit], first_row, rows, q};
    const i64 d = layer.d_head;
    float* m = plan.m + unit * plan.rows + first_row;
    float* l = plan.l + unit * plan.rows + first_row;
    float* acc = plan.acc + (unit * plan.rows + first_row) * d;
    const float* query[max_block_rows];
    for (int r = 0; r < rows; ++r) {
        m[r] = minus_infinity;
        l[r] = 0;
        query[r] = task.query(r);
    }
    __builtin_memset(acc, 0, static_cast<std::size_t>(rows * d) * sizeof(float));

    const bool transposed = !task.unit.is_new && step.k.d_stride != 1;
    const float widened = is_fp8<T> ? fp8_half_scale : 1.0f;
    const i64 row_bytes = d * static_cast<i64>(sizeof(T));
    Tile<T> tiles[2];
    TileRows<T> rows_of_tile;
    float scores[max_block_rows * tile_len];
    const Unit& positions = task.unit;
    const auto list = [&](i64 begin, Tile<T>& tile) {
        tile.count = 0;
        if (begin < positions.last)
            list_positions(task, max_of(begin, positions.first),
                           min_of(begin + tile_len, positions.last), tile);
    };
    i64 begin = positions.first / tile_len * tile_len;
    list(begin, tiles[0]);
    for (int current = 0; begin < positions.last; begin += tile_len, current = 1 - current) {
        const Tile<T>& tile = tiles[current];
        Tile<T>& next = tiles[1 - current];
        list(begin + tile_len, next);
        if (transposed)
            score_rows_transposed(query, rows, tile, d, step.k.d_stride, step.softmax_scale,
                                  scores);
        else
            score_rows(query, rows, rows_of_tile.of(tile.k, tile.count, d), tile.count, d,
                       step.softmax_scale * widened, scores,
                       NextRows<T>{tile.v, tile.count, row_bytes});
        attend_tile(task, tile, rows_of_tile.of(tile.v, tile.count, d), scores, {m, l, acc},
                    NextRows<T>{next.k, transposed ? 0 : next.count, row_bytes});
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
    for (i64 j = 0; j < d; ++j) out[j] = 0;
    bool anything = false;
    for (i64 u = begin; u < end; ++u) {
        const float unit_l = plan.l[u * plan.rows + row];
        if (unit_l == 0) continue;  // nothing to attend to in this split
        anything = true;
        const float factor = exp_nonpositive(plan.m[u * plan.rows + row] - m);
        const float* acc = plan.acc + (u * plan.rows + row) * d;
        l += unit_l * factor;
        for (i64 j = 0; j < d; j += lanes) {
            const int n = valid_lanes(j, d);
            store_n(out + j, fma(load_n(acc + j, n), set1(factor), load_n(out + j, n)), n);
        }
    }
    if (!anything) return;
    const float widened = size_of(step.cache_dtype) == 1 ? fp8_half_scale : 1.0f;
    const Vec scale = set1(step.attention_scale / l * widened);
    for (i64 j = 0; j < d; j += lanes) {
        const int n = valid_lanes(j, d);
        store_n(out + j, mul(load_n(out + j, n), scale), n);
    }
}

}  // namespace
}  // namespace tkg
