"""Layers and projections in the core's form.

A single call uses weights where they are. The object API has them rewritten once as panels, in the
order in which the core reads them (csrc/core/panels.h), and lets go of the originals. What is small
becomes float32. A `Prepared` object keeps alive every array that the core's form points into.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from tkg.backends.cpu.library import core
from tkg.contract.arrays import Array
from tkg.contract.block import Block, Linear, QKNorm
from tkg.contract.memory import Pool

P = TypeVar("P", Block, Linear)

PANELS = Pool()
"""Where weights are rewritten to."""


@dataclass
class Prepared:
    """The core's `Layer` or `Linear`, and the arrays that it points into.

    Attributes:
        panels: rewrite weights as panels.
        rewritten: `id` of the projections for which that was done; the objects are let go of.
    """

    panels: bool
    part: Any = None
    arrays: list[np.ndarray] = field(default_factory=list)
    rewritten: set[int] = field(default_factory=set)

    def keep(self, array: np.ndarray) -> np.ndarray:
        """The same array, kept alive from now on."""
        self.arrays.append(array)
        return array

    def vector(self, array: Array | None) -> np.ndarray | None:
        """All elements of a small array, as float32; `None` for `None`."""
        return None if array is None else self.keep(float32(array.numpy()))


def float32(values: np.ndarray) -> np.ndarray:
    """A contiguous float32 array of the same values; the same array if it is one already."""
    return np.ascontiguousarray(values, np.float32)


@functools.cache
def core_dtype(name: str) -> Any:
    """The core's word for a dtype of the contract."""
    return getattr(core().DType, name)


def plain(part: Block | Linear) -> Prepared:
    """The core's form of a block or a projection, with the weights where they are."""
    return _prepared(part, panels=False)


def prepare(part: P) -> P:
    """The same part with weights of its own, as panels; the arrays given may be freed.

    An FP8 weight that holds an infinity or NaN stays as it is.
    """
    prepared = _prepared(part, panels=True)
    if isinstance(part, Linear):
        return replace(_released(part, prepared), prepared=prepared)
    qkv = _released(part.qkv, prepared)
    out = None if part.out is None else _released(part.out, prepared)
    return replace(part, qkv=qkv, out=out, prepared=prepared)


def _released(linear: Linear, prepared: Prepared) -> Linear:
    """The projection without its weight's values, if they are in panels."""
    if id(linear) not in prepared.rewritten:
        return linear
    return replace(linear, weight=linear.weight.released())


def _prepared(part: Block | Linear, panels: bool) -> Prepared:
    prepared = Prepared(panels)
    if isinstance(part, Linear):
        features, columns = part.weight.shape
        prepared.part = _linear(prepared, part, features, (columns,))
    else:
        prepared.part = _layer(prepared, part)
    return prepared


def _layer(prepared: Prepared, block: Block) -> Any:
    module, heads = core(), block.heads
    layer = module.Layer()
    layer.qkv = _linear(prepared, block.qkv, block.hidden, heads.sections())
    if block.out is not None:
        columns = block.out.weight.shape[1]
        layer.out = _linear(prepared, block.out, heads.q * heads.d_head, (columns,))
    if block.input_norm is not None:
        weight = prepared.vector(block.input_norm.weight)
        layer.input_norm = module.Norm(weight, block.input_norm.eps)
    if block.pre_rope_norm is not None:
        layer.pre_q, layer.pre_k = _qk_norm(prepared, block.pre_rope_norm)
    if block.post_rope_norm is not None:
        layer.post_q, layer.post_k = _qk_norm(prepared, block.post_rope_norm)
    layer.q_heads, layer.kv_heads, layer.d_head = heads.q, heads.kv, heads.d_head
    layer.rope = getattr(module.Rope, block.rope or "none")
    if block.sink is not None:
        layer.set_sink(prepared.vector(block.sink))
    layer.window = block.sliding_window or 0
    layer.transposed_out, layer.lnc = block.transposed_out, block.lnc
    layer.skip_attention = block.skip_attention
    return layer


def _linear(prepared: Prepared, linear: Linear, rows: int, sections: tuple[int, ...]) -> Any:
    scale, weight = linear.column_scale(sections), linear.weight.numpy()
    if prepared.panels and weight.strides[-1] != weight.itemsize:
        weight = np.ascontiguousarray(weight)
    part = core().Linear(
        weight,
        core_dtype(linear.weight.dtype),
        in_features=rows,
        bias=prepared.vector(linear.bias),
        column_scale=None if scale is None else prepared.keep(float32(scale)),
        input_scale=linear.input_scale_value() or 0.0,
    )
    if prepared.panels:
        memory = PANELS.zeroed(part.panel_bytes())
        if part.use_panels(memory):
            prepared.keep(memory)
            prepared.rewritten.add(id(linear))
            return part
    prepared.keep(weight)
    return part


def _qk_norm(prepared: Prepared, norm: QKNorm) -> tuple[Any, Any]:
    weights = prepared.vector(norm.q_weight), prepared.vector(norm.k_weight)
    q, k = (core().Norm(weight, norm.eps) for weight in weights)
    return q, k
