"""Operators: what `op=` arguments take, what they compute, and which engines have them.

In NKI an operator is a function of `nki.language` (`nl.add`, `nl.exp`, ...). Here that function is
an `Op`: calling it runs the language function; an instruction reads its fields. Arithmetic is
float32; comparisons and logical operators give 1.0 and 0.0. The table is nki.api.shared.rst's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..enums import engine as Engine

Function = Callable[..., np.ndarray]


@dataclass(eq=False)
class Op:
    """One operator.

    `alu`: the element-wise function of the ALU (two operands, or one if `unary`), None if the ALU
    has none; `bits`: it works on bit patterns, given as unsigned integers; `engine`: the only
    engine whose ALU has it, and `generation`: the first NeuronCore whose ALU has it; `reduce`:
    NumPy's reduction (array, axis) and `start` its identity, where the operator may reduce;
    `activation`: the Scalar engine's function of one operand, and `valid` its legal inputs.
    """

    name: str
    alu: Any = None
    unary: bool = False
    bits: bool = False
    engine: Engine | None = None
    generation: int = 2
    reduce: Any = None
    start: float = 0.0
    activation: Any = None
    valid: tuple[float, float] | None = None
    function: Callable[..., Any] | None = field(default=None, repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function of `nki.language` with this name."""
        if self.function is None:
            raise TypeError(f"nl.{self.name} is an operator only; it cannot be called")
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"nl.{self.name}"


OPS: dict[str, Op] = {}


def define(name: str, **fields: Any) -> Op:
    """Add an operator to the table, or fields to the one that is there."""
    op = OPS.setdefault(name, Op(name))
    for field_name, value in fields.items():
        setattr(op, field_name, value)
    return op


def _truth(ufunc: Callable[..., Any]) -> Function:
    """A comparison whose result is 1.0 or 0.0."""
    return lambda a, b: ufunc(a, b).astype(np.float32)


def _fold(ufunc: np.ufunc) -> Function:
    """A reduction from left to right over trailing axes, for a ufunc whose order matters."""

    def reduce(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
        first = axis if isinstance(axis, int) else axis[0]
        return ufunc.reduce(values.reshape(*values.shape[:first], -1), axis=-1)

    return reduce


define("add", alu=np.add, reduce=np.add.reduce, start=0.0)
define("subtract", alu=np.subtract, reduce=_fold(np.subtract), start=0.0)
define("multiply", alu=np.multiply, reduce=np.multiply.reduce, start=1.0)
define("maximum", alu=np.maximum, reduce=np.maximum.reduce, start=-np.inf)
define("minimum", alu=np.minimum, reduce=np.minimum.reduce, start=np.inf)
# As functions `nl.max` and `nl.min` are reductions; as operators they are legal where one reduces.
define("max", reduce=np.maximum.reduce, start=-np.inf)
define("min", reduce=np.minimum.reduce, start=np.inf)
define("average", reduce=np.mean)

for _name in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"):
    define(_name, alu=_truth(getattr(np, _name)))
for _name, _start in (("logical_and", 1.0), ("logical_or", 0.0), ("logical_xor", 0.0)):
    _ufunc = getattr(np, _name)
    define(_name, alu=_truth(_ufunc), reduce=_ufunc.reduce, start=_start)

for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    _ufunc = getattr(np, _name)
    define(_name, alu=_ufunc, bits=True, reduce=_ufunc.reduce)
define("left_shift", alu=np.left_shift, bits=True)
define("right_shift", alu=np.right_shift, bits=True)
define("invert", alu=np.invert, unary=True, bits=True)

define("power", alu=np.power, engine=Engine.gpsimd)
define("abs_max", alu=lambda a, b: np.where(np.abs(a) > np.abs(b), a, b), generation=4)
define("abs_min", alu=lambda a, b: np.where(np.abs(a) < np.abs(b), a, b), generation=4)
define("abs", alu=np.abs, unary=True)
define("square", alu=np.square, unary=True, generation=4)
define("relu", alu=lambda a: np.maximum(a, np.float32(0)), unary=True, generation=4)
define("rsqrt", alu=lambda a: np.float32(1) / np.sqrt(a), unary=True, engine=Engine.gpsimd)
define("reciprocal", alu=lambda a: np.float32(1) / a, unary=True)
define("bypass")
