"""DMA transpose: the last dimension of the source becomes the partition dimension of an SBUF tile.

Rules from nki.isa.dma_transpose's reference; 2- and 4-byte elements as trainium2_arch.rst ("DMA
Transpose") says.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .. import dynamic, rules, running
from ..enums import dge_mode as DgeMode
from ..enums import engine as Engine
from ..enums import oob_mode as OobMode
from ..operands import value, write_bits
from ..record import NkiInstruction
from ..tensor import NkiTensor
from .dma import options, reachable, refuse_shared, written_once

_OP = "dma_transpose"
_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}
_LAST = 128
_GEN3 = 3


def dma_transpose(
    dst: NkiTensor,
    src: NkiTensor,
    axes: tuple[int, ...] | None = None,
    priority: int | None = None,
    dge_mode: DgeMode = DgeMode.unknown,
    oob_mode: OobMode = OobMode.error,
    name: str | None = None,
) -> NkiInstruction:
    """dst = src with its axes permuted: (1, 0), (2, 1, 0) or (3, 1, 2, 0), bit for bit.

    With an index vector on `src` its rows are gathered first, in the order of
    `index.T.flatten()[:src.shape[0]]`. Record: `mode`, `trigger`, `indirect`, and for "vector"
    `rows`."""
    core = running.current()
    if core.checks:
        _legal(dst, src, axes, priority, (dge_mode, oob_mode))
    order = _AXES[src.ndim]
    tiles = dynamic.index_tiles(src)
    kind, work = "none", {}
    if src.dynamic is None:
        source: NkiTensor | None = src
    elif src.dynamic.vector:
        kind = "vector"
        source, moved = _gather(dst, src, order, oob_mode)
        work["rows"] = moved
    else:
        kind = "scalar"
        source = dynamic.resolve(_OP, "src", src, oob_mode)
    if source is not None and kind != "vector":
        if core.checks:
            refuse_shared(_OP, dst, "src", source)
        write_bits(dst, value(_OP, "src", source).transpose(order))
    return core.issue(
        _OP, Engine.dma, tiles if source is None else (source, *tiles),
        () if source is None else (dst,), name,
        mode=dge_mode, trigger=Engine.unknown, indirect=kind, **work,
    )  # fmt: skip


def _gather(
    dst: NkiTensor, src: NkiTensor, order: tuple[int, ...], oob: OobMode
) -> tuple[NkiTensor, int]:
    """All rows that the indices may name, and how many were moved. Columns of `dst` whose index is
    out of bounds stay as they are."""
    assert src.dynamic is not None
    index = value(_OP, "src's index", src.dynamic.index).T.reshape(-1)[: src.shape[0]]
    found = dynamic.rows(_OP, "src", src, index, oob)
    moved = dynamic.gathered(_OP, "src", found)
    if found.good.all():
        write_bits(dst, moved.transpose(order))
    else:
        mask = np.broadcast_to(found.good, dst.shape)
        dst.array[..., found.good] = moved.transpose(order)
        dynamic.mark_some(dst, mask)
    return found.all, len(moved)


def _legal(
    dst: NkiTensor, src: NkiTensor, axes: Any, priority: Any, modes: tuple[DgeMode, OobMode]
) -> None:
    reachable(_OP, dst=dst, src=src)
    mode, oob = modes
    options(_OP, priority, oob, mode)
    rules.in_sbuf(_OP, dst=dst)
    rules.same_dtype(_OP, src=src, dst=dst)
    if dst.dynamic is not None:
        rules.refuse(_OP, "dst", "has a run-time index", "a static tile")
    order = _AXES.get(src.ndim)
    if order is None:
        rules.refuse(_OP, "src", f"{src.ndim} dimensions", "2, 3 or 4 dimensions")
    if axes is not None and tuple(axes) != order:
        rules.refuse(_OP, "axes", f"{tuple(axes)} for {src.ndim} dimensions", f"axes={order}")
    if src.dynamic is not None and src.dynamic.vector:
        _gather_legal(src, mode)
    else:
        _direct_legal(src, mode)
    if src.itemsize not in (2, 4):
        rules.refuse(
            _OP, "src", f"dtype {src.dtype} of {src.itemsize} bytes", "2 or 4 bytes an element"
        )
    written_once(_OP, "dst", dst)
    if src.dynamic is None and oob is OobMode.skip:
        rules.refuse(_OP, "oob_mode", "skip, but src has no run-time index", "oob_mode.error")
    wanted = tuple(src.shape[axis] for axis in order)
    if dst.shape != wanted:
        rules.refuse(
            _OP,
            "dst",
            f"shape {list(dst.shape)} for src {list(src.shape)}",
            f"shape {list(wanted)}",
        )


def _direct_legal(src: NkiTensor, mode: DgeMode) -> None:
    if mode is DgeMode.swdge:
        rules.refuse(_OP, "dge_mode", f"{mode} transposes only what it gathers", "hwdge or unknown")
    if mode is DgeMode.none and src.dynamic is not None:
        rules.refuse(
            _OP, "dge_mode", "none: prepared descriptors have no run-time index", "another dge_mode"
        )
    if mode is not DgeMode.hwdge:
        return
    _two_bytes_and_narrow(src, "hwdge")
    rows = src.shape[0]
    if src.ndim == 2 and rows != 16:
        rules.refuse(
            _OP, "src", f"{rows} rows with hwdge in 2 dimensions", "16 rows, or 3 dimensions"
        )
    if src.ndim > 2 and (rows not in (1, 2, 4, 8, 16) or rows * src.shape[-2] % 16):
        rules.refuse(
            _OP, "src", f"shape {list(src.shape)} with hwdge: shape[0] must be 1, 2, 4, 8 or 16,"
            " and shape[0] * shape[-2] a multiple of 16", "such a shape, or dge_mode.unknown",
        )  # fmt: skip


def _two_bytes_and_narrow(src: NkiTensor, how: str) -> None:
    if src.itemsize != 2:
        rules.refuse(_OP, "src", f"dtype {src.dtype} with {how}", "a dtype of 2 bytes")
    if src.shape[-1] > _LAST:
        rules.refuse(_OP, "src", f"last dimension {src.shape[-1]} with {how}", f"at most {_LAST}")


def _gather_legal(src: NkiTensor, mode: DgeMode) -> None:
    if running.current().chip.generation < _GEN3:
        rules.refuse(_OP, "src", "the gather form needs a NeuronCore-v3 or newer", "trn2")
    if mode is not DgeMode.unknown and mode is not DgeMode.swdge:
        rules.refuse(_OP, "dge_mode", f"{mode} cannot gather", "dge_mode.swdge or unknown")
    _two_bytes_and_narrow(src, "an index vector")
    if src.shape[0] % 16:
        rules.refuse(_OP, "src", f"{src.shape[0]} gathered rows", "a multiple of 16")
    if src.ndim == 4 and 1 not in src.shape[1:3]:
        rules.refuse(
            _OP, "src", f"shape {list(src.shape)} with an index vector", "shape[1] or [2] of 1"
        )
    assert src.dynamic is not None
    index = src.dynamic.index
    rules.dtype_in(f"{_OP} (index)", ("uint32",), src=index)
    height, width = index.shape
    if (
        height % 16
        or height > 128
        or (width > 1 and height != 128)
        or prod(index.shape) < src.shape[0]
    ):
        rules.refuse(
            _OP, "src", f"index shape {list(index.shape)} for {src.shape[0]} rows: it needs 16 to"
            " 128 partitions, a multiple of 16 (128 with several columns), and an index a row",
            "such an index tile",
        )  # fmt: skip
