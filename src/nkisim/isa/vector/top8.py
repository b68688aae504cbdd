"""The eight largest values of each partition: find them, their places, and replace them."""

from __future__ import annotations

import numpy as np

from ... import rules, running
from ...enums import engine as Engine
from ...operands import float32, write, write_bits
from ...record import NkiInstruction
from ...tensor import NkiTensor

_LEAST, _MOST = 8, 16384  # elements per partition (nki.isa.max8)
_INDICES = frozenset(("uint16", "uint32"))


def max8(dst: NkiTensor, src: NkiTensor, name: str | None = None) -> NkiInstruction:
    """dst (P, 8) = the eight largest values of each partition, descending, on the Vector engine."""
    core = running.current()
    if core.checks:
        rules.tiles("max8", dst=dst, src=src)
        _searched("max8", src=src)
        _eight("max8", src, dst=dst)
    values = float32("max8", "src", src).reshape(src.shape[0], -1)
    top = np.partition(values, values.shape[1] - 8, axis=1)[:, -8:]
    top.sort(axis=1)
    write(dst, top[:, ::-1])
    return core.issue("max8", Engine.vector, (src,), (dst,), name)


def nc_find_index8(
    dst: NkiTensor, data: NkiTensor, vals: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """dst (P, 8) uint16 or uint32 = where each of the eight values first stands in its partition of
    `data`; equal values take successive places; all ones where there is none."""
    word = "nc_find_index8"
    core = running.current()
    if core.checks:
        rules.tiles(word, dst=dst, data=data, vals=vals)
        _searched(word, data=data)
        _eight(word, data, dst=dst, vals=vals)
        rules.dtype_in(word, _INDICES, dst=dst)
    places, _ = _match(*_rows(word, data, vals), order=range(8))
    write_bits(dst, places.astype(dst.array.dtype))
    return core.issue(word, Engine.vector, (data, vals), (dst,), name)


def nc_match_replace8(
    dst: NkiTensor,
    data: NkiTensor,
    vals: NkiTensor,
    imm: float,
    dst_idx: NkiTensor | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """dst = data with the first occurrence of each of the eight values replaced by `imm`; `dst_idx`
    receives their places as `nc_find_index8` does, but of equal values the last comes first."""
    word = "nc_match_replace8"
    core = running.current()
    if core.checks:
        _replace_legal(dst, data, vals, imm, dst_idx)
    values, wanted = _rows(word, data, vals)
    places, found = _match(values, wanted, order=range(7, -1, -1))
    write(dst, np.where(found, np.float32(imm), values))
    writes = (dst,)
    if dst_idx is not None:
        write_bits(dst_idx, places.astype(dst_idx.array.dtype))
        writes = (dst, dst_idx)
    return core.issue(word, Engine.vector, (data, vals), writes, name)


def _rows(word: str, data: NkiTensor, vals: NkiTensor) -> tuple[np.ndarray, np.ndarray]:
    count = data.shape[0]
    values = float32(word, "data", data).reshape(count, -1)
    return values, float32(word, "vals", vals).reshape(count, 8)


def _match(values: np.ndarray, wanted: np.ndarray, order: range) -> tuple[np.ndarray, np.ndarray]:
    """The place of each wanted value (-1 if there is none left), given out in the order of columns,
    and which elements were taken."""
    lanes = np.arange(len(values))
    taken = np.zeros(values.shape, bool)
    places = np.full(wanted.shape, -1, np.int64)
    for i in order:
        equal = (values == wanted[:, i : i + 1]) & ~taken
        first = equal.argmax(axis=1)
        hit = equal[lanes, first]
        places[hit, i] = first[hit]
        taken[lanes[hit], first[hit]] = True
    return places, taken


def _searched(word: str, **operands: NkiTensor) -> None:
    """At most three dimensions, 8 to 16384 elements per partition."""
    for argument, tensor in operands.items():
        count = rules.elements(tensor)[1]
        if tensor.ndim > 3 or not _LEAST <= count <= _MOST:
            rules.refuse(
                word, argument, f"shape {list(tensor.shape)}: {count} elements per partition",
                f"at most 3 dimensions, with {_LEAST} to {_MOST} elements",
            )  # fmt: skip


def _eight(word: str, like: NkiTensor, **operands: NkiTensor) -> None:
    for argument, tensor in operands.items():
        if rules.elements(tensor) != (like.shape[0], 8):
            rules.refuse(word, argument, f"shape {list(tensor.shape)}", f"({like.shape[0]}, 8)")


def _replace_legal(
    dst: NkiTensor, data: NkiTensor, vals: NkiTensor, imm: object, dst_idx: NkiTensor | None
) -> None:
    word = "nc_match_replace8"
    rules.tiles(word, dst=dst, data=data, vals=vals)
    rules.same_elements(word, data=data, dst=dst)
    _eight(word, data, vals=vals)
    if not isinstance(imm, (int, float, np.integer, np.floating)):
        rules.refuse(word, "imm", f"must be a number, got {imm!r}", "a Python float")
    if dst_idx is not None:
        rules.tiles(word, dst_idx=dst_idx)
        _eight(word, data, dst_idx=dst_idx)
        rules.dtype_in(word, _INDICES, dst_idx=dst_idx)
