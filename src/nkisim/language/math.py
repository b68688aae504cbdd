"""Element-wise functions of `nki.language`.

Each operator's function is registered with the operator (`isa.ops`), so that `nl.add` serves both
as `op=` and as a function. Results are new SBUF tiles in the shape of the operands, and in `dtype`
if it is given. Functions do not broadcast (NKI release notes): both tiles have one shape, or one
side is a number. Engines: Vector for two operands (GpSimd for exact 32-bit integers), Scalar for
activations, GpSimd for `rsqrt` and `power`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from .. import dtypes, isa, rules
from ..enums import PSUM
from ..enums import engine as Engine
from ..isa.ops import OPS, Op, define
from ..tensor import NkiTensor
from .creation import ndarray
from .move import copy

_PI = float(np.nextafter(np.float32(np.pi), np.float32(0)))  # float32 just below pi
_EXACT = 2.0**23  # float32 from here on are whole numbers


def result_dtype(x: Any, y: Any) -> str:
    """The dtype of a result: of the tile, or of both; of two different ones the float, then the
    wider; float32 for two different 16-bit floats."""
    if not isinstance(y, NkiTensor) or x.dtype == y.dtype:
        return x.dtype
    floats = [t.dtype for t in (x, y) if t.dtype not in dtypes.INTEGERS]
    if len(floats) == 1:
        return floats[0]
    sizes = x.itemsize, y.itemsize
    if sizes[0] == sizes[1]:
        return "float32" if floats else x.dtype
    return x.dtype if sizes[0] > sizes[1] else y.dtype


def _two(name: str, x: Any, y: Any, dtype: Any) -> NkiTensor:
    """One instruction of two operands, of which at least one is a tile."""
    op = OPS[name]
    if isinstance(x, NkiTensor) and isinstance(y, NkiTensor):
        if x.shape != y.shape:
            rules.refuse(
                name, "y", f"shape {list(y.shape)}, but x has {list(x.shape)}: no broadcasting",
                "nl.broadcast_to, or nisa.tensor_scalar for a (P, 1) operand",
            )  # fmt: skip
        tile = ndarray(x.shape, dtype or result_dtype(x, y))
        isa.tensor_tensor(tile, x, y, op)
        return tile
    tensor, number = (x, y) if isinstance(x, NkiTensor) else (y, x)
    if not isinstance(tensor, NkiTensor):
        rules.refuse(name, "x and y", f"got {x!r} and {y!r}", "a tile for one of them at least")
    tile = ndarray(tensor.shape, dtype or tensor.dtype)
    isa.tensor_scalar(tile, tensor, op, number, tensor is y)
    return tile


def _binary(name: str) -> Op:
    def function(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
        return _two(name, x, y, dtype)

    return define(name, function=function)


def _like(name: str, x: Any, dtype: Any) -> NkiTensor:
    rules.tensors(name, x=x)
    return ndarray(x.shape, dtype or x.dtype)


def _activation(name: str) -> Op:
    def function(x: NkiTensor, dtype: Any = None) -> NkiTensor:
        tile = _like(name, x, dtype)
        isa.activation(tile, OPS[name], x)
        return tile

    return define(name, function=function)


def _registered(function: Callable[..., Any]) -> Op:
    return define(function.__name__, function=function)


add = _binary("add")
subtract = _binary("subtract")
multiply = _binary("multiply")
maximum = _binary("maximum")
minimum = _binary("minimum")
equal = _binary("equal")
not_equal = _binary("not_equal")
less = _binary("less")
less_equal = _binary("less_equal")
greater = _binary("greater")
greater_equal = _binary("greater_equal")
bitwise_and = _binary("bitwise_and")
bitwise_or = _binary("bitwise_or")
bitwise_xor = _binary("bitwise_xor")
left_shift = _binary("left_shift")
right_shift = _binary("right_shift")
logical_and = _binary("logical_and")
logical_or = _binary("logical_or")
logical_xor = _binary("logical_xor")

exp = _activation("exp")
log = _activation("log")
sqrt = _activation("sqrt")
tanh = _activation("tanh")
sigmoid = _activation("sigmoid")
relu = _activation("relu")
gelu = _activation("gelu")
gelu_dx = _activation("gelu_dx")
gelu_apprx_tanh = _activation("gelu_apprx_tanh")
gelu_apprx_sigmoid = _activation("gelu_apprx_sigmoid")
gelu_apprx_sigmoid_dx = _activation("gelu_apprx_sigmoid_dx")
silu = _activation("silu")
silu_dx = _activation("silu_dx")
softplus = _activation("softplus")
mish = _activation("mish")
erf = _activation("erf")
erf_dx = _activation("erf_dx")
arctan = _activation("arctan")
sign = _activation("sign")
square = _activation("square")


@_registered
def power(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x ** y of two tiles, on GpSimd. A number as exponent is not supported (NKI release notes)."""
    if not (isinstance(x, NkiTensor) and isinstance(y, NkiTensor)):
        rules.refuse("power", "x and y", f"got {x!r} and {y!r}", "two tiles, or nisa.tensor_scalar")
    return _two("power", x, y, dtype)


@_registered
def abs(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """|x|, on the Vector engine."""
    tile = _like("abs", x, dtype)
    isa.tensor_scalar(tile, x, OPS["abs"], 0.0)
    return tile


@_registered
def rsqrt(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """1 / sqrt(x), on GpSimd: more precise than the activation, and it cannot read PSUM."""
    tile = _like("rsqrt", x, dtype)
    isa.tensor_scalar(tile, x, OPS["rsqrt"], 0.0, engine=Engine.gpsimd)
    return tile


@_registered
def reciprocal(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """1 / x, on the Vector engine."""
    tile = _like("reciprocal", x, dtype)
    isa.reciprocal(tile, x)
    return tile


@_registered
def invert(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Every bit turned over: exclusive or with ones."""
    tile = _like("invert", x, dtype)
    isa.tensor_scalar(tile, x, OPS["bitwise_xor"], -1)
    return tile


@_registered
def logical_not(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """1 where x is 0, 0 where x is 1; other values have no defined result in NKI."""
    tile = _like("logical_not", x, dtype)
    isa.tensor_scalar(tile, x, OPS["logical_xor"], 1.0)
    return tile


def negative(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """-x, on the Vector engine (float32 inside)."""
    return _two("multiply", x, -1.0, dtype)


@_registered
def sin(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """sin(x), with the range reduction that the activation lacks."""
    return _wave("sin", x, 0.0, dtype)


def cos(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """cos(x) = sin(x + pi / 2)."""
    return _wave("cos", x, math.pi / 2, dtype)


def tan(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """sin(x) / cos(x)."""
    over = _wave("tan", x, math.pi / 2, "float32")
    isa.reciprocal(over, over)
    return _two("multiply", _wave("tan", x, 0.0, "float32"), over, dtype or x.dtype)


def _wave(name: str, x: NkiTensor, phase: float, dtype: Any) -> NkiTensor:
    """sin(x + phase): whole turns are taken off first, in two parts to lose nothing by rounding."""
    tile = _like(name, x, dtype)
    turns = ndarray(x.shape, "int32")
    angle = ndarray(x.shape, "float32")
    isa.tensor_scalar(turns, x, OPS["add"], phase, False, OPS["multiply"], 0.5 / math.pi)
    # 6.28125 has few bits: its products with up to 2^15 turns are exact.
    isa.scalar_tensor_tensor(angle, turns, OPS["multiply"], -6.28125, OPS["add"], x)
    rest = -(2 * math.pi - 6.28125)
    isa.scalar_tensor_tensor(angle, turns, OPS["multiply"], rest, OPS["add"], angle)
    if phase:
        isa.tensor_scalar(angle, angle, OPS["add"], phase)
    isa.tensor_scalar(angle, angle, OPS["minimum"], _PI, False, OPS["maximum"], -_PI)
    isa.activation(tile, OPS["sin"], angle)
    return tile


def floor(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The largest whole number that is not above x."""
    return _whole("floor", x, "greater", "subtract", dtype)


def ceil(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The smallest whole number that is not below x."""
    return _whole("ceil", x, "less", "add", dtype)


def trunc(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """x without its fraction."""
    rules.tensors("trunc", x=x)
    if x.dtype in dtypes.INTEGERS:
        return copy(x, dtype)
    sign_of_x = ndarray(x.shape, "float32")
    isa.activation(sign_of_x, OPS["sign"], x)
    size = _whole("trunc", abs(x, "float32"), "greater", "subtract", "float32")
    return _two("multiply", size, sign_of_x, dtype or x.dtype)


def _whole(name: str, x: NkiTensor, wrong: str, fix: str, dtype: Any) -> NkiTensor:
    """The nearest int32, put right by one where it is on the wrong side of x; a float that is whole
    already (from 2^23 on), infinite or NaN stays."""
    rules.tensors(name, x=x)
    if x.dtype in dtypes.INTEGERS:
        return copy(x, dtype)
    source = copy(x, "float32") if x.buffer is PSUM or x.dtype != "float32" else x
    nearest = ndarray(x.shape, "int32")
    off = ndarray(x.shape, "float32")
    result = ndarray(x.shape, "float32")
    small = ndarray(x.shape, "uint8")
    isa.tensor_copy(nearest, source, Engine.vector)
    isa.tensor_tensor(off, nearest, source, OPS[wrong])
    isa.tensor_tensor(result, nearest, off, OPS[fix])
    isa.tensor_scalar(small, source, OPS["abs"], 0.0, False, OPS["less"], _EXACT)
    isa.tensor_copy_predicated(result, source, small, reverse_pred=True)
    return result if (dtype or x.dtype) == "float32" else copy(result, dtype or x.dtype)


@_registered
def abs_max(x: Any, y: Any, dtype: Any = None) -> NoReturn:
    """Only on NeuronCore-v4."""
    rules.only_gen4("nl.abs_max")


@_registered
def abs_min(x: Any, y: Any, dtype: Any = None) -> NoReturn:
    """Only on NeuronCore-v4."""
    rules.only_gen4("nl.abs_min")


def divide(x: Any, y: Any, dtype: Any = None) -> NoReturn:
    """Refused: the hardware does not divide (NKI release notes)."""
    rules.refuse("divide", "x / y", "no engine divides", "nl.multiply(x, nl.reciprocal(y))")


def fmod(x: Any, y: Any, dtype: Any = None) -> NoReturn:
    """Refused: the hardware has no remainder (AWS's simulator has)."""
    rules.refuse(
        "fmod", "x and y", "no engine has a remainder", "reciprocal, nl.trunc, multiply, subtract"
    )


def mod(x: Any, y: Any, dtype: Any = None) -> NoReturn:
    """Refused: the hardware has no remainder (AWS's simulator has)."""
    rules.refuse(
        "mod", "x and y", "no engine has a remainder", "reciprocal, nl.floor, multiply, subtract"
    )


def dropout(x: NkiTensor, rate: Any, dtype: Any = None) -> NkiTensor:
    """x with elements replaced by 0 with probability `rate`, a number or a (P, 1) tile."""
    rules.tensors("dropout", x=x)
    tile = ndarray(x.shape, x.dtype)
    isa.dropout(tile, x, rate)
    return tile if dtype is None or dtypes.canonical(dtype) == x.dtype else copy(tile, dtype)


copy_op = define("copy", function=copy)
