"""A call as a sequence of launches."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from tkg.backends.cuda import plan
from tkg.backends.cuda.attending import attended, merged
from tkg.backends.cuda.errors import words
from tkg.backends.cuda.kernels.heads import heads
from tkg.backends.cuda.launch import launch
from tkg.backends.cuda.projections import (
    ALL_ROWS,
    Partial,
    Rows,
    Visibility,
    column_arguments,
    dense,
    finished,
    folds,
    partial_sums,
    prepared,
)
from tkg.backends.cuda.tensors import TORCH, as_stored, pointer_or_value, tensor, vector
from tkg.contract import dtypes
from tkg.contract.block import BlockCall, QKNorm
from tkg.contract.output import BlockOutput
from tkg.contract.projection import ProjectionCall


def on_device(name: str) -> Any:
    """A context in which launches go to that device."""
    return torch.cuda.device(name) if name.startswith("cuda") else contextlib.nullcontext()


def attention_block(call: BlockCall) -> BlockOutput:
    """Run a block call; updates the caches in place if it says so."""
    block = call.block
    with on_device(call.device), torch.no_grad():
        visible = Visibility(
            None if call.pos_ids is None else tensor(call.pos_ids), call.tokens, call.prior
        )
        x = prepared(_hidden_rows(call), block.qkv, block.input_norm)
        norm = block.input_norm if folds(x, block.qkv, block.input_norm) else None
        q, k_new, v_new = _heads(call, partial_sums(x, block.qkv, norm), visible)
        parts = None if block.skip_attention else attended(call, q, k_new, v_new, visible)
        out = merged(call, parts, (q, k_new, v_new), visible)
        if block.out is not None:
            partial = partial_sums(dense(out, call.x.dtype), block.out)
            out = torch.empty(call.out_shape(), dtype=TORCH[call.x.dtype], device=call.device)
            finished(partial, block.out, out, block.lnc if block.transposed_out else None, visible)
    if call.slot_ids is not None:
        return BlockOutput(out)
    return BlockOutput(out, *(as_stored(new, call.cache.v.dtype) for new in (k_new, v_new)))


def _hidden_rows(call: BlockCall) -> Rows:
    x = tensor(call.x)
    row_stride, token_stride, feature_stride = x.stride()
    rows = (call.tokens, row_stride, token_stride)
    features = (None, 0, feature_stride)
    return Rows(x, call.x.dtype, call.batch * call.tokens, call.block.hidden, rows, features)


def _heads(
    call: BlockCall, partial: Partial, visible: Visibility
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q `[R, q, d]` float32, and the new K and V `[B, S, kv, d]` as the cache holds them."""
    block, (q_heads, kv_heads, d) = call.block, _sizes(call)
    rows, scale = call.batch * call.tokens, call.cache.scale
    q = torch.empty((rows, q_heads, d), dtype=torch.float32, device=call.device)
    shape, kind = (call.batch, call.tokens, kv_heads, d), TORCH[call.cache.v.dtype]
    k_new, v_new = (torch.empty(shape, dtype=kind, device=call.device) for _ in range(2))
    k_scale, v_scale = (None, None) if scale is None else map(pointer_or_value, (scale.k, scale.v))
    launch(
        heads,
        (rows, q_heads + 2 * kv_heads),
        **column_arguments(block.qkv, partial),
        **visible.arguments(),
        **_norms("pre", block.pre_rope_norm),
        **_norms("post", block.post_rope_norm),
        squares=partial.squares,
        K=block.hidden,
        eps=0.0 if block.input_norm is None else block.input_norm.eps,
        cos=vector(call.cos),
        sin=vector(call.sin),
        q=q,
        k_new=k_new,
        v_new=v_new,
        k_scale=k_scale,
        v_scale=v_scale,
        errors=words(call.device),
        Q_HEADS=q_heads,
        KV_HEADS=kv_heads,
        D=d,
        HALF=plan.power_of_two(d // 2),
        INTERLEAVED=block.rope == "interleaved",
        FP8_CACHE=call.cache.v.dtype in dtypes.FP8,
        SCALE_ARRAY=isinstance(k_scale, torch.Tensor),
    )
    return q, k_new, v_new


def _sizes(call: BlockCall) -> tuple[int, int, int]:
    heads = call.block.heads
    return heads.q, heads.kv, heads.d_head


def _norms(place: str, norm: QKNorm | None) -> dict[str, Any]:
    return {
        f"{place}_q": None if norm is None else vector(norm.q_weight),
        f"{place}_k": None if norm is None else vector(norm.k_weight),
        f"{place}_eps": 0.0 if norm is None else norm.eps,
        f"{place.upper()}_NORM": norm is not None,
    }


def output_projection(call: ProjectionCall) -> torch.Tensor:
    """Run a projection call."""
    attention, linear = tensor(call.attention), call.projection
    d_head, batch, n_heads, tokens = attention.shape
    d_stride, row_stride, head_stride, token_stride = attention.stride()
    rows, features = (tokens, row_stride, token_stride), (d_head, head_stride, d_stride)
    x = Rows(attention, call.attention.dtype, batch * tokens, n_heads * d_head, rows, features)
    with on_device(call.device), torch.no_grad():
        partial = partial_sums(prepared(x, linear, None), linear)
        kind = TORCH[call.attention.dtype]
        out = torch.empty(call.out_shape(), dtype=kind, device=attention.device)
        lnc = call.lnc if call.transposed_out else None
        return finished(partial, linear, out, lnc, ALL_ROWS)
