"""The launches of attention over the cache, and of the merge that follows it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from tkg.backends.cuda import plan
from tkg.backends.cuda.errors import words
from tkg.backends.cuda.kernels.attention import attention
from tkg.backends.cuda.kernels.merge import merge
from tkg.backends.cuda.launch import launch
from tkg.backends.cuda.projections import Visibility
from tkg.backends.cuda.tensors import (
    COMPUTE,
    TORCH,
    in_words,
    product_dtype,
    slot_strides,
    tensor,
    vector,
)
from tkg.contract import dtypes
from tkg.contract.block import BlockCall


class Parts(NamedTuple):
    """Softmax partials: acc `[splits, B, q, S, d]`, m and l `[splits, B, q, S]`, float32."""

    acc: torch.Tensor
    m: torch.Tensor
    l: torch.Tensor


def attended(
    call: BlockCall,
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    visible: Visibility,
) -> Parts:
    """Launch attention over every split of every row."""
    heads, window = call.block.heads, call.block.sliding_window
    compute, cut = _compute(call), plan_of(call)
    longest = call.prior if window is None else min(call.prior, window + plan.WINDOW_UNIT)
    splits = plan.most_splits(longest)
    shape = (splits, call.batch, heads.q, call.tokens)
    new = {"dtype": torch.float32, "device": call.device}
    parts = Parts(
        torch.empty((*shape, heads.d_head), **new), *(torch.empty(shape, **new) for _ in "ml")
    )
    tiles = plan.up(heads.group * call.tokens, cut.block_m)
    launch(
        attention,
        (call.batch * heads.kv * tiles, splits),
        q=q,
        **_read_cache(call),
        k_new=k_new,
        v_new=v_new,
        **_table(call),
        mask=None if call.mask is None else tensor(call.mask),
        mask_strides=(0, 0, 0, 0) if call.mask is None else tensor(call.mask).stride(),
        **visible.arguments(),
        window=window,
        scale=call.block.softmax_scale * math.log2(math.e),
        acc_out=parts.acc,
        m_out=parts.m,
        l_out=parts.l,
        errors=words(call.device),
        batch=call.batch,
        **_constants(call),
        BLOCK_M=cut.block_m,
        BLOCK_P=cut.block_p,
        BLOCK_NEW=min(max(plan.power_of_two(call.tokens), 16), cut.block_p),
        COMPUTE=COMPUTE[compute],
        FP8=call.cache.v.dtype in dtypes.FP8,
        FN=call.cache.v.dtype == dtypes.FLOAT8_E4M3FN,
        PARTIAL=call.mask is not None or (window is not None and call.tokens > 1),
        num_warps=cut.warps,
    )
    return parts


def _compute(call: BlockCall) -> torch.dtype:
    return product_dtype(call.x.dtype, call.cache.v.dtype)


def plan_of(call: BlockCall) -> plan.AttentionPlan:
    """The tiles of a call's attention."""
    heads = call.block.heads
    narrow = _compute(call) != torch.float32
    return plan.attention(heads.group * call.tokens, heads.d_head, narrow)


def cache_arguments(call: BlockCall) -> dict[str, Any]:
    """The caches and their strides, as kernels take them."""
    return _strided(call, tensor(call.cache.k), tensor(call.cache.v))


def _read_cache(call: BlockCall) -> dict[str, Any]:
    """The same for the kernel that reads them: FP8 in words of four elements where it can be."""
    k, v = (in_words(tensor(array)) for array in (call.cache.k, call.cache.v))
    if k is None or v is None or call.cache.transposed:
        return cache_arguments(call) | {"WORDS": False}
    return _strided(call, k, v) | {"WORDS": True}


def _strided(call: BlockCall, k: torch.Tensor, v: torch.Tensor) -> dict[str, Any]:
    cache = call.cache
    return {
        "k_cache": k,
        "v_cache": v,
        "k_strides": slot_strides(cache, k, cache.transposed),
        "v_strides": slot_strides(cache, v, False),
    }


def _table(call: BlockCall) -> dict[str, Any]:
    if call.cache.block_table is None:
        return {"table": None, "geometry": (1, 1, 0)}
    table = tensor(call.cache.block_table)
    table = table if table.stride(1) == 1 else table.contiguous()
    geometry = call.cache.geometry
    return {"table": table, "geometry": (geometry.length, geometry.outer, table.stride(0))}


def _constants(call: BlockCall) -> dict[str, Any]:
    heads = call.block.heads
    return {
        "Q_HEADS": heads.q,
        "KV_HEADS": heads.kv,
        "D": heads.d_head,
        "PADDED_D": max(plan.power_of_two(heads.d_head), 16),
    }


def merged(
    call: BlockCall,
    parts: Parts | None,
    new: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    visible: Visibility,
) -> torch.Tensor:
    """Launch the merge of the splits and the cache write; `new`: Q, K and V of the new tokens.

    Returns:
        The attention output: rows `[R, q * d]` for the output projection, or the contract's
        `[B, q, d, S]` where there is none.
    """
    block = call.block
    out, strides = _attention_output(call)
    # Only a STATIC projection has one.
    input_scale = None if block.out is None else vector(block.out.input_scale)
    launch(
        merge,
        (call.batch * call.tokens, block.heads.q),
        **(dict.fromkeys(("acc", "m", "l")) if parts is None else parts._asdict()),
        q=new[0],
        sink=vector(block.sink),
        input_scale=input_scale,
        attention_scale=block.attention_scale,
        out=out,
        out_strides=strides,
        **visible.arguments(),
        window=block.sliding_window,
        batch=call.batch,
        **_slots(call),
        k_new=new[1],
        v_new=new[2],
        **cache_arguments(call),
        errors=words(call.device),
        **_constants(call),
        SKIP_ATTENTION=block.skip_attention,
    )
    return out


def _attention_output(call: BlockCall) -> tuple[torch.Tensor, tuple[int, int, int, int]]:
    """Where the attention goes, and its strides (row, token, head, d)."""
    heads, linear, tokens = call.block.heads, call.block.out, call.tokens
    width = heads.q * heads.d_head
    if linear is None:
        kind = TORCH[call.x.dtype]
        out = torch.empty(call.out_shape(), dtype=kind, device=call.device)
        row, head, d, token = out.stride()
        return out, (row, token, head, d)
    kind = product_dtype(call.x.dtype, linear.weight.dtype)
    out = torch.empty((call.batch * tokens, width), dtype=kind, device=call.device)
    return out, (tokens * width, width, heads.d_head, 1)


def _slots(call: BlockCall) -> dict[str, Any]:
    """Where the new tokens go, as `merge` takes it."""
    geometry, paged = call.cache.geometry, call.cache.block_table is not None
    ids = None if call.slot_ids is None else tensor(call.slot_ids)
    row_stride, stride = (0, 0) if ids is None else ids.stride()
    return {
        "slot_ids": ids,
        "slot_row_stride": row_stride,
        "slot_stride": stride,
        "slot_columns": 1 if ids is None else ids.shape[1],
        "capacity": geometry.length * (geometry.outer if paged else 1),
        "block_len": geometry.length if paged else None,
    }
