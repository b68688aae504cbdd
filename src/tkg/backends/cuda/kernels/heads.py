"""From the QKV projection's partial sums to heads: scales, bias, norms, RoPE, rounding.

    y = sum of splits * root * scale + bias          one head of one token, [d]
    y = y / sqrt(mean(y^2) + eps) * weight           before RoPE, Q and K, where asked
    r' = r cos - i sin,  i' = r sin + i cos          pairs (r, i) of y, Q and K
    y = y / sqrt(mean(y^2) + eps) * weight           after RoPE

Program (token row r = b * S + s, head of Q, K, V in order). Q goes to q [R, q_heads, d] float32; K
and V, rounded to the cache's dtype (FP8: times the scale, clipped), to k_new and v_new
[R, kv_heads, d]; 0 for padded rows. A head is held as its two halves of RoPE, d/2 elements each.
cos, sin [d/2, R].
"""

import triton
import triton.language as tl

from tkg.backends.cuda.kernels.columns import add_splits, dequantized, inverse_root
from tkg.backends.cuda.kernels.fp8 import encode_fp8
from tkg.backends.cuda.kernels.numbers import rounded
from tkg.backends.cuda.kernels.rows import report, row_start


@triton.jit
def norm_pair(r, i, weight, first, second, ok, root):
    """A head, given as two halves, over its root mean square, times weight [d] or None."""
    r, i = tl.div_rn(r, tl.zeros_like(r) + root), tl.div_rn(i, tl.zeros_like(i) + root)
    if weight is not None:
        r *= tl.load(weight + first, mask=ok, other=0.0).to(tl.float32)
        i *= tl.load(weight + second, mask=ok, other=0.0).to(tl.float32)
    return r, i


@triton.jit
def qk_norm(r, i, weights, section, first, second, ok, D: tl.constexpr, eps):
    """RMSNorm of a head of Q (section 0) or K, with the weight that is its own."""
    root = tl.sqrt_rn((tl.sum(r * r, 0) + tl.sum(i * i, 0)) / D + eps)
    if section == 0:
        r, i = norm_pair(r, i, weights[0], first, second, ok, root)
    else:
        r, i = norm_pair(r, i, weights[1], first, second, ok, root)
    return r, i


@triton.jit
def store_new(out, at, value, ok, scale, FP8: tl.constexpr, SCALE_ARRAY: tl.constexpr):
    """Round new K or V elements to the cache's dtype and store them."""
    if FP8:
        factor = tl.load(scale).to(tl.float32) if SCALE_ARRAY else scale
        tl.store(out + at, encode_fp8(value * factor), mask=ok)
    else:
        tl.store(out + at, rounded(value, out.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["rows", "tokens", "prior"])
def heads(
    partial,
    squares,
    scale,
    input_scale,
    bias,
    cos,
    sin,
    pre_q,
    pre_k,
    post_q,
    post_k,
    pos_ids,
    pos_stride,
    q,
    k_new,
    v_new,
    k_scale,
    v_scale,
    errors,
    rows,
    tokens,
    prior,
    N,
    K,
    eps,
    pre_eps,
    post_eps,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    SCALE_KIND: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PRE_NORM: tl.constexpr,
    POST_NORM: tl.constexpr,
    FP8_CACHE: tl.constexpr,
    SCALE_ARRAY: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    half = tl.arange(0, HALF)
    ok = half < D // 2
    if INTERLEAVED:
        first, second = 2 * half, 2 * half + 1
    else:
        first, second = half, half + D // 2
    column = head * D
    r = add_splits(partial, rows, row, N, column + first, ok, SPLITS, PADDED_SPLITS)
    i = add_splits(partial, rows, row, N, column + second, ok, SPLITS, PADDED_SPLITS)
    if squares is not None:
        root = inverse_root(squares, rows, row, K, eps, SPLITS, PADDED_SPLITS)
        r, i = r * root, i * root
    section = (head >= Q_HEADS).to(tl.int32) + (head >= Q_HEADS + KV_HEADS).to(tl.int32)
    r = dequantized(r, scale, input_scale, section, column + first, ok, SCALE_KIND)
    i = dequantized(i, scale, input_scale, section, column + second, ok, SCALE_KIND)
    if bias is not None:
        r += tl.load(bias + column + first, mask=ok, other=0.0).to(tl.float32)
        i += tl.load(bias + column + second, mask=ok, other=0.0).to(tl.float32)

    if section < 2:
        if PRE_NORM:
            r, i = qk_norm(r, i, (pre_q, pre_k), section, first, second, ok, D, pre_eps)
        if cos is not None:
            at = half.to(tl.int64) * rows + row
            c = tl.load(cos + at, mask=ok, other=0.0).to(tl.float32)
            s = tl.load(sin + at, mask=ok, other=0.0).to(tl.float32)
            r, i = r * c - i * s, r * s + i * c
        if POST_NORM:
            r, i = qk_norm(r, i, (post_q, post_k), section, first, second, ok, D, post_eps)

    start = row_start(pos_ids, pos_stride, row // tokens, prior)
    r, i = tl.where(start < 0, 0.0, r), tl.where(start < 0, 0.0, i)
    if pos_ids is not None:
        if (start < 0) & (head == 0):
            given = tl.load(pos_ids + (row // tokens).to(tl.int64) * pos_stride).to(tl.int64)
            if (given != -1) & (given != 4294967295):
                report(errors, 0, row // tokens, given)
    if section == 0:
        at = (row.to(tl.int64) * Q_HEADS + head) * D
        tl.store(q + at + first, r, mask=ok)
        tl.store(q + at + second, i, mask=ok)
    elif section == 1:
        at = (row.to(tl.int64) * KV_HEADS + head - Q_HEADS) * D
        store_new(k_new, at + first, r, ok, k_scale, FP8_CACHE, SCALE_ARRAY)
        store_new(k_new, at + second, i, ok, k_scale, FP8_CACHE, SCALE_ARRAY)
    else:
        at = (row.to(tl.int64) * KV_HEADS + head - Q_HEADS - KV_HEADS) * D
        store_new(v_new, at + first, r, ok, v_scale, FP8_CACHE, SCALE_ARRAY)
        store_new(v_new, at + second, i, ok, v_scale, FP8_CACHE, SCALE_ARRAY)
