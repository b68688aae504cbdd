"""Calls in the core's form, and running them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tkg.backends.cpu.library import core
from tkg.backends.cpu.parts import Prepared, address, prepare
from tkg.contract import dtypes
from tkg.contract.arrays import Array
from tkg.contract.block import BlockCall
from tkg.contract.output import BlockOutput
from tkg.contract.projection import ProjectionCall


def attention_block(call: BlockCall) -> BlockOutput:
    """Run a block call; updates the caches in place if it says so."""
    layer = call.block.prepared or prepare(call.block)
    step = Prepared(core().Step())
    out = np.empty(call.out_shape(), dtypes.NUMPY[call.x.dtype])
    shape = (call.batch, call.tokens, call.block.heads.kv, call.block.heads.d_head)
    k_new, v_new = (np.empty(shape, dtypes.NUMPY[call.cache.v.dtype]) for _ in range(2))
    _fill_tokens(step, call)
    _fill_cache(step, call)
    _fill_visibility(step, call)
    step.part.k_new, step.part.v_new = step.address(k_new), step.address(v_new)
    step.part.softmax_scale = call.block.softmax_scale
    step.part.attention_scale = call.block.attention_scale
    step.part.out = step.address(out)
    core().attention_block(layer.part, step.part)
    return BlockOutput(out, k_new, v_new) if call.slots is None else BlockOutput(out)


def _fill_tokens(prepared: Prepared, call: BlockCall) -> None:
    step, x = prepared.part, np.ascontiguousarray(call.x.numpy())
    step.batch, step.tokens = call.batch, call.tokens
    step.x, step.x_dtype = prepared.address(x), _dtype(call.x)
    step.x_stride = x.shape[2]
    step.cos, step.sin = prepared.vector(call.cos), prepared.vector(call.sin)


def _fill_cache(prepared: Prepared, call: BlockCall) -> None:
    step, cache = prepared.part, call.cache
    for view, array in ((step.k, cache.k_slots), (step.v, cache.v_slots)):
        view.data = prepared.address(array)
        strides = [stride // array.itemsize for stride in array.strides]
        view.outer_stride, view.slot_stride, view.head_stride, view.d_stride = strides
    step.cache_dtype = _dtype(cache.v)
    if cache.scale is not None:
        step.k_scale, step.v_scale = cache.scale.k, cache.scale.v
    if cache.block_table is not None:
        table = np.ascontiguousarray(cache.block_table.numpy()).view(np.int32)
        step.block_table, step.table_columns = prepared.address(table), table.shape[1]
        step.block_len = cache.geometry.length
    if call.slots is not None:
        step.slots = prepared.address(call.slots)


def _fill_visibility(prepared: Prepared, call: BlockCall) -> None:
    step = prepared.part
    step.prior = call.prior
    if call.mask is not None:
        mask = call.mask.numpy()
        step.mask, step.mask_strides = prepared.address(mask), mask.strides
    else:
        assert call.start is not None
        step.start = prepared.address(call.start)


def _dtype(array: Array) -> Any:
    return _core_dtype(array.dtype)


@functools.cache
def _core_dtype(name: str) -> Any:
    return getattr(core().DType, name)


def output_projection(call: ProjectionCall) -> np.ndarray:
    """Run a projection call."""
    linear = call.projection.prepared or prepare(call.projection)
    attention = call.attention.numpy()
    out = np.empty(call.out_shape(), dtypes.NUMPY[call.attention.dtype])
    projection = core().Projection()
    projection.linear = linear.part
    projection.attention = address(attention)
    d_head, batch, heads, tokens = attention.shape
    projection.d_head, projection.batch = d_head, batch
    projection.heads, projection.tokens = heads, tokens
    projection.strides = tuple(stride // attention.itemsize for stride in attention.strides)
    projection.x_dtype = _dtype(call.attention)
    projection.transposed_out, projection.lnc = call.transposed_out, call.lnc
    projection.out = address(out)
    core().output_projection(projection)
    return out
