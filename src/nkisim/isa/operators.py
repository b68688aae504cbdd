"""What `op=` arguments and their scalar operands may be, and their values.

The legality words raise as those of `rules` do, and are called only while checks are on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from .. import rules, running
from ..dtypes import INTEGERS, ITEMSIZE, NUMPY, PACKED
from ..enums import engine as Engine
from ..enums import reduce_cmd as ReduceCmd
from ..operands import float32, hazard, value
from ..tensor import NkiTensor
from .ops import Op

FREE_AXES = ((), (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))  # by number of dimensions
_NUMBERS = (int, float, np.integer, np.floating)
_FLOAT32 = ("float32",)
FLOATS = frozenset(NUMPY) - INTEGERS - PACKED


def operator(word: str, argument: str, op: Any) -> Op:
    """`op` is an operator that this chip's ALUs have."""
    if not isinstance(op, Op):
        rules.refuse(word, argument, f"must be an operator, got {op!r}", "one such as nl.add")
    if op.alu is None:
        rules.refuse(word, argument, f"{op} is no operator of the ALU", "one such as nl.add")
    if op.generation > running.current().chip.generation:
        rules.only_gen4(f"{word}: {argument}={op}")
    return op


def on_vector(word: str, **operators: Any) -> None:
    """Each is an arithmetic operator of the Vector engine's ALU."""
    for argument, op in operators.items():
        if operator(word, argument, op).bits:
            rules.refuse(word, argument, f"{op} works on bits", "an arithmetic operator")
        if op.engine not in (None, Engine.vector):
            rules.refuse(word, argument, f"{op} runs on {op.engine.name} only", "one of Vector's")


def binary(word: str, **operators: Any) -> None:
    """Each takes two operands."""
    for argument, op in operators.items():
        if operator(word, argument, op).unary:
            rules.refuse(word, argument, f"{op} takes one operand", "an operator of two")


def named(word: str, argument: str, op: Any, names: Collection[str]) -> None:
    """`op` is one of the operators with these names."""
    if not isinstance(op, Op) or op.name not in names:
        wanted = " or ".join(f"nl.{name}" for name in names)
        rules.refuse(word, argument, f"got {op!r}", wanted)


def command(word: str, cmd: Any, *allowed: ReduceCmd) -> None:
    """`reduce_cmd` is one of the commands that the instruction has."""
    if cmd not in allowed:
        wanted = " or ".join(f"nisa.reduce_cmd.{item.name}" for item in allowed)
        rules.refuse(word, "reduce_cmd", f"got {cmd!r}", wanted)


def integers(word: str, **operands: NkiTensor) -> None:
    """Bit operators take integers of one size: bits are not cast."""
    rules.dtype_in(word, INTEGERS, **operands)
    (first, like), *others = operands.items()
    for argument, tensor in others:
        if tensor.itemsize != like.itemsize:
            rules.refuse(
                word, argument, f"dtype {tensor.dtype}, {first} is {like.dtype}; bits are not cast",
                f"integers of {like.itemsize} bytes",
            )  # fmt: skip


def scalar(
    word: str, argument: str, given: Any, like: NkiTensor, allowed: Collection[str] = _FLOAT32
) -> None:
    """A number, or an on-chip column with an element for each partition of `like`."""
    if given.__class__ is NkiTensor:
        rules.tiles(word, **{argument: given})
        rules.per_partition(word, like, **{argument: given})
        rules.dtype_in(word, allowed, **{argument: given})
    elif not isinstance(given, _NUMBERS):
        rules.refuse(
            word, argument, f"must be a number or a tile ({like.shape[0]}, 1), got {given!r}",
            "a Python number or a column",
        )  # fmt: skip


def stage(word: str, number: int, op: Any, given: Any, data: NkiTensor) -> None:
    """One stage `op<number>` with `operand<number>` of a tensor-scalar instruction."""
    names = f"op{number}", f"operand{number}"
    if operator(word, names[0], op).unary:
        if not (given is None or isinstance(given, _NUMBERS) and given == 0):
            rules.refuse(word, names[1], f"{op} takes one operand, got {given!r}", "None or 0")
    elif not op.bits:
        scalar(word, names[1], given, data)
    elif given.__class__ is NkiTensor:
        scalar(word, names[1], given, data, INTEGERS)
        integers(word, data=data, **{names[1]: given})
    elif not isinstance(given, (int, np.integer)):
        rules.refuse(word, names[1], f"{op} works on bits, got {given!r}", "an integer")


def column(word: str, argument: str, given: Any, like: NkiTensor) -> Any:
    """The operand as float32: a number, or an array that broadcasts over the free dimensions."""
    if given.__class__ is not NkiTensor:
        return np.float32(given)
    values = float32(word, argument, given)
    if len(like.shape) == len(given.shape):
        return values
    return values.reshape((-1,) + (1,) * (len(like.shape) - 1))


def apply(op: Op, values: Any, operand: Any, reverse: bool) -> Any:
    """One stage on arrays."""
    if op.unary:
        return op.alu(values)
    return op.alu(operand, values) if reverse else op.alu(values, operand)


def arguments(*given: Any) -> tuple[NkiTensor, ...]:
    """Those that are tensors: what an instruction reads."""
    return tuple([item for item in given if item.__class__ is NkiTensor])


def bits(word: str, argument: str, tensor: NkiTensor) -> np.ndarray:
    """The elements as unsigned integers of their size."""
    return value(word, argument, tensor).view(f"u{tensor.itemsize}")


def bits_column(word: str, argument: str, given: Any, like: NkiTensor) -> Any:
    """An integer operand's bits, which broadcast over `like`'s free dimensions."""
    size = like.itemsize
    if given.__class__ is not NkiTensor:
        return np.dtype(f"u{size}").type(int(given or 0) & ((1 << 8 * size) - 1))
    return bits(word, argument, given).reshape((-1,) + (1,) * (len(like.shape) - 1))


def check_shift(word: str, argument: str, op: Op, count: Any, like: NkiTensor) -> None:
    """A shift by the width of the type or more is not defined."""
    width = 8 * ITEMSIZE[like.dtype]
    if op.name in ("left_shift", "right_shift") and np.max(count) >= width:
        hazard(
            "undefined shift",
            f"{running.site()}: {word}: {argument}: shifts {like.dtype} by {np.max(count)} bits;"
            f" use less than {width}",
        )
