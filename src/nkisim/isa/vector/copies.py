"""Copies between on-chip tiles, and filling a tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import dynamic, rules, running
from ...dtypes import INTEGERS, NUMPY, PACKED
from ...enums import engine as Engine
from ...operands import float32, mark, unwritten, value, write, write_bits
from ...record import NkiInstruction
from ...tensor import NkiTensor
from .. import operators

_QUADRANT = 32  # partitions
_LEAVE = 255
_PREDICATES = frozenset(("uint8", "uint16", "uint32", "bool"))


def tensor_copy(
    dst: NkiTensor, src: NkiTensor, engine: Engine = Engine.unknown, name: str | None = None
) -> NkiInstruction:
    """dst = src on the Vector (default), Scalar or GpSimd engine: bit for bit where the dtypes are
    the same, through float32 where not. Either view may have one run-time index (not a vector).

    Work: `dynamic`, whether a run-time index was resolved.
    """
    core = running.current()
    indices: dynamic.Index = ()
    at_run_time = dst.dynamic is not None or src.dynamic is not None
    if at_run_time:
        indices = dynamic.index_tiles(dst, src)
        dst, src = _static("dst", dst), _static("src", src)
    if core.checks:
        _tensor_copy_legal(dst, src, engine)
    if src.dtype == dst.dtype:
        write_bits(dst, value("tensor_copy", "src", src))
    else:
        write(dst, float32("tensor_copy", "src", src))
    engine = Engine.vector if engine is Engine.unknown else engine
    return core.issue(
        "tensor_copy", engine, (src, *indices), (dst,), name, dynamic=at_run_time
    )  # fmt: skip


def _static(argument: str, tensor: NkiTensor) -> NkiTensor:
    found = dynamic.resolve("tensor_copy", argument, tensor)
    assert found is not None
    return found


def _tensor_copy_legal(dst: NkiTensor, src: NkiTensor, engine: Engine) -> None:
    rules.tiles("tensor_copy", dst=dst, src=src)
    rules.same_elements("tensor_copy", dst=dst, src=src)
    if engine is not Engine.unknown:
        on_gen3 = running.current().chip.generation >= 3
        allowed = (Engine.vector, Engine.gpsimd) + ((Engine.scalar,) if on_gen3 else ())
        rules.choose("tensor_copy", engine, allowed)
        rules.reach("tensor_copy", engine, dst=dst, src=src)


def memset(
    dst: NkiTensor, value: Any, engine: Engine = Engine.unknown, name: str | None = None
) -> NkiInstruction:
    """Fill dst with a number, on the Vector (default) or GpSimd engine. An integer tile takes an
    integer of its range; packed dtypes take 0 only."""
    core = running.current()
    if core.checks:
        _memset_legal(dst, value, engine)
    if dst.dtype in INTEGERS or dst.dtype in PACKED:
        dst.array[...] = int(value)
        mark(dst)
    else:
        write(dst, value)
    engine = Engine.vector if engine is Engine.unknown else engine
    return core.issue("memset", engine, (), (dst,), name, value=value)


def _memset_legal(dst: NkiTensor, number: Any, engine: Engine) -> None:
    rules.tiles("memset", dst=dst)
    rules.reach("memset", rules.choose("memset", engine, (Engine.vector, Engine.gpsimd)), dst=dst)
    dtype = dst.dtype
    if dtype in PACKED:
        if number != 0:
            rules.refuse("memset", "value", f"{number!r} for the packed {dtype}", "0")
    elif dtype in INTEGERS:
        if not isinstance(number, (int, np.integer, np.bool_)):
            rules.refuse("memset", "value", f"{number!r} for {dtype}", "an integer")
        limits = np.iinfo(NUMPY[dtype])
        if not limits.min <= number <= limits.max:
            rules.refuse(
                "memset", "value", f"{number} for {dtype}", f"{limits.min} to {limits.max}"
            )
    elif not isinstance(number, (int, float, np.integer, np.floating)):
        rules.refuse("memset", "value", f"must be a number, got {number!r}", "a Python number")


def tensor_copy_predicated(
    dst: NkiTensor,
    src: float | NkiTensor,
    predicate: NkiTensor,
    reverse_pred: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """dst = src where the predicate is not 0 (is 0, if reversed), on the Vector engine; the other
    elements stay. `src` is a tile of dst's dtype, or a number."""
    word = "tensor_copy_predicated"
    core = running.current()
    if core.checks:
        _predicated_legal(dst, src, predicate)
    chosen = value(word, "predicate", predicate).reshape(dst.shape) != 0
    if reverse_pred:
        chosen = ~chosen
    if isinstance(src, NkiTensor):
        np.copyto(dst.array, value(word, "src", src).reshape(dst.shape), where=chosen)
    else:
        dtype = dst.dtype
        number = int(src) if dtype in INTEGERS else np.float32(src)
        np.copyto(dst.array, np.array(number).astype(NUMPY[dtype]), where=chosen)
    dynamic.mark_some(dst, chosen)
    reads = operators.arguments(src, predicate, dst)
    return core.issue(word, Engine.vector, reads, (dst,), name)


def _predicated_legal(dst: NkiTensor, src: Any, predicate: NkiTensor) -> None:
    word = "tensor_copy_predicated"
    rules.tiles(word, dst=dst, predicate=predicate)
    rules.same_elements(word, dst=dst, predicate=predicate)
    rules.dtype_in(word, _PREDICATES, predicate=predicate)
    if src.__class__ is NkiTensor:
        rules.tiles(word, src=src)
        rules.same_elements(word, dst=dst, src=src)
        rules.same_dtype(word, dst=dst, src=src)
        rules.not_both_psum(word, src=src, predicate=predicate)
    elif dst.dtype in INTEGERS:
        if not isinstance(src, (int, np.integer)):
            rules.refuse(word, "src", f"{src!r} for {dst.dtype}", "an integer")
    elif not isinstance(src, (int, float, np.integer, np.floating)):
        rules.refuse(word, "src", f"must be a number or a tile, got {src!r}", "a Python number")


def nc_stream_shuffle(
    dst: NkiTensor, src: NkiTensor, shuffle_mask: Sequence[int], name: str | None = None
) -> NkiInstruction:
    """In each quadrant of 32 partitions dst[i] = src[shuffle_mask[i]], bit for bit, on the Vector
    engine; 255 leaves a partition of dst as it is. In place is allowed. Work: `moved`, how many
    partitions are written."""
    word = "nc_stream_shuffle"
    core = running.current()
    mask = tuple(shuffle_mask)
    if core.checks:
        _shuffle_legal(dst, src, mask)
    chosen = [i for i in range(dst.shape[0]) if mask[i % _QUADRANT] != _LEAVE]
    places = [i // _QUADRANT * _QUADRANT + mask[i % _QUADRANT] for i in chosen]
    if core.checks:
        _shuffle_inside(src, places)
    rows = _partitions(src, places).reshape(len(chosen), *dst.shape[1:])
    everything = len(chosen) == dst.shape[0]
    if everything:
        write_bits(dst, rows)
    else:
        dst.array[chosen] = rows
        moved = np.zeros(dst.shape, bool)
        moved[chosen] = True
        dynamic.mark_some(dst, moved)
    reads = (src,) if everything else (src, dst)
    return core.issue(word, Engine.vector, reads, (dst,), name, moved=len(chosen))


def _partitions(src: NkiTensor, places: list[int]) -> np.ndarray:
    """A copy of these partitions; only they must have been written."""
    if src.storage.shadow is not None:
        state = src.state[places]
        if not state.all():
            unwritten("nc_stream_shuffle", "src", src, state)
    return src.array[places]


def _shuffle_legal(dst: NkiTensor, src: NkiTensor, mask: tuple[int, ...]) -> None:
    word = "nc_stream_shuffle"
    rules.tiles(word, dst=dst, src=src)
    rules.same_dtype(word, dst=dst, src=src)
    if rules.elements(dst)[1] != rules.elements(src)[1]:
        rules.refuse(
            word, "dst", f"shape {list(dst.shape)} against {list(src.shape)} of src",
            "the same elements per partition",
        )  # fmt: skip
    if len(mask) != _QUADRANT or any(not (0 <= i < _QUADRANT or i == _LEAVE) for i in mask):
        rules.refuse(
            word, "shuffle_mask", f"got {list(mask)}", "32 integers, each 0 to 31 or 255 (leave)"
        )
    active = max(dst.shape[0], src.shape[0])
    for argument, tensor in (("dst", dst), ("src", src)):
        address = tensor.storage.allocation.address
        start = tensor.access.box[0] + (address[0] if address else 0)
        legal = rules.start_partitions(active)
        if start not in legal:
            rules.refuse(
                word, argument, f"{tensor!r} starts at partition {start}; {active} active"
                f" partitions start at {' or '.join(map(str, legal))}", "a legal start partition",
            )  # fmt: skip


def _shuffle_inside(src: NkiTensor, places: list[int]) -> None:
    beyond = [place for place in places if place >= src.shape[0]]
    if beyond:
        rules.refuse(
            "nc_stream_shuffle", "shuffle_mask",
            f"reads partition {beyond[0]} of src, which has {src.shape[0]}", "255 or one inside",
        )  # fmt: skip
