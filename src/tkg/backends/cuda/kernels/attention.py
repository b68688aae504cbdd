"""Attention of a row's new tokens over one split of its cache slots; split 0 has the new ones too.

    scores[t, p] = (Q[t, :] . K[p, :]) * scale         where t may see p, else -Inf
    m[t] = max_p scores    p = 2^(scores - m)    l[t] = sum_p p    acc[t, :] = sum_p p V[p, :]

t runs over the group's query heads times the new tokens, as rows of one tile: each K and V element
is read once a group (once a tile of BLOCK_M rows, where there are more). `scale` has log2(e) in it.
Slots that no row of the tile sees are not read. Program (batch row, KV head, row tile; split):
the splits of a row follow from its own length, programs beyond them end at once.

    q               [B * S, q_heads, d] float32
    k_new, v_new    [B * S, kv_heads, d] in the cache's dtype
    acc             [splits, B, q_heads, S, d] float32; m, l the same without d
    K, V            any strides (outer, slot, head, d), FP8 as bytes, or WORDS: as int32 words of
                    four elements of d; block cache: slot p is in block
                    table[b, p // block_len]
    mask            any strides (position, row, head, token), uint8; the new tokens last

A slot that one row of the tile sees and another does not may hold NaN or Inf: 0 * NaN would carry
it to both. Where visibility within a tile differs (PARTIAL), such values are taken out of V and
put, by row, where they are seen.
"""

import triton
import triton.language as tl

from tkg.backends.cuda.kernels.fp8 import decode_fp8, decode_fp8_words
from tkg.backends.cuda.kernels.numbers import product, rounded
from tkg.backends.cuda.kernels.rows import report, row_splits, row_start


@triton.jit
def widened(x, COMPUTE: tl.constexpr, FP8: tl.constexpr, FN: tl.constexpr):
    """Cache elements in the dtype of the products; exact."""
    if FP8:
        x = decode_fp8(x, FN)
    return x.to(COMPUTE)


@triton.jit
def cached(
    slots,
    steps,
    seen,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    COMPUTE: tl.constexpr,
    FP8: tl.constexpr,
    WORDS: tl.constexpr,
    FN: tl.constexpr,
):
    """K `[d, P]` and V `[P, d]` of some positions; `slots`: where their first elements are, `steps`
    from one element to the next."""
    k_slots, v_slots = slots
    if WORDS:
        word = tl.arange(0, PADDED_D // 4)[None, :]
        ok = seen[:, None] & (word < D // 4)
        k = decode_fp8_words(tl.load(k_slots[:, None] + word, mask=ok, other=0), FN)
        v = decode_fp8_words(tl.load(v_slots[:, None] + word, mask=ok, other=0), FN)
        return tl.trans(k.to(COMPUTE)), v.to(COMPUTE)
    else:
        d = tl.arange(0, PADDED_D)
        at = d.to(tl.int64)
        ok = seen[None, :] & (d < D)[:, None]
        k = tl.load(k_slots[None, :] + at[:, None] * steps[0], mask=ok, other=0)
        v = tl.load(v_slots[:, None] + at[None, :] * steps[1], mask=tl.trans(ok), other=0)
        return widened(k, COMPUTE, FP8, FN), widened(v, COMPUTE, FP8, FN)


@triton.jit
def where_seen(acc, v, visible):
    """acc with the Inf and NaN of V added in the rows that see them."""
    zero = tl.zeros_like(acc)
    sees = visible.to(v.dtype)
    up = product(sees, ((v != v) | (v == float("inf"))).to(v.dtype), zero) > 0
    down = product(sees, ((v != v) | (v == float("-inf"))).to(v.dtype), zero) > 0
    return acc + tl.where(up, float("inf"), 0.0) - tl.where(down, float("inf"), 0.0)


@triton.jit
def online(state, q, k, v, visible, scale, PARTIAL: tl.constexpr):
    """One step of the online softmax: k [d, P], v [P, d], visible [M, P] or [1, P]."""
    m, l, acc = state
    scores = product(q, k, tl.zeros((q.shape[0], k.shape[1]), tl.float32)) * scale
    scores = tl.where(visible, scores, float("-inf"))
    top = tl.maximum(m, tl.max(scores, 1))
    shift = tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp2(scores - shift[:, None])
    old = tl.exp2(m - shift)
    l = l * old + tl.sum(p, 1)
    acc = acc * old[:, None]
    if PARTIAL:
        # x - x is 0 for finite x only; the maximum of comparisons is not lost on NaN.
        bad = tl.max(tl.max(((v - v) != 0).to(tl.int32), 1), 0)
        if bad > 0:
            acc = where_seen(acc, v, visible)
            v = tl.where((v - v) != 0, 0.0, v)
    acc = product(rounded(p, v.dtype), v, acc)
    return top, l, acc


@triton.jit
def mask_tile(mask, mask_strides, position, position_ok, b, head, token, row_ok):
    """`[M, P]`: who sees which position, by the mask."""
    p_stride, b_stride, head_stride, token_stride = mask_strides
    row_at = (
        b.to(tl.int64) * b_stride
        + head.to(tl.int64) * head_stride
        + token.to(tl.int64) * token_stride
    )
    at = position.to(tl.int64)[None, :] * p_stride + row_at[:, None]
    return tl.load(mask + at, mask=row_ok[:, None] & position_ok[None, :], other=0) != 0


@triton.jit
def visible_slots(position, there, start, window, mask, mask_strides, rows):
    """Slots that some row of the tile sees `[P]`, and who sees which: `[M, P]`, or `[1, P]` where
    all rows see the same."""
    b, head, token, row_ok = rows
    if mask is not None:
        visible = mask_tile(mask, mask_strides, position, there, b, head, token, row_ok)
        return tl.max(visible.to(tl.int32), 0) > 0, visible
    elif window is not None:
        there = there & (position > start - window)
        return there, there[None, :] & (position[None, :] > (start + token - window)[:, None])
    else:
        return there, there[None, :]


@triton.jit
def slot_offsets(table, position, seen, b, geometry, k_strides, v_strides, errors):
    """Offsets of slots in K and V, and which of them can be read.

    A block that does not exist is reported, its slots are left out.
    """
    block_len, blocks, table_stride = geometry
    if table is None:
        outer, slot = b.to(tl.int64), position.to(tl.int64)
    else:
        at = b.to(tl.int64) * table_stride + position // block_len
        outer = tl.load(table + at, mask=seen, other=0).to(tl.int64)
        slot = (position % block_len).to(tl.int64)
        wrong = (outer < 0) | (outer >= blocks)
        if tl.max(wrong.to(tl.int32), 0) > 0:
            report(errors, 2, b, tl.max(tl.where(wrong, outer, -4294967296), 0))
        seen = seen & (wrong == 0)
        outer = tl.where(wrong, 0, outer)
    k_at = outer * k_strides[0] + slot * k_strides[1]
    v_at = outer * v_strides[0] + slot * v_strides[1]
    return k_at, v_at, seen


@triton.jit
def new_tokens(
    state,
    queries,
    new,
    where,
    tokens,
    scale,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_NEW: tl.constexpr,
    FP8: tl.constexpr,
    FN: tl.constexpr,
):
    """The online softmax over the new tokens, causal or by the mask."""
    m, l, acc = state
    k_new, v_new, mask, mask_strides, prior, window = new
    b, kv, head, token, row_ok, d = where
    for tile_low in range(0, tokens, BLOCK_NEW):
        position = tile_low + tl.arange(0, BLOCK_NEW)
        seen = position < tokens
        if mask is not None:
            at = prior + position
            visible = mask_tile(mask, mask_strides, at, seen, b, head, token, row_ok)
            seen = tl.max(visible.to(tl.int32), 0) > 0
        else:
            visible = seen[None, :] & (position[None, :] <= token[:, None])
            if window is not None:
                visible = visible & (position[None, :] > (token - window)[:, None])
        at = ((b.to(tl.int64) * tokens + position) * KV_HEADS + kv) * D
        ok = seen[None, :] & (d < D)[:, None]
        k = tl.load(k_new + at[None, :] + d[:, None], mask=ok, other=0)
        v = tl.load(v_new + at[:, None] + d[None, :], mask=tl.trans(ok), other=0)
        k, v = widened(k, queries.dtype, FP8, FN), widened(v, queries.dtype, FP8, FN)
        m, l, acc = online((m, l, acc), queries, k, v, visible, scale, True)
    return m, l, acc


@triton.jit(do_not_specialize=["batch", "tokens", "prior"])
def attention(
    q,
    k_cache,
    v_cache,
    k_strides,
    v_strides,
    k_new,
    v_new,
    table,
    geometry,
    mask,
    mask_strides,
    pos_ids,
    pos_stride,
    window,
    scale,
    acc_out,
    m_out,
    l_out,
    errors,
    batch,
    tokens,
    prior,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_NEW: tl.constexpr,
    COMPUTE: tl.constexpr,
    FP8: tl.constexpr,
    WORDS: tl.constexpr,
    FN: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    split = tl.program_id(1)
    rows = Q_HEADS // KV_HEADS * tokens
    tiles = (rows + BLOCK_M - 1) // BLOCK_M
    tile, kv = tl.program_id(0) % tiles, tl.program_id(0) // tiles % KV_HEADS
    b = tl.program_id(0) // tiles // KV_HEADS
    start = row_start(pos_ids, pos_stride, b, prior)
    first, count, size = row_splits(start, window)
    if (start < 0) | (split >= count):
        return

    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = row < rows
    head, token = kv * (Q_HEADS // KV_HEADS) + row // tokens, row % tokens
    d = tl.arange(0, PADDED_D)
    d_ok = d < D
    q_at = ((b.to(tl.int64) * tokens + token) * Q_HEADS + head) * D
    queries = tl.load(
        q + q_at[:, None] + d[None, :], mask=row_ok[:, None] & d_ok[None, :], other=0.0
    )
    queries = rounded(queries, COMPUTE)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, PADDED_D), tl.float32)
    k_base = k_cache + kv.to(tl.int64) * k_strides[2]
    v_base = v_cache + kv.to(tl.int64) * v_strides[2]

    low = first + split * size
    high = tl.minimum(low + size, start)
    for tile_low in range(low.to(tl.int32), high.to(tl.int32), BLOCK_P):
        position = tile_low + tl.arange(0, BLOCK_P)
        seen, visible = visible_slots(
            position, position < high, start, window, mask, mask_strides, (b, head, token, row_ok)
        )
        k_at, v_at, seen = slot_offsets(
            table, position, seen, b, geometry, k_strides, v_strides, errors
        )
        visible = visible & seen[None, :]
        bases = (k_base + k_at, v_base + v_at)
        k, v = cached(
            bases, (k_strides[3], v_strides[3]), seen, D, PADDED_D, COMPUTE, FP8, WORDS, FN
        )
        m, l, acc = online((m, l, acc), queries, k, v, visible, scale, PARTIAL)

    if split == 0:
        new = (k_new, v_new, mask, mask_strides, prior, window)
        where = (b, kv, head, token, row_ok, d)
        m, l, acc = new_tokens(
            (m, l, acc), queries, new, where, tokens, scale, KV_HEADS, D, BLOCK_NEW, FP8, FN
        )
    total = tl.cast(batch, tl.int64) * Q_HEADS * tokens
    place = split * total + (b.to(tl.int64) * Q_HEADS + kv * (Q_HEADS // KV_HEADS)) * tokens + row
    tl.store(m_out + place, m, mask=row_ok)
    tl.store(l_out + place, l, mask=row_ok)
    at = place[:, None] * D + d[None, :]
    tl.store(acc_out + at, acc, mask=row_ok[:, None] & d_ok[None, :])
