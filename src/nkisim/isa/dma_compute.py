"""DMA that adds: the sum of several tensors, or a read-modify-write of rows named by indices.

Rules from nki.isa.dma_compute's reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dtypes, dynamic, rules, running
from ..enums import dge_mode as DgeMode
from ..enums import engine as Engine
from ..enums import oob_mode as OobMode
from ..operands import float32, write
from ..record import NkiInstruction
from ..tensor import NkiTensor
from .dma import options, reachable, refuse_overlap, rows_of, written_once
from .ops import OPS, Op

_OP = "dma_compute"
_MOST = 16


def dma_compute(
    dst: NkiTensor,
    srcs: list[NkiTensor],
    reduce_op: Op,
    scales: list[float] | None = None,
    unique_indices: bool = True,
    oob_mode: OobMode = OobMode.error,
    name: str | None = None,
) -> NkiInstruction:
    """dst = the sum of `srcs`, in float32, cast to dst's dtype.

    With an index vector, one source is `dst` itself: dst[index] += src (dst in HBM), or
    dst += src[index] (src in HBM). Record: `mode`, `trigger`, `indirect`, and for "vector" `rows`.
    """
    core = running.current()
    if core.checks:
        _legal(dst, srcs, reduce_op, scales, unique_indices, oob_mode)
    if not any(_vector(tensor) for tensor in (dst, *srcs)):
        if core.checks:
            refuse_overlap(_OP, dst, **{f"srcs[{i}]": src for i, src in enumerate(srcs)})
        write(dst, _sum(dst, srcs))
        return core.issue(
            _OP, Engine.dma, tuple(srcs), (dst,), name,
            mode=DgeMode.none, trigger=Engine.unknown, indirect="none",
        )  # fmt: skip
    other = srcs[0] if _same(srcs[1], dst) else srcs[1]
    table, rows = (_scatter if _vector(dst) else _gather)(dst, other, oob_mode)
    tiles = dynamic.index_tiles(dst, other)
    reads, writes = ((table, other), (table,)) if _vector(dst) else ((dst, table), (dst,))
    return core.issue(
        _OP, Engine.dma, (*reads, *tiles), writes, name,
        mode=DgeMode.swdge, trigger=Engine.unknown, indirect="vector", rows=rows,
    )  # fmt: skip


def _sum(dst: NkiTensor, srcs: list[NkiTensor]) -> np.ndarray:
    total = np.zeros(dst.shape, np.float32)
    for i, src in enumerate(srcs):
        total += float32(_OP, f"srcs[{i}]", src).reshape(dst.shape)
    return total


def _vector(tensor: NkiTensor) -> bool:
    return tensor.dynamic is not None and tensor.dynamic.vector


def _scatter(dst: NkiTensor, src: NkiTensor, oob: OobMode) -> tuple[NkiTensor, int]:
    found = rows_of(_OP, "dst", dst, oob)
    dynamic.refuse_collisions(_OP, "dst", found)
    added = float32(_OP, "srcs", src).reshape(dst.shape)[found.good]
    old = dtypes.to_float32(dynamic.gathered(_OP, "dst", found))
    dynamic.scatter(found, dtypes.cast(old + added, dst.dtype))
    return found.all, len(added)


def _gather(dst: NkiTensor, src: NkiTensor, oob: OobMode) -> tuple[NkiTensor, int]:
    found = rows_of(_OP, "srcs", src, oob)
    added = dtypes.to_float32(dynamic.gathered(_OP, "srcs", found))
    old = float32(_OP, "dst", dst).reshape(src.shape)[found.good]
    dynamic.write_some(dst, dtypes.cast(old + added, dst.dtype), found.good)
    return found.all, len(added)


def _legal(
    dst: NkiTensor, srcs: Any, reduce_op: Any, scales: Any, unique: bool, oob: OobMode
) -> None:
    if not isinstance(srcs, (list, tuple)) or not 1 <= len(srcs) <= _MOST:
        rules.refuse(_OP, "srcs", f"got {srcs!r}", f"a list of 1 to {_MOST} tensors")
    named = {f"srcs[{i}]": src for i, src in enumerate(srcs)}
    reachable(_OP, dst=dst, **named)
    options(_OP, None, oob, DgeMode.none)
    if reduce_op is not OPS["add"]:
        rules.refuse(_OP, "reduce_op", f"{reduce_op!r}; a DMA only adds", "nl.add")
    if scales is not None and (len(scales) != len(srcs) or any(scale != 1.0 for scale in scales)):
        rules.refuse(
            _OP, "scales", f"got {scales!r}; each must be 1.0, one a source", "scales=None"
        )
    for argument, src in named.items():
        if src.size != dst.size:
            rules.refuse(
                _OP,
                argument,
                f"{src.size} elements, but dst has {dst.size}",
                "equal element counts",
            )
    for argument, tensor in {"dst": dst, **named}.items():
        if tensor.dtype in dtypes.PACKED:
            rules.refuse(_OP, argument, f"{tensor.dtype} has no arithmetic", "another dtype")
        if tensor.dynamic is not None and not tensor.dynamic.vector:
            rules.refuse(
                _OP, argument, "has a run-time address", "a static view or an index vector"
            )
    written_once(_OP, "dst", dst)
    if any(_vector(tensor) for tensor in (dst, *srcs)):
        _indirect_legal(dst, srcs, unique)
    elif oob is OobMode.skip:
        rules.refuse(_OP, "oob_mode", "skip, but no operand has an index vector", "oob_mode.error")


def _indirect_legal(dst: NkiTensor, srcs: Any, unique: bool) -> None:
    if not unique:
        rules.refuse(_OP, "unique_indices", "False is not supported", "unique_indices=True")
    if len(srcs) != 2:
        rules.refuse(_OP, "srcs", f"{len(srcs)} sources with an index vector", "exactly 2")
    mine = [src for src in srcs if _same(src, dst)]
    other = [src for src in srcs if not _same(src, dst)]
    if len(mine) != 1:
        rules.refuse(
            _OP, "srcs", "with an index vector one source is dst itself: dst[index] += src or"
            " dst += src[index]", "dst as one of the two sources, same index tile",
        )  # fmt: skip
    if _vector(dst):
        if _vector(other[0]):
            rules.refuse(
                _OP, "srcs", "both operands have an index vector", "one static SBUF source"
            )
        rules.in_sbuf(_OP, srcs=other[0])
    else:
        rules.in_sbuf(_OP, dst=dst)
    indexed = dst if _vector(dst) else other[0]
    assert indexed.dynamic is not None
    if indexed.dynamic.index.shape != (indexed.shape[0], 1):
        rules.refuse(
            _OP, "srcs", f"the index tile has shape {list(indexed.dynamic.index.shape)}",
            f"({indexed.shape[0]}, 1), one index a row",
        )  # fmt: skip


def _same(a: NkiTensor, b: NkiTensor) -> bool:
    """Two views of the same elements, chosen by the same index tile if any."""
    if (a.storage, a.offset, a.shape, a.strides, a.dtype) != (
        b.storage, b.offset, b.shape, b.strides, b.dtype,
    ):  # fmt: skip
        return False
    if a.dynamic is None or b.dynamic is None:
        return a.dynamic is b.dynamic
    return a.dynamic is b.dynamic or _same(a.dynamic.index, b.dynamic.index)
