"""GpSimd: generated patterns, and reduction across partitions. It reaches SBUF only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .. import rules, running
from ..dtypes import INTEGERS, NUMPY, cast
from ..enums import engine as Engine
from ..operands import float32, value, write, write_bits
from ..record import NkiInstruction
from ..registers import VirtualRegister, register_value
from ..tensor import NkiTensor
from . import operators
from .ops import OPS, Op

_COMPARISONS = ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
_ACROSS = ("add", "average", "max", "maximum", "bitwise_or", "bitwise_and")

Pattern = Sequence[Sequence[int]]


def iota(
    dst: NkiTensor,
    pattern: Pattern,
    offset: int | VirtualRegister = 0,
    channel_multiplier: int = 0,
    name: str | None = None,
) -> NkiInstruction:
    """dst[p, i, j, ...] = offset + p * channel_multiplier + i * step_i + j * step_j + ..., in
    32-bit integers, cast to dst's dtype. `pattern`: up to 4 pairs [step, count], outer first."""
    core = running.current()
    if core.checks:
        _pattern_legal("iota", pattern, channel_multiplier, dst=dst)
    numbers = _affine(dst.shape[0], pattern, register_value(offset), channel_multiplier)
    if dst.dtype == "int32":
        write_bits(dst, numbers)
    elif dst.dtype in INTEGERS:
        limits = np.iinfo(NUMPY[dst.dtype])
        wide = numbers.astype(np.int64).clip(limits.min, limits.max)
        write_bits(dst, wide.astype(NUMPY[dst.dtype]))
    else:
        write(dst, numbers.astype(np.float32))
    return core.issue("iota", Engine.gpsimd, (), (dst,), name)


def affine_select(
    dst: NkiTensor,
    pattern: Pattern,
    channel_multiplier: int,
    on_true_tile: NkiTensor,
    on_false_value: float,
    cmp_op: Op = OPS["equal"],
    offset: int | VirtualRegister = 0,
    name: str | None = None,
) -> NkiInstruction:
    """dst = on_true_tile where cmp_op(x, 0), on_false_value elsewhere; x as `iota` makes it.

    Elements keep their bits if the dtypes are the same, else they go through float32. Record: `op`.
    """
    word = "affine_select"
    core = running.current()
    if core.checks:
        _pattern_legal(word, pattern, channel_multiplier, dst=dst, on_true_tile=on_true_tile)
        operators.named(word, "cmp_op", cmp_op, _COMPARISONS)
        if isinstance(on_false_value, NkiTensor) or not np.isreal(on_false_value):
            rules.refuse(word, "on_false_value", f"got {on_false_value!r}", "a number")
    numbers = _affine(dst.shape[0], pattern, register_value(offset), channel_multiplier)
    chosen = getattr(np, cmp_op.name)(numbers, 0)
    other = np.float32(on_false_value)
    if on_true_tile.dtype == dst.dtype:
        kept = value(word, "on_true_tile", on_true_tile).reshape(chosen.shape)
        write_bits(dst, np.where(chosen, kept, cast(other.reshape(1), dst.dtype)[0]))
    else:
        kept = float32(word, "on_true_tile", on_true_tile).reshape(chosen.shape)
        write(dst, np.where(chosen, kept, other))
    return core.issue(word, Engine.gpsimd, (on_true_tile,), (dst,), name, op=cmp_op.name)


def _affine(partitions: int, pattern: Pattern, offset: int, multiplier: int) -> np.ndarray:
    """(partitions, elements) in int32, which wraps."""
    row = _row(tuple([(step, count) for step, count in pattern])) + offset
    column = np.arange(partitions, dtype=np.int64)[:, None] * multiplier
    return (column + row).astype(np.int32)


@lru_cache(maxsize=64)
def _row(pattern: tuple[tuple[int, int], ...]) -> np.ndarray:
    numbers = np.zeros(1, np.int64)
    for step, count in pattern:
        numbers = (numbers[:, None] + np.arange(count, dtype=np.int64) * step).reshape(-1)
    return numbers


def _pattern_legal(word: str, pattern: Any, multiplier: Any, **tiles: NkiTensor) -> None:
    rules.tiles(word, **tiles)
    rules.same_elements(word, **tiles)
    rules.in_sbuf(word, **tiles)
    if not isinstance(multiplier, (int, np.integer)):
        rules.refuse(word, "channel_multiplier", f"got {multiplier!r}", "an int")
    try:
        pairs = [(int(step.__index__()), int(count.__index__())) for step, count in pattern]
    except (AttributeError, TypeError, ValueError):
        rules.refuse(word, "pattern", f"got {pattern!r}", "a list of [step, count] pairs of ints")
    total = 1
    for _, count in pairs:
        total *= count
    wanted = rules.elements(tiles["dst"])[1]
    if not 1 <= len(pairs) <= 4 or total != wanted:
        rules.refuse(
            word, "pattern", f"{total} elements a partition in {len(pairs)} dimensions",
            f"1 to 4 dimensions and the {wanted} elements of dst",
        )  # fmt: skip


def tensor_partition_reduce(
    dst: NkiTensor, op: Op, data: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """dst[0] = op over the partitions of data: add, average, max, bitwise_or or bitwise_and.

    Arithmetic is float32; bits are not cast. Record: `op`.
    """
    word = "tensor_partition_reduce"
    core = running.current()
    if core.checks:
        _across_legal(dst, op, data)
    if op.bits:
        write_bits(dst, op.reduce(value(word, "data", data), axis=0))
    else:
        write(dst, op.reduce(float32(word, "data", data), axis=0))
    return core.issue(word, Engine.gpsimd, (data,), (dst,), name, op=op.name)


def _across_legal(dst: NkiTensor, op: Op, data: NkiTensor) -> None:
    word = "tensor_partition_reduce"
    rules.tiles(word, dst=dst, data=data)
    rules.in_sbuf(word, dst=dst, data=data)
    operators.named(word, "op", op, _ACROSS)
    if rules.elements(dst) != (1, rules.elements(data)[1]):
        rules.refuse(
            word, "dst", f"shape {list(dst.shape)} for data {list(data.shape)}",
            "one partition with the elements of one of data's",
        )  # fmt: skip
    if op.bits:
        operators.integers(word, dst=dst, data=data)
        rules.same_dtype(word, dst=dst, data=data)
