"""Layers and projections in the core's form: addresses, and small vectors as float32.

Weights stay where they are; what is small is copied. A `Prepared` object keeps alive every array
whose address it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tkg.backends.cpu.library import core
from tkg.contract.arrays import Array
from tkg.contract.block import Block, Linear, QKNorm


@dataclass
class Prepared:
    """The core's `Layer` or `Linear`, and the arrays that it points into."""

    part: Any
    arrays: list[np.ndarray] = field(default_factory=list)

    def address(self, array: np.ndarray) -> int:
        """The address of an array that is kept alive from now on."""
        self.arrays.append(array)
        return address(array)

    def vector(self, array: Array | None) -> int:
        """The address of all elements of a small array, as float32; 0 for `None`."""
        return 0 if array is None else self.address(float32(array.numpy()))


def address(array: np.ndarray) -> int:
    """Where an array's first element is."""
    return core().address(array)


def float32(values: np.ndarray) -> np.ndarray:
    """A contiguous float32 array of the same values; the same array if it is one already."""
    return np.ascontiguousarray(values, np.float32)


def prepare(part: Block | Linear) -> Prepared:
    """The core's form of a block or a projection."""
    if isinstance(part, Linear):
        prepared = Prepared(core().Linear())
        columns = part.weight.shape[1]
        _fill_linear(prepared, prepared.part, part, part.weight.shape[0], (columns,))
        return prepared
    return _prepare_block(part)


def _prepare_block(block: Block) -> Prepared:
    module = core()
    layer = module.Layer()
    prepared = Prepared(layer)
    heads = block.heads
    _fill_linear(prepared, layer.qkv, block.qkv, block.hidden, heads.sections())
    if block.out is not None:
        features = heads.q * heads.d_head
        _fill_linear(prepared, layer.out, block.out, features, (block.out.weight.shape[1],))
    if block.input_norm is not None:
        layer.input_norm.eps = block.input_norm.eps
        layer.input_norm.weight = prepared.vector(block.input_norm.weight)
    _fill_qk_norm(prepared, layer.pre_q, layer.pre_k, block.pre_rope_norm)
    _fill_qk_norm(prepared, layer.post_q, layer.post_k, block.post_rope_norm)
    layer.q_heads, layer.kv_heads, layer.d_head = heads.q, heads.kv, heads.d_head
    layer.rope = getattr(module.Rope, block.rope or "none")
    layer.sink = prepared.vector(block.sink)
    layer.window = block.sliding_window or 0
    layer.transposed_out, layer.lnc = block.transposed_out, block.lnc
    layer.skip_attention = block.skip_attention
    return prepared


def _fill_linear(
    prepared: Prepared, target: Any, linear: Linear, rows: int, sections: tuple[int, ...]
) -> None:
    weight = linear.weight.numpy()
    target.weight = prepared.address(weight)
    target.dtype = getattr(core().DType, linear.weight.dtype)
    target.in_features, target.out_features = rows, weight.shape[1]
    target.row_stride = weight.strides[0] // weight.itemsize
    target.bias = prepared.vector(linear.bias)
    scale = linear.column_scale(sections)
    if scale is not None:
        target.column_scale = prepared.address(float32(scale))
    target.input_scale = linear.input_scale_value() or 0.0


def _fill_qk_norm(prepared: Prepared, q: Any, k: Any, norm: QKNorm | None) -> None:
    if norm is None:
        return
    q.eps = k.eps = norm.eps
    q.weight, k.weight = prepared.vector(norm.q_weight), prepared.vector(norm.k_weight)
