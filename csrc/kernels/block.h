// The attention block and the output projection, each one run of a team of threads: phases
// separated by barriers, large tasks taken by whichever thread is free.
#pragma once

#include "core/workspace.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/pointwise.h"

namespace tkg {
namespace {

template <class T>
inline T* piece(Workspace& workspace, i64 count) {
    return static_cast<T*>(workspace.take(static_cast<std::size_t>(count) * sizeof(T)));
}

inline std::size_t bytes_of(i64 count, std::size_t size) {
    return Workspace::rounded(static_cast<std::size_t>(count) * size);
}

// Where a call's intermediate values live.
struct Scratch {
    float* x;         // operand of the QKV projection
    float* attended;  // operand of the output projection
    float* partial;   // of either projection
    float* q;         // [M, q_heads, d]
    float* rows;      // [threads, row_floats]
    i64 row_floats;   // longest vector that a thread works on
    i64 own_x;        // floats from a thread's x to the next one's; 0: one x for all

    float* row(const Worker& worker) const { return rows + worker.thread() * row_floats; }
    float* x_of(const Worker& worker) const { return x + worker.thread() * own_x; }
};

struct BlockPlan {
    i64 m;
    GemmPlan qkv, out;
    AttentionPlan attention;
};

inline BlockPlan plan_block(const Layer& layer, const Step& step, int threads) {
    BlockPlan plan;
    plan.m = step.batch * step.tokens;
    plan.qkv = plan_gemm(plan.m, layer.qkv, threads);
    plan.out = plan_gemm(plan.m, layer.out, threads);
    plan.attention = plan_attention(layer, step, threads);
    return plan;
}

// Up to so many rows of X are prepared by every thread for itself, which is sooner than to wait for
// each other.
constexpr i64 own_rows = 2;

constexpr i64 finish_columns = 512;  // columns of an output row that one task finishes

inline Scratch allocate(const Layer& layer, const Step& step, BlockPlan& plan, int threads,
                        Workspace& workspace) {
    AttentionPlan& attention = plan.attention;
    const bool projects = layer.out.weight != 0;
    const i64 features = layer.q_heads * layer.d_head;
    const i64 partial = max_of(plan.qkv.partial_floats(), projects ? plan.out.partial_floats() : 0);
    const i64 attended = projects ? plan.out.operand_floats() : 0;
    const i64 row_floats = round_up(max_of(max_of(finish_columns, layer.d_head), layer.qkv.in), 16);
    const i64 states = attention.units * attention.rows, heads = step.batch * layer.kv_heads;
    const bool own_x = plan.m <= own_rows;
    const i64 one_x = round_up(plan.qkv.operand_floats(), 16),
              all_x = own_x ? threads * one_x : one_x;
    workspace.reset(bytes_of(all_x, 4) + bytes_of(attended, 4) + bytes_of(partial, 4) +
                    bytes_of(plan.m * features, 4) + bytes_of(threads * row_floats, 4) +
                    bytes_of(attention.units, sizeof(Unit)) + bytes_of(heads + 1, sizeof(i64)) +
                    bytes_of(heads, sizeof(int)) + 2 * bytes_of(states, 4) +
                    bytes_of(states * layer.d_head, 4));
    Scratch scratch;
    scratch.x = piece<float>(workspace, all_x);
    scratch.own_x = own_x ? one_x : 0;
    scratch.attended = piece<float>(workspace, attended);
    scratch.partial = piece<float>(workspace, partial);
    scratch.q = piece<float>(workspace, plan.m * features);
    scratch.rows = piece<float>(workspace, threads * row_floats);
    scratch.row_floats = row_floats;
    attention.unit = piece<Unit>(workspace, attention.units);
    attention.unit_begin = piece<i64>(workspace, heads + 1);
    attention.missing = piece<int>(workspace, heads);
    attention.m = piece<float>(workspace, states);
    attention.l = piece<float>(workspace, states);
    attention.acc = piece<float>(workspace, states * layer.d_head);
    return scratch;
}

inline bool is_padded(const Step& step, i64 m) { return row_start(step, m / step.tokens) < 0; }

// Row m of the QKV projection's operand: normalised, and for STATIC rounded to FP8. A padded row is
// 0 throughout.
inline void prepare_input(const Layer& layer, const Step& step, const BlockPlan& plan, i64 m,
                          float* x, float* operand) {
    const i64 n = layer.qkv.in;
    if (is_padded(step, m)) {
        __builtin_memset(x, 0, static_cast<std::size_t>(n) * sizeof(float));
    } else {
        with_activation_type(step.x_dtype, [&](auto type) {
            widen(at<const decltype(type)>(step.x) + m * step.x_stride, n, x);
        });
        rms_norm(x, n, layer.input_norm);
        if (layer.qkv.input_scale > 0) round_to_fp8(x, n, layer.qkv.input_scale);
    }
    put_operand(plan.qkv, m, 0, n, x, operand);
}

// One head of one row: Q to q, K and V to the new tokens in the cache's dtype.
inline void finish_head(const Layer& layer, const Step& step, const BlockPlan& plan,
                        const Scratch& scratch, i64 m, i64 head, float* y) {
    const i64 d = layer.d_head, kv_head = head - layer.q_heads;
    const bool is_q = kv_head < 0, is_k = !is_q && kv_head < layer.kv_heads;
    gemm_finish(plan.qkv, scratch.partial, layer.qkv, m, head * d, d, y);
    if (is_q || is_k) {
        const i64 stride = step.batch * step.tokens;
        rms_norm(y, d, is_q ? layer.pre_q : layer.pre_k);
        rotate(y, d, layer.rope, at<const float>(step.cos) + m, at<const float>(step.sin) + m,
               stride);
        rms_norm(y, d, is_q ? layer.post_q : layer.post_k);
    }
    if (is_q) {
        __builtin_memcpy(scratch.q + (m * layer.q_heads + head) * d, y,
                         static_cast<std::size_t>(d) * sizeof(float));
        return;
    }
    const bool zeroed = is_padded(step, m);
    for (i64 j = 0; zeroed && j < d; ++j) y[j] = 0;
    const i64 row = m * layer.kv_heads + (is_k ? kv_head : kv_head - layer.kv_heads);
    with_type(step.cache_dtype, [&](auto type) {
        using T = decltype(type);
        T* to = at<T>(is_k ? step.k_new : step.v_new) + row * d;
        narrow(y, d, is_k ? step.k_scale : step.v_scale, to);
    });
}

// The attention output of one row and head: to the output projection's operand (for STATIC rounded
// to FP8), or without one to the output [B, q_heads, d, S].
inline void finish_attention(const Layer& layer, const Step& step, const BlockPlan& plan,
                             const Scratch& scratch, i64 m, i64 head, float* y) {
    const i64 d = layer.d_head, b = m / step.tokens, token = m % step.tokens;
    if (is_padded(step, m)) {
        for (i64 j = 0; j < d; ++j) y[j] = 0;
    } else if (layer.skip_attention) {
        __builtin_memcpy(y, scratch.q + (m * layer.q_heads + head) * d,
                         static_cast<std::size_t>(d) * sizeof(float));
    } else {
        merge_row(layer, step, plan.attention, b, token, head, y);
    }
    if (layer.out.weight) {
        if (layer.out.input_scale > 0) round_to_fp8(y, d, layer.out.input_scale);
        put_operand(plan.out, m, head * d, d, y, scratch.attended);
        return;
    }
    with_activation_type(step.x_dtype, [&](auto type) {
        auto* out = at<decltype(type)>(step.out) + (b * layer.q_heads + head) * d * step.tokens;
        for (i64 j = 0; j < d; ++j) from_float(y[j], out + j * step.tokens + token);
    });
}

// Put the new K and V of row m into the cache.
template <class T>
inline void write_token(const Layer& layer, const Step& step, i64 m, const CacheView& view,
                        Address fresh) {
    const i64 slot = at<const i64>(step.slots)[m], d = layer.d_head;
    if (slot < 0) return;
    const i64 outer = step.block_len ? slot / step.block_len : m / step.tokens;
    const i64 inner = step.block_len ? slot % step.block_len : slot;
    for (i64 kv = 0; kv < layer.kv_heads; ++kv) {
        const T* from = at<const T>(fresh) + (m * layer.kv_heads + kv) * d;
        T* to = at<T>(view.data) + outer * view.outer_stride + inner * view.slot_stride +
                kv * view.head_stride;
        for (i64 j = 0; j < d; ++j) to[j * view.d_stride] = from[j];
    }
}

inline void write_cache(const Layer& layer, const Step& step, i64 m) {
    if (!step.slots) return;
    with_type(step.cache_dtype, [&](auto type) {
        using T = decltype(type);
        write_token<T>(layer, step, m, step.k, step.k_new);
        write_token<T>(layer, step, m, step.v, step.v_new);
    });
}

// One stretch of columns of one output row.
inline void finish_output(const GemmPlan& plan, const float* partial, const Linear& linear, i64 m,
                          i64 part, bool zeroed, DType dtype, bool transposed, i64 lnc, float* y,
                          Address out) {
    const i64 n0 = part * finish_columns, n = min_of(finish_columns, plan.n - n0);
    gemm_finish(plan, partial, linear, m, n0, n, y);
    for (i64 j = 0; zeroed && j < n; ++j) y[j] = 0;
    with_activation_type(dtype, [&](auto type) {
        store_row(y, n0, n, plan.n, m, plan.m, transposed, lnc, at<decltype(type)>(out));
    });
}

// All attention tasks; finish(m, head) as soon as all splits of a row and head are there, while
// they are in the caches.
template <class F>
inline void attend(const Layer& layer, const Step& step, const AttentionPlan& plan,
                   const Scratch& scratch, Worker& worker, F&& finish) {
    with_type(step.cache_dtype, [&](auto type) {
        worker.share(plan.tasks(), [&](i64 i) {
            attention_task<decltype(type)>(layer, step, plan, i, scratch.q);
            const TaskUnits units = units_of(plan, i);
            for (i64 h = 0; h < plan.heads; ++h) {
                const Unit& unit = plan.unit[units.first + h * units.step];
                if (!completes(plan, layer, unit)) continue;
                for (i64 r = 0; r < plan.rows; ++r)
                    finish(unit.batch * step.tokens + r % step.tokens,
                           unit.kv_head * plan.group + r / step.tokens);
            }
        });
    });
}

void attention_block(const Layer& layer, const Step& step, Team& team, Workspace& workspace) {
    BlockPlan plan = plan_block(layer, step, team.size());
    const Scratch scratch = allocate(layer, step, plan, team.size(), workspace);
    list_units(plan.attention, layer, step);
    const i64 m = plan.m, heads = layer.q_heads + 2 * layer.kv_heads;
    const i64 out_parts = ceil_div(plan.out.n, finish_columns);

    run_on(team, [&](Worker& worker) {
        float* row = scratch.row(worker);
        float* x = scratch.x_of(worker);
        const auto prepare = [&](i64 i) { prepare_input(layer, step, plan, i, row, x); };
        if (scratch.own_x) {
            for (i64 i = 0; i < m; ++i) prepare(i);
        } else {
            worker.split(m, prepare);
            worker.barrier();
        }
        worker.share(plan.qkv.tasks(),
                     [&](i64 i) { gemm_task(plan.qkv, i, x, layer.qkv, scratch.partial); });
        worker.barrier();
        worker.split(m * heads,
                     [&](i64 i) { finish_head(layer, step, plan, scratch, i % m, i / m, row); });
        worker.barrier();
        const auto finish = [&](i64 row_of_x, i64 head) {
            finish_attention(layer, step, plan, scratch, row_of_x, head, row);
        };
        worker.split(m * layer.q_heads, [&](i64 i) {
            const i64 row_of_x = i / layer.q_heads;
            if (layer.skip_attention || is_padded(step, row_of_x))
                finish(row_of_x, i % layer.q_heads);
        });
        if (!layer.skip_attention) attend(layer, step, plan.attention, scratch, worker, finish);
        worker.barrier();
        // Nobody reads the cache any more: the new tokens may go into slots that were read.
        worker.split(m, [&](i64 i) { write_cache(layer, step, i); });
        if (!layer.out.weight) return;
        worker.share(plan.out.tasks(), [&](i64 i) {
            gemm_task(plan.out, i, scratch.attended, layer.out, scratch.partial);
        });
        worker.barrier();
        worker.split(m * out_parts, [&](i64 i) {
            finish_output(plan.out, scratch.partial, layer.out, i % m, i / m,
                          is_padded(step, i % m), step.x_dtype, layer.transposed_out, layer.lnc,
                          row, step.out);
        });
    });
}

// Row b*S + s of the attention output as [N * D] float32; for STATIC rounded to FP8.
inline void gather_attention(const Projection& call, i64 m, float* x) {
    const i64 b = m / call.tokens, s = m % call.tokens, d = call.d_head;
    with_activation_type(call.x_dtype, [&](auto type) {
        const auto* from =
            at<const decltype(type)>(call.attention) + b * call.strides[1] + s * call.strides[3];
        for (i64 n = 0; n < call.heads; ++n, from += call.strides[2])
            for (i64 j = 0; j < d; ++j) x[n * d + j] = to_float(from[j * call.strides[0]]);
    });
    if (call.linear.input_scale > 0) round_to_fp8(x, call.linear.in, call.linear.input_scale);
}

void output_projection(const Projection& call, Team& team, Workspace& workspace) {
    const i64 m = call.batch * call.tokens, k = call.linear.in;
    const GemmPlan plan = plan_gemm(m, call.linear, team.size());
    const i64 row_floats = round_up(max_of(k, finish_columns), 16);
    workspace.reset(bytes_of(plan.operand_floats(), 4) + bytes_of(plan.partial_floats(), 4) +
                    bytes_of(team.size() * row_floats, 4));
    float* x = piece<float>(workspace, plan.operand_floats());
    float* partial = piece<float>(workspace, plan.partial_floats());
    float* rows = piece<float>(workspace, team.size() * row_floats);
    const i64 parts = ceil_div(plan.n, finish_columns);

    run_on(team, [&](Worker& worker) {
        float* row = rows + worker.thread() * row_floats;
        worker.split(m, [&](i64 i) {
            gather_attention(call, i, row);
            put_operand(plan, i, 0, k, row, x);
        });
        worker.barrier();
        worker.share(plan.tasks(), [&](i64 i) { gemm_task(plan, i, x, call.linear, partial); });
        worker.barrier();
        worker.split(m * parts, [&](i64 i) {
            finish_output(plan, partial, call.linear, i % m, i / m, false, call.x_dtype,
                          call.transposed_out, call.lnc, row, call.out);
        });
    });
}

}  // namespace
}  // namespace tkg
