"""The splits of a row's attention put together, and the cache write.

    M = max(m_j, sink)        l = sum_j l_j 2^(m_j - M) + 2^(sink - M)
    out = sum_j acc_j 2^(m_j - M) / l * attention_scale;   0 where l is 0

Program (token row r = b * S + s, query head). m_j and the sink are in units of log2. acc
[splits, B, q_heads, S, d], m and l [splits, B, q_heads, S] float32, as attention.py leaves them.
With `skip_attention` q [R, q_heads, d] takes the attention's place. `out` has any strides; with
`input_scale` it is rounded to FP8. The programs of the first kv_heads heads also copy that KV
head's new K and V [R, kv_heads, d] into the caches: every read of an old slot is over by then.
"""

import triton
import triton.language as tl

from tkg.backends.cuda.kernels.fp8 import round_fp8
from tkg.backends.cuda.kernels.numbers import rounded
from tkg.backends.cuda.kernels.rows import MOST_SPLITS, report, row_splits, row_start

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def merged(acc, m, l, sink, count, total, place, d, ok, D: tl.constexpr):
    """One head's `sum_j acc_j 2^(m_j - M) / l`; `place`: its row in acc, of `total`."""
    split = tl.arange(0, MOST_SPLITS)
    there = split < count
    at = split.to(tl.int64) * total + place
    m_j = tl.load(m + at, mask=there, other=float("-inf"))
    l_j = tl.load(l + at, mask=there, other=0.0)
    top = tl.max(m_j, 0)
    if sink is not None:
        logit = tl.load(sink).to(tl.float32) * LOG2E
        top = tl.maximum(top, logit)
    top = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.where(there, tl.exp2(m_j - top), 0.0)
    length = tl.sum(weight * l_j, 0)
    if sink is not None:
        length += tl.exp2(logit - top)
    acc_j = tl.load(
        acc + at[:, None] * D + d[None, :], mask=there[:, None] & ok[None, :], other=0.0
    )
    value = tl.sum(weight[:, None] * acc_j, 0)
    # Where nothing was seen, value and length are 0; NaN stays.
    return tl.div_rn(value, tl.zeros_like(value) + tl.where(length == 0.0, 1.0, length))


@triton.jit
def write_new(new, at, cache, outer, slot, head, strides, d, ok):
    """Copy a new token's K or V of one head into the cache."""
    outer_stride, slot_stride, head_stride, d_stride = strides
    to = outer * outer_stride + slot * slot_stride + head.to(tl.int64) * head_stride
    value = tl.load(new + at + d, mask=ok)
    tl.store(cache + to + d.to(tl.int64) * d_stride, value, mask=ok)


@triton.jit(do_not_specialize=["batch", "tokens", "prior", "slot_columns", "capacity"])
def merge(
    acc,
    m,
    l,
    q,
    sink,
    input_scale,
    attention_scale,
    out,
    out_strides,
    pos_ids,
    pos_stride,
    window,
    batch,
    tokens,
    prior,
    slot_ids,
    slot_row_stride,
    slot_stride,
    slot_columns,
    capacity,
    block_len,
    k_new,
    v_new,
    k_cache,
    v_cache,
    k_strides,
    v_strides,
    errors,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    SKIP_ATTENTION: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    b, s = row // tokens, row % tokens
    d = tl.arange(0, PADDED_D)
    ok = d < D
    start = row_start(pos_ids, pos_stride, b, prior)
    value = tl.zeros((PADDED_D,), tl.float32)
    if start >= 0:
        if SKIP_ATTENTION:
            at = (row.to(tl.int64) * Q_HEADS + head) * D
            value = tl.load(q + at + d, mask=ok, other=0.0)
        else:
            first, count, size = row_splits(start, window)
            place = (b.to(tl.int64) * Q_HEADS + head) * tokens + s
            total = tl.cast(batch, tl.int64) * Q_HEADS * tokens
            logit = None if sink is None else sink + head
            value = merged(acc, m, l, logit, count, total, place, d, ok, D) * attention_scale
        if input_scale is not None:
            step = tl.zeros_like(value) + tl.load(input_scale).to(tl.float32)
            value = round_fp8(tl.div_rn(value, step))
    b_stride, s_stride, head_stride, d_stride = out_strides
    at = b.to(tl.int64) * b_stride + s.to(tl.int64) * s_stride + head.to(tl.int64) * head_stride
    tl.store(out + at + d.to(tl.int64) * d_stride, rounded(value, out.dtype.element_ty), mask=ok)

    if slot_ids is not None:
        if (start >= 0) & (head < KV_HEADS):
            column = tl.where(slot_columns > 1, s, 0)
            at = b.to(tl.int64) * slot_row_stride + column.to(tl.int64) * slot_stride
            given = tl.load(slot_ids + at).to(tl.int64)
            slot = tl.where(slot_columns > 1, given, given + s)
            if (given != -1) & (given != 4294967295):
                if (slot < 0) | (slot >= capacity):
                    report(errors, 1, b, slot)
                else:
                    outer = b.to(tl.int64)
                    if block_len is not None:
                        outer = slot // block_len
                        slot = slot % block_len
                    at = (row.to(tl.int64) * KV_HEADS + head) * D
                    write_new(k_new, at, k_cache, outer, slot, head, k_strides, d, ok)
                    write_new(v_new, at, v_cache, outer, slot, head, v_strides, d, ok)
