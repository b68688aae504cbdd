"""Steps, projections and drop-in calls like one that was checked, without Python's checks."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import numpy as np

from tkg.backends.cpu.calls import step
from tkg.backends.cpu.library import core
from tkg.backends.cpu.parts import core_dtype, plain
from tkg.contract import dtypes
from tkg.contract.arrays import Array, as_array
from tkg.contract.block import BlockCall
from tkg.contract.cache import as_given
from tkg.contract.projection import ProjectionCall
from tkg.contract.quantization import QuantizationType
from tkg.contract.repeats import Repeat, RepeatCall, RepeatProjection

_VALUES = (type(None), bool, int, float, str, np.number, np.bool_, QuantizationType)
"""Types of the arguments that are no arrays: they never change, and equal ones mean the same."""

_EPS = ("rmsnorm_X_eps", "rmsnorm_QK_pre_rope_eps", "rmsnorm_QK_post_rope_eps")
_READ_IN_ROWS = ("W_qkv", "W_out", "K_cache", "V_cache")
_READ_IN_ANY_DTYPE = ("X", "pos_ids", "kv_cache_update_idx", "active_blocks_table")
"""Arguments whose rows may lie apart, and others that are not turned into float32 first."""
_SMALL_DTYPES = (dtypes.FLOAT32, dtypes.BFLOAT16)


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
        **_types(call, positions if slots is None else slots),
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


def repeat_call(call: BlockCall, arguments: dict[str, Any]) -> RepeatCall | None:
    """See `tkg.contract.repeats`. For a call by positions that updates its caches, of plain arrays
    that the core can read where they are."""
    block, positions, slots = call.block, call.pos_ids, call.slot_ids
    if positions is None or slots is None or slots.shape[1] != call.tokens:
        return None
    norms = (block.input_norm, block.pre_rope_norm, block.post_rope_norm)
    if any(norm and arguments[eps] is None for norm, eps in zip(norms, _EPS, strict=True)):
        return None  # there is to be a warning each time
    if not all(_repeatable(name, value) for name, value in arguments.items()):
        return None
    cos, sin = (None if array is None else array.numpy() for array in (call.cos, call.sin))
    return core().RepeatedCall(
        plain(block).part,
        step(call, call.x.numpy(), cos, sin),
        arguments,
        _widened(arguments),
        **_types(call, slots),
        **_outputs(call.x, call.out_shape()),
    )


def _repeatable(name: str, value: Any) -> bool:
    """Whether the core can tell from an argument of a legal call that another one is like it."""
    if value is None or name not in core().ARRAY_ARGUMENTS:
        return isinstance(value, _VALUES)
    array = as_given(value)
    if not _plain(array) or name in _READ_IN_ROWS:
        return _plain(array)
    if "scale" in name and array.shape[0] != 1:
        return False  # its rows must be equal
    return _contiguous(array) and (array.dtype in _SMALL_DTYPES or name in _READ_IN_ANY_DTYPE)


def _widened(arguments: dict[str, Any]) -> dict[str, int]:
    """How many elements each array has that the core is to read in float32 and that is not."""
    names = set(core().ARRAY_ARGUMENTS).difference(_READ_IN_ROWS, _READ_IN_ANY_DTYPE)
    arrays = {name: as_array(arguments[name]) for name in names}
    return {
        name: math.prod(array.shape)
        for name, array in arrays.items()
        if array is not None and array.dtype == dtypes.BFLOAT16
    }


def _types(call: BlockCall, slots: Array) -> dict[str, Any]:
    """The core's words for what a call's cache, positions and slots are."""
    geometry = call.cache.geometry
    return {
        "blocks": geometry.outer,
        "row_slots": geometry.length,
        "positions_type": _indices(call.pos_ids.dtype),
        "slots_type": _indices(slots.dtype),
    }


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
