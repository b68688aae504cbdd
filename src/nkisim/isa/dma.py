"""DMA: copies between and within HBM and SBUF, with gather and scatter by run-time indices.

The rules are those of nki.isa.dma_copy's reference and of nki-dge.rst (who makes the descriptors).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dtypes, dynamic, rules, running
from ..dynamic import Rows
from ..enums import PSUM
from ..enums import dge_mode as DgeMode
from ..enums import engine as Engine
from ..enums import oob_mode as OobMode
from ..operands import float32, hazard, value, write, write_bits
from ..record import NkiInstruction
from ..tensor import NkiTensor

_OP = "dma_copy"
_GEN3 = 3


def dma_copy(
    dst: NkiTensor,
    src: NkiTensor,
    priority: int | None = None,
    oob_mode: OobMode = OobMode.error,
    dge_mode: DgeMode = DgeMode.unknown,
    engine: Engine = Engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """dst = src, element by element in row-major order; the shapes may differ, the counts may not.

    Equal dtypes are copied bit for bit, others go through float32. One operand may have an index a
    row (`vector_offset`): a gather or scatter. Record: `mode`, `trigger` (as asked for),
    `indirect`, and for "vector" `rows`, how many were moved.
    """
    core = running.current()
    if core.checks:
        _legal(dst, src, priority, oob_mode, dge_mode, engine)
    given = (dst.dynamic, src.dynamic)
    if given == (None, None):
        if core.checks:
            refuse_overlap(_OP, dst, src=src)
        _move(dst, src)
        return core.issue(
            _OP, Engine.dma, (src,), (dst,), name,
            mode=dge_mode, trigger=engine, indirect="none",
        )  # fmt: skip
    kind = "vector" if any(d is not None and d.vector for d in given) else "scalar"
    run = _gather_or_scatter if kind == "vector" else _at_run_time
    reads, writes, work = run(dst, src, oob_mode)
    return core.issue(
        _OP, Engine.dma, reads, writes, name,
        mode=dge_mode, trigger=engine, indirect=kind, **work,
    )  # fmt: skip


Operands = tuple[NkiTensor, ...]


def _move(dst: NkiTensor, src: NkiTensor) -> None:
    if src.dtype == dst.dtype:
        write_bits(dst, value(_OP, "src", src))
    else:
        write(dst, float32(_OP, "src", src))


def _at_run_time(
    dst: NkiTensor, src: NkiTensor, oob: OobMode
) -> tuple[Operands, Operands, dict[str, Any]]:
    """One run-time index an operand: a copy between the places that they mean now."""
    tiles = dynamic.index_tiles(dst, src)
    target = dynamic.resolve(_OP, "dst", dst, oob)
    source = dynamic.resolve(_OP, "src", src, oob)
    if target is None or source is None:
        return tiles, (), {}
    if running.current().checks:
        refuse_overlap(_OP, target, src=source)
    _move(target, source)
    return (source, *tiles), (target,), {}


def _gather_or_scatter(
    dst: NkiTensor, src: NkiTensor, oob: OobMode
) -> tuple[Operands, Operands, dict[str, Any]]:
    tiles = dynamic.index_tiles(dst, src)
    if src.dynamic is not None and src.dynamic.vector:
        target = dynamic.resolve(_OP, "dst", dst, oob)
        found = rows_of(_OP, "src", src, oob)
        if target is None:
            return tiles, (), {"rows": 0}
        dynamic.refuse_overlap(_OP, found, target)
        moved = dynamic.gathered(_OP, "src", found)
        dynamic.write_some(target, _cast(moved, src.dtype, dst.dtype), found.good)
        return (found.all, *tiles), (target,), {"rows": len(moved)}
    source = dynamic.resolve(_OP, "src", src, oob)
    found = rows_of(_OP, "dst", dst, oob)
    if source is None:
        return tiles, (), {"rows": 0}
    dynamic.refuse_overlap(_OP, found, source)
    dynamic.refuse_collisions(_OP, "dst", found)
    values = value(_OP, "src", source).reshape(dst.shape)[found.good]
    dynamic.scatter(found, _cast(values, src.dtype, dst.dtype))
    return (source, *tiles), (found.all,), {"rows": len(values)}


def rows_of(op: str, argument: str, tensor: NkiTensor, oob: OobMode) -> Rows:
    """The rows that an operand's index tile, one index a partition, names now."""
    assert tensor.dynamic is not None
    index = value(op, f"{argument}'s index", tensor.dynamic.index)
    return dynamic.rows(op, argument, tensor, index.reshape(-1), oob)


def _cast(values: np.ndarray, old: str, new: str) -> np.ndarray:
    return values if old == new else dtypes.cast(dtypes.to_float32(values), new)


def _legal(
    dst: NkiTensor, src: NkiTensor, priority: Any, oob: OobMode, mode: DgeMode, trigger: Engine
) -> None:
    reachable(_OP, dst=dst, src=src)
    options(_OP, priority, oob, mode)
    if dst.shape != src.shape and dst.size != src.size:
        rules.refuse(
            _OP, "src", f"{src.size} elements of shape {list(src.shape)}, but dst has {dst.size} of"
            f" shape {list(dst.shape)}", "the same number of elements",
        )  # fmt: skip
    if dst.dtype != src.dtype and (dst.dtype in dtypes.PACKED or src.dtype in dtypes.PACKED):
        rules.refuse(
            _OP, "src", f"{src.dtype} to {dst.dtype}: packed dtypes have no cast", "view()"
        )
    if mode is DgeMode.hwdge and dst.dtype != src.dtype:
        rules.refuse(
            _OP, "dge_mode", f"hwdge moves bytes, it cannot cast {src.dtype} to {dst.dtype}",
            "the same dtype (view() reinterprets), or another dge_mode",
        )  # fmt: skip
    _trigger_legal(mode, trigger)
    if 0 in dst.strides:
        written_once(_OP, "dst", dst)
    if mode is DgeMode.none and (dst.dynamic is not None or src.dynamic is not None):
        rules.refuse(
            _OP, "dge_mode", "none: prepared descriptors have no run-time index", "another dge_mode"
        )
    for argument, tensor in (("dst", dst), ("src", src)):
        if tensor.dynamic is not None and tensor.dynamic.vector:
            _vector_legal(argument, tensor, mode)
            other = src if tensor is dst else dst
            if other is not tensor and other.dynamic is not None and other.dynamic.vector:
                rules.refuse(_OP, "src", "dst and src both have an index a row", "one of them")


def _trigger_legal(mode: DgeMode, trigger: Engine) -> None:
    if not isinstance(trigger, Engine):
        rules.refuse(
            _OP, "engine", f"must be a member of nki.isa.engine, got {trigger!r}", "engine.sync"
        )
    if trigger is Engine.unknown:
        return
    if mode is not DgeMode.hwdge:
        rules.refuse(
            _OP, "engine", f"{trigger} with {mode}: only hwdge has a choice of engine",
            "dge_mode.hwdge, or leave engine out",
        )  # fmt: skip
    if trigger is not Engine.sync and trigger is not Engine.scalar:
        rules.refuse(
            _OP, "engine", f"{trigger} has no hardware DGE", "engine.sync or engine.scalar"
        )


def _vector_legal(argument: str, tensor: NkiTensor, mode: DgeMode) -> None:
    if mode is not DgeMode.unknown and mode is not DgeMode.swdge:
        rules.refuse(
            _OP, "dge_mode", f"{mode} cannot gather or scatter", "dge_mode.swdge or unknown"
        )
    assert tensor.dynamic is not None
    index = tensor.dynamic.index
    if index.shape != (tensor.shape[0], 1):
        rules.refuse(
            _OP, argument, f"index shape {list(index.shape)} for {tensor.shape[0]} rows",
            f"a tile of shape ({tensor.shape[0]}, 1), one index a row",
        )  # fmt: skip


def reachable(op: str, **operands: Any) -> None:
    """DMA engines reach HBM and SBUF, not PSUM (NKI 0.3.0 release notes)."""
    for argument, tensor in operands.items():
        if tensor.__class__ is not NkiTensor:
            rules.tensors(op, **{argument: tensor})
        if tensor.storage.allocation.buffer is PSUM:
            rules.refuse(
                op, argument, f"{tensor!r} is in PSUM; DMA reaches HBM and SBUF only",
                "tensor_copy between PSUM and SBUF",
            )  # fmt: skip


def options(op: str, priority: Any, oob: OobMode, mode: DgeMode) -> None:
    """The options that all DMA instructions share."""
    if priority is not None:
        rules.only_gen4(f"{op}: priority")
    if oob.__class__ is not OobMode:
        rules.refuse(
            op, "oob_mode", f"must be a member of nki.isa.oob_mode, got {oob!r}", "oob_mode.skip"
        )
    if mode.__class__ is not DgeMode:
        rules.refuse(
            op, "dge_mode", f"must be a member of nki.isa.dge_mode, got {mode!r}", "dge_mode.hwdge"
        )
    if mode is DgeMode.hwdge and running.current().chip.generation < _GEN3:
        rules.refuse(op, "dge_mode", "hwdge needs a NeuronCore-v3 or newer", "dge_mode.unknown")


def written_once(op: str, argument: str, tensor: NkiTensor) -> None:
    """A broadcast destination would be written several times, in no defined order."""
    for dim, (size, step) in enumerate(zip(tensor.shape, tensor.strides, strict=True)):
        if step == 0 and size > 1:
            rules.refuse(
                op, argument, f"{tensor!r}: dim {dim} is broadcast: {size} values for one place",
                "a destination without broadcast",
            )  # fmt: skip


def refuse_overlap(op: str, dst: NkiTensor, **sources: NkiTensor) -> None:
    """One DMA reads and writes in no defined order, so its operands must lie apart. An element that
    is copied or reduced onto itself does no harm."""
    for argument, src in sources.items():
        if src.storage.data is dst.storage.data and not _same_place(dst, src):
            refuse_shared(op, dst, argument, src)


def refuse_shared(op: str, dst: NkiTensor, argument: str, src: NkiTensor) -> None:
    """As `refuse_overlap`, where an element does not stay in its place."""
    a, b = dst.array, src.array
    if np.may_share_memory(a, b) and np.shares_memory(a, b):
        hazard(
            "overlap within one DMA",
            f"{running.site()}: {op}: dst and {argument} share bytes of {src.storage.allocation};"
            " their order is not defined; use a third tensor",
        )


def _same_place(a: NkiTensor, b: NkiTensor) -> bool:
    return (a.storage is b.storage and a.offset == b.offset and a.shape == b.shape
            and a.strides == b.strides and a.dtype == b.dtype)  # fmt: skip
