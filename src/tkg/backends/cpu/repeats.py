"""Steps like one that was checked, without Python's checks."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tkg.backends.cpu.calls import step
from tkg.backends.cpu.library import core
from tkg.contract.arrays import Array
from tkg.contract.block import BlockCall

WIDE = {"int32": False, "int64": True}
"""Dtypes of positions that the core reads by itself, and whether they have 64 bits."""


def repeat(call: BlockCall, shape: tuple[int, ...]) -> Callable[..., Any] | None:
    """See `tkg.backends.registry`. For plain arrays that the core can read where they are."""
    cache, positions, table = call.cache, call.pos_ids, call.cache.block_table
    small = [call.x, call.cos, call.sin, table, positions]
    if positions is None or positions.dtype not in WIDE:
        return None
    if not all(_plain(array) for array in (cache.k, cache.v)):
        return None
    if not all(array is None or (_plain(array) and _contiguous(array)) for array in small):
        return None
    if call.cos is not None and not call.cos.dtype == call.sin.dtype == "float32":
        return None
    cos, sin = (None if array is None else array.numpy() for array in (call.cos, call.sin))
    library = np if call.x.kind == "numpy" else sys.modules["torch"]
    return core().Repeat(
        call.block.prepared.part,
        step(call, call.x.numpy(), cos, sin),
        call.x.source,
        *cache.sources,
        *(None if array is None else array.source for array in (positions, call.cos, call.sin)),
        wide=WIDE[positions.dtype],
        blocks=cache.geometry.outer,
        make_out=functools.partial(library.empty, shape, dtype=call.x.source.dtype),
    )


def _plain(array: Array) -> bool:
    """Whether the core knows this kind of array: no subclass, no wrapper."""
    if array.kind == "numpy":
        return type(array.source) is np.ndarray
    return type(array.source) is sys.modules["torch"].Tensor


def _contiguous(array: Array) -> bool:
    return array.numpy().flags.c_contiguous
