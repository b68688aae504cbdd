"""Steps and projections like one that was checked, without Python's checks."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np

from tkg.backends.cpu.calls import step
from tkg.backends.cpu.library import core
from tkg.backends.cpu.parts import core_dtype
from tkg.contract import dtypes
from tkg.contract.arrays import Array
from tkg.contract.block import BlockCall
from tkg.contract.projection import ProjectionCall
from tkg.contract.repeats import Repeat, RepeatProjection


def repeat(call: BlockCall, slots: Array | None, shape: tuple[int, ...]) -> Repeat | None:
    """See `tkg.contract.repeats`. For plain arrays that the core can read where they are."""
    cache, positions, table = call.cache, call.pos_ids, call.cache.block_table
    small = [call.x, positions, call.cos, call.sin, slots, table]
    if positions is None or not all(_plain(array) for array in (cache.k, cache.v)):
        return None
    if not all(array is None or (_plain(array) and _contiguous(array)) for array in small):
        return None
    if call.cos is not None and not call.cos.dtype == call.sin.dtype == "float32":
        return None
    if slots is not None and slots.shape[1] != call.tokens:
        return None
    cos, sin = (None if array is None else array.numpy() for array in (call.cos, call.sin))
    x, *others = (None if array is None else array.source for array in small[:5])
    return core().RepeatedStep(
        call.block.prepared.part,
        step(call, call.x.numpy(), cos, sin),
        x,
        *cache.sources,
        *others,
        blocks=cache.geometry.outer,
        row_slots=cache.geometry.length,
        positions_type=_indices(positions.dtype),
        slots_type=_indices(positions.dtype if slots is None else slots.dtype),
        **_outputs(call.x, shape),
    )


def repeat_projection(
    call: ProjectionCall, x: Array, shape: tuple[int, ...]
) -> RepeatProjection | None:
    """See `tkg.contract.repeats`. For a plain array that the core can read where it is."""
    if not (_plain(x) and _contiguous(x)):
        return None
    return core().RepeatedProjection(
        call.projection.prepared.part,
        call.attention.numpy(),
        core_dtype(x.dtype),
        x.source,
        **_outputs(x, shape),
    )


def _outputs(x: Array, shape: tuple[int, ...]) -> dict[str, Any]:
    """How the core makes outputs of x's kind and dtype."""
    make = functools.partial(np.empty, shape, dtypes.NUMPY[x.dtype])
    return {"make": make, "wrap": None if x.kind == "numpy" else x.released().like}


@functools.cache
def _indices(dtype: str) -> Any:
    """The core's word for a dtype of positions or slots."""
    return getattr(core().Indices, dtype)


def _plain(array: Array) -> bool:
    """Whether the core knows this kind of array: no subclass, no wrapper."""
    if array.kind == "numpy":
        return type(array.source) is np.ndarray
    return type(array.source) is sys.modules["torch"].Tensor


def _contiguous(array: Array) -> bool:
    return array.numpy().flags.c_contiguous
