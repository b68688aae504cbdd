"""The attention block, stage by stage, as in docs/contract.md.

Shapes: x `[B, S, H]`; q `[B, S, q_heads, d]`; k, v `[B, S, kv_heads, d]`. S is S_tkg.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tkg.backends.reference.projection import Precision, fp8, output_layout, project, rounded
from tkg.contract.arrays import Array
from tkg.contract.block import Block, BlockCall, Heads, QKNorm
from tkg.contract.cache import KVCache


@dataclass(frozen=True)
class BlockResult:
    """Values of one call, before the output is rounded.

    Attributes:
        out: the output in the precision of the arithmetic, in the contract's shape.
        k_new, v_new: `[B, S_tkg, kv_heads, d_head]` in the cache's dtype.
        k_exact, v_exact: the same before they were rounded (and, for FP8, scaled).
    """

    out: np.ndarray
    k_new: np.ndarray
    v_new: np.ndarray
    k_exact: np.ndarray
    v_exact: np.ndarray


def attention_block_values(call: BlockCall, precision: Precision = np.float64) -> BlockResult:
    """Every stage of a block call in `precision`; writes nothing."""
    block, heads = call.block, call.block.heads
    real = np.ones(call.batch, bool) if call.start is None else call.start >= 0

    x = call.x.numpy()[..., : block.hidden].astype(precision)
    x = np.where(real[:, None, None], x, precision(0))  # a padded row may hold anything
    if block.input_norm is not None:
        x = rms_norm(x, _padded_weight(block, precision), block.input_norm.eps)
    q, k, v = split_heads(project(x, block.qkv, heads.sections()), heads)
    q, k = qk_norm(q, k, block.pre_rope_norm)
    if block.rope is not None:
        assert call.cos is not None and call.sin is not None
        cos, sin = _angles(call.cos, precision), _angles(call.sin, precision)
        q, k = rotate(q, cos, sin, block.rope), rotate(k, cos, sin, block.rope)
    q, k = qk_norm(q, k, block.post_rope_norm)

    real_row = real[:, None, None, None]
    k_exact, v_exact = np.where(real_row, k, precision(0)), np.where(real_row, v, precision(0))
    k_new, v_new = to_cache(k_exact, v_exact, call.cache)
    attended = q if block.skip_attention else attention(call, q, k_new, v_new)
    attended = np.where(real_row, attended, precision(0))

    if block.out is None:
        out = attended.transpose(0, 2, 3, 1)
    else:
        rows = attended.reshape(call.batch * call.tokens, heads.q * heads.d_head)
        y = project(rows, block.out, (block.out.weight.shape[1],))
        y = np.where(np.repeat(real, call.tokens)[:, None], y, precision(0))
        out = output_layout(y, block.transposed_out, block.lnc)
    return BlockResult(out, k_new, v_new, k_exact, v_exact)


def rms_norm(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis."""
    y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(eps))
    return y if weight is None else y * weight


def _padded_weight(block: Block, precision: Precision) -> np.ndarray | None:
    assert block.input_norm is not None
    weight = _vector(block.input_norm.weight, precision)
    return None if weight is None else weight[: block.hidden]


def _vector(array: Array | None, precision: Precision) -> np.ndarray | None:
    return None if array is None else array.numpy()[0].astype(precision)


def split_heads(qkv: np.ndarray, heads: Heads) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q, K and V of a projection whose columns are all Q heads, all K heads, all V heads."""
    parts = np.split(qkv, np.cumsum(heads.sections())[:2], axis=-1)
    q, k, v = (part.reshape(*part.shape[:2], -1, heads.d_head) for part in parts)
    return q, k, v


def qk_norm(q: np.ndarray, k: np.ndarray, norm: QKNorm | None) -> tuple[np.ndarray, np.ndarray]:
    """RMSNorm of each head of Q and of K."""
    if norm is None:
        return q, k
    q_weight, k_weight = _vector(norm.q_weight, q.dtype.type), _vector(norm.k_weight, q.dtype.type)
    return rms_norm(q, q_weight, norm.eps), rms_norm(k, k_weight, norm.eps)


def _angles(table: Array, precision: Precision) -> np.ndarray:
    """cos or sin `[d/2, B, S]` as `[B, S, 1, d/2]`."""
    return table.numpy().astype(precision).transpose(1, 2, 0)[:, :, None, :]


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, style: str) -> np.ndarray:
    """RoPE: `r' = r cos - i sin`, `i' = r sin + i cos` for each pair (r, i) of a head."""
    half = x.shape[-1] // 2
    real, imag = (
        (slice(None, half), slice(half, None))
        if style == "half"
        else (slice(0, None, 2), slice(1, None, 2))
    )
    r, i = x[..., real], x[..., imag]
    y = np.empty_like(x)
    y[..., real] = r * cos - i * sin
    y[..., imag] = r * sin + i * cos
    return y


def to_cache(k: np.ndarray, v: np.ndarray, cache: KVCache) -> tuple[np.ndarray, np.ndarray]:
    """K and V as the cache stores them: rounded, or for FP8 scaled, clipped and rounded."""
    dtype = cache.v.dtype
    if cache.scale is None:
        return rounded(k, dtype), rounded(v, dtype)
    scale_k, scale_v = k.dtype.type(cache.scale.k), v.dtype.type(cache.scale.v)
    return fp8(k * scale_k, dtype), fp8(v * scale_v, dtype)


def attention(call: BlockCall, q: np.ndarray, k_new: np.ndarray, v_new: np.ndarray) -> np.ndarray:
    """`softmax(q K^T * scale) V` of every new token over what it may attend to.

    A token with nothing to attend to gives 0. Slots that nothing may attend to are never read.
    """
    block, heads, precision = call.block, call.block.heads, q.dtype.type
    sink = None if block.sink is None else block.sink.numpy()[:, 0].astype(precision)
    out = np.zeros_like(q)
    for b in range(call.batch):
        visible = visible_positions(call, b)
        prior = np.flatnonzero(visible[: call.prior].any(axis=(1, 2)))
        seen = np.concatenate([visible[prior], visible[call.prior :]])
        for h in range(heads.q):
            kv = h // heads.group
            keys = _with_new(call, call.cache.k_slots, k_new, (b, prior, kv), precision)
            values = _with_new(call, call.cache.v_slots, v_new, (b, prior, kv), precision)
            for s in range(call.tokens):
                may = seen[:, h, s]
                logits = keys[may] @ q[b, s, h] * precision(block.softmax_scale)
                weights = softmax(logits, None if sink is None else sink[h])
                out[b, s, h] = weights @ values[may]
    return out * precision(block.attention_scale)


def softmax(logits: np.ndarray, sink: np.floating | None) -> np.ndarray:
    """`exp(x) / sum(exp(x))`, where a sink's logit joins the sum only."""
    everything = logits if sink is None else np.append(logits, sink)
    if everything.size == 0:
        return logits
    top = everything.max()
    return np.exp(logits - top) / np.exp(everything - top).sum()


def visible_positions(call: BlockCall, b: int) -> np.ndarray:
    """`[S_ctx, q_heads, S_tkg]`: what each new token of row b may attend to.

    The last S_tkg positions are the new tokens, those before are cache slots.
    """
    if call.mask is not None:
        return call.mask.numpy()[:, b] != 0
    assert call.start is not None
    start, tokens = call.start[b], np.arange(call.tokens)
    slot, window = np.arange(call.prior), call.block.sliding_window
    position = np.concatenate([slot, start + tokens])
    valid = np.concatenate([slot < start, np.full(call.tokens, start >= 0)])
    query = start + tokens
    may = valid[:, None] & (position[:, None] <= query)
    if window is not None:
        may &= position[:, None] > query - window
    return np.repeat(may[:, None, :], call.block.heads.q, axis=1)


def _with_new(
    call: BlockCall,
    cache: np.ndarray,
    new: np.ndarray,
    place: tuple[int, np.ndarray, int],
    precision: Precision,
) -> np.ndarray:
    """The cache's vectors of one KV head at logical positions, and after them the new tokens'."""
    b, positions, kv = place
    if call.cache.block_table is None:
        stored = cache[b, positions, kv]
    else:
        blocks, offsets = np.divmod(positions, cache.shape[1])
        stored = cache[call.cache.block_table.numpy()[b, blocks].astype(np.int64), offsets, kv]
    return np.concatenate([stored, new[b, :, kv]]).astype(precision)
