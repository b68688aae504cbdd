"""Running calls on the core."""

from __future__ import annotations

from typing import Any

import numpy as np

from tkg.backends.cpu.library import core
from tkg.backends.cpu.parts import core_dtype, float32, plain
from tkg.contract import dtypes
from tkg.contract.arrays import Array
from tkg.contract.block import BlockCall
from tkg.contract.output import BlockOutput
from tkg.contract.projection import ProjectionCall


def attention_block(call: BlockCall) -> BlockOutput:
    """Run a block call; updates the caches in place if it says so."""
    layer = call.block.prepared or plain(call.block)
    out = np.empty(call.out_shape(), dtypes.NUMPY[call.x.dtype])
    heads = call.block.heads
    new = np.empty(
        (2, call.batch, call.tokens, heads.kv, heads.d_head), dtypes.NUMPY[call.cache.v.dtype]
    )
    arrays = np.ascontiguousarray(call.x.numpy()), _vector(call.cos), _vector(call.sin)
    core().attention_block(layer.part, step(call, *arrays, k_new=new[0], v_new=new[1], out=out))
    return BlockOutput(out, *new) if call.slots is None else BlockOutput(out)


def step(
    call: BlockCall,
    x: np.ndarray,
    cos: np.ndarray | None,
    sin: np.ndarray | None,
    k_new: np.ndarray | None = None,
    v_new: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> Any:
    """The core's form of a call. It points into these arrays and the call's, which the caller keeps
    alive."""
    block, cache = call.block, call.cache
    table, scale = cache.block_table, cache.scale
    return core().Step(
        x=x,
        x_dtype=core_dtype(call.x.dtype),
        cos=cos,
        sin=sin,
        k=cache.k_slots,
        v=cache.v_slots,
        cache_dtype=core_dtype(cache.v.dtype),
        k_scale=1.0 if scale is None else scale.k,
        v_scale=1.0 if scale is None else scale.v,
        block_table=None if table is None else _table(table),
        block_len=cache.geometry.length,
        prior=call.prior,
        start=call.start,
        mask=None if call.mask is None else call.mask.numpy(),
        slots=call.slots,
        softmax_scale=block.softmax_scale,
        attention_scale=block.attention_scale,
        k_new=k_new,
        v_new=v_new,
        out=out,
    )


def _vector(array: Array | None) -> np.ndarray | None:
    return None if array is None else float32(array.numpy())


def _table(table: Array) -> np.ndarray:
    return np.ascontiguousarray(table.numpy()).view(np.int32)


def output_projection(call: ProjectionCall) -> np.ndarray:
    """Run a projection call."""
    linear = call.projection.prepared or plain(call.projection)
    out = np.empty(call.out_shape(), dtypes.NUMPY[call.attention.dtype])
    core().output_projection(
        linear.part,
        attention=call.attention.numpy(),
        x_dtype=core_dtype(call.attention.dtype),
        transposed_out=call.transposed_out,
        lnc=call.lnc,
        out=out,
    )
    return out
