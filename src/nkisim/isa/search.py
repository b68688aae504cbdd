"""GpSimd: largest elements, positions of nonzero elements, bounds of segments."""

from __future__ import annotations

import numpy as np

from .. import rules, running
from ..enums import engine as Engine
from ..operands import float32, value, write, write_bits
from ..record import NkiInstruction
from ..tensor import NkiTensor

_GROUP = 16  # partitions of one GpSimd core
_INT32 = (-(2**31), 2**31 - 1)


def topk(
    val_dst: NkiTensor, idx_dst: NkiTensor, src: NkiTensor, n: int, name: str | None = None
) -> NkiInstruction:
    """The K largest of n bfloat16 elements, ascending, with their indices; K is val_dst's width.

    Element e of a 16-partition group lies in its partition e % 16, column e // 16. Each of the
    16 partitions gets the group's result; of equal elements the first ones are taken. Record: `n`,
    `k`.
    """
    core = running.current()
    if core.checks:
        _topk_legal(val_dst, idx_dst, src, n)
    groups, k = src.shape[0] // _GROUP, rules.elements(val_dst)[1]
    columns = -(-n // _GROUP)
    flat = src if src.ndim == 2 else src.reshape((src.shape[0], -1))
    snake = value("topk", "src", flat[:, :columns]).reshape(groups, _GROUP, columns)
    elements = snake.transpose(0, 2, 1).reshape(groups, -1)[:, :n]
    order = np.argsort(-elements.astype(np.float32), axis=1, kind="stable")[:, :k][:, ::-1]
    values = np.take_along_axis(elements, order, axis=1)
    write_bits(val_dst, np.repeat(values, _GROUP, axis=0))
    write_bits(idx_dst, np.repeat(order.astype(np.uint32), _GROUP, axis=0))
    return core.issue("topk", Engine.gpsimd, (src,), (val_dst, idx_dst), name, n=n, k=k)


def _topk_legal(val_dst: NkiTensor, idx_dst: NkiTensor, src: NkiTensor, n: int) -> None:
    rules.tiles("topk", val_dst=val_dst, idx_dst=idx_dst, src=src)
    rules.in_sbuf("topk", val_dst=val_dst, idx_dst=idx_dst, src=src)
    rules.dtype_in("topk", ("bfloat16",), val_dst=val_dst, src=src)
    rules.dtype_in("topk", ("uint32",), idx_dst=idx_dst)
    rules.same_partitions("topk", src=src, val_dst=val_dst)
    rules.same_elements("topk", val_dst=val_dst, idx_dst=idx_dst)
    partitions, columns = rules.elements(src)
    k = rules.elements(val_dst)[1]
    if partitions % _GROUP:
        rules.refuse("topk", "src", f"{partitions} partitions", f"a multiple of {_GROUP}")
    if not isinstance(n, (int, np.integer)) or not 8 <= n < 65536:
        rules.refuse("topk", "n", f"got {n!r}", "8 to 65535")
    if k > n or k >= 32768:
        rules.refuse("topk", "val_dst", f"K = {k} of n = {n}", "K up to n, less than 32768")
    if columns * _GROUP < n:
        rules.refuse(
            "topk", "src", f"{columns} columns hold {columns * _GROUP} elements", f"n = {n}"
        )


def nonzero_with_count(
    dst: NkiTensor,
    src: NkiTensor,
    index_offset: int = 0,
    padding_val: int = -1,
    name: str | None = None,
) -> NkiInstruction:
    """In partitions 0, 16, 32, ... only: dst = the positions of src's nonzero elements plus
    `index_offset`, then `padding_val`; their count in the last element, which src has not."""
    word = "nonzero_with_count"
    core = running.current()
    if core.checks:
        _nonzero_legal(dst, src, index_offset, padding_val)
    width = rules.elements(src)[1]
    for partition in range(0, src.shape[0], _GROUP):
        row = value(word, "src", src[partition : partition + 1]).reshape(-1)
        found = np.flatnonzero(row)
        result = np.full(width + 1, padding_val, np.int32)
        result[: len(found)] = found + index_offset
        result[width] = len(found)
        write_bits(dst[partition : partition + 1], result)
    return core.issue(word, Engine.gpsimd, (src,), (dst,), name)


def _nonzero_legal(dst: NkiTensor, src: NkiTensor, offset: int, padding: int) -> None:
    word = "nonzero_with_count"
    if running.current().chip.generation < 3:
        rules.refuse(word, "target", running.current().chip.name, "a NeuronCore-v3")
    rules.tiles(word, dst=dst, src=src)
    rules.in_sbuf(word, dst=dst, src=src)
    rules.same_partitions(word, src=src, dst=dst)
    rules.dtype_in(word, ("float32", "int32"), src=src)
    rules.dtype_in(word, ("int32",), dst=dst)
    width = rules.elements(src)[1]
    if rules.elements(dst)[1] != width + 1:
        rules.refuse(
            word, "dst", f"{rules.elements(dst)[1]} elements a partition for src's {width}",
            f"{width + 1}",
        )  # fmt: skip
    for argument, number in (("index_offset", offset), ("padding_val", padding)):
        if not isinstance(number, (int, np.integer)) or not _INT32[0] <= number <= _INT32[1]:
            rules.refuse(word, argument, f"got {number!r}", "an int of 32 bits")


def sequence_bounds(
    dst: NkiTensor, segment_ids: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """For each element of the (1, n) segment ids: dst[0, 0] = where its run of equal ids starts,
    dst[0, 1] = where it ends (exclusive); n and -1 for id 0, which is padding."""
    word = "sequence_bounds"
    core = running.current()
    if core.checks:
        rules.tiles(word, dst=dst, segment_ids=segment_ids)
        rules.in_sbuf(word, dst=dst, segment_ids=segment_ids)
        rules.dtype_in(word, ("float32", "int32"), dst=dst, segment_ids=segment_ids)
        shape = segment_ids.shape
        if len(shape) != 2 or shape[0] != 1 or dst.shape != (1, 2, shape[1]):
            rules.refuse(
                word, "dst", f"shape {list(dst.shape)} for segment_ids {list(shape)}",
                "(1, 2, n) for (1, n)",
            )  # fmt: skip
    ids = float32(word, "segment_ids", segment_ids).reshape(-1)
    edges = np.flatnonzero(np.diff(ids)) + 1
    starts = np.concatenate(([0], edges))
    lengths = np.diff(np.concatenate((starts, [len(ids)])))
    first = np.repeat(starts, lengths)
    bounds = np.stack((first, first + np.repeat(lengths, lengths)))
    bounds[:, ids == 0] = [[len(ids)], [-1]]
    write(dst, bounds.astype(np.float32))
    return core.issue(word, Engine.gpsimd, (segment_ids,), (dst,), name)
