"""The operator table: what each operator computes, in which class it is, and who may use it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiNotImplementedError, NkiValidationError
from nkisim.isa.ops import OPS
from tests.nkisim.harness import empty, execute, tile, values_of

RNG = np.random.default_rng(7)
X = np.concatenate([RNG.normal(size=(8, 29)) * 3, np.tile([0.0, -0.0, 1.0], (8, 1))], 1)
X = X.astype(np.float32)
Y = np.concatenate([RNG.normal(size=(8, 29)) * 3, np.tile([0.0, 0.0, 1.0], (8, 1))], 1)
Y = Y.astype(np.float32)

# float64 formulas; + - * of two floats are exactly rounded when rounded from float64.
ARITHMETIC: dict[str, Callable] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "maximum": lambda a, b: (a + b + abs(a - b)) / 2,
    "minimum": lambda a, b: (a + b - abs(a - b)) / 2,
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "logical_and": lambda a, b: (a != 0) & (b != 0),
    "logical_or": lambda a, b: (a != 0) | (b != 0),
    "logical_xor": lambda a, b: (a != 0) ^ (b != 0),
}


def tensor_tensor(a: np.ndarray, b: np.ndarray, op: Any, dtype: str | None = None) -> np.ndarray:
    def body():
        d = empty(a.shape, dtype or str(a.dtype))
        nisa.tensor_tensor(d, tile(a), tile(b), op)
        return values_of(d)

    return execute(body)


def tensor_scalar(a: np.ndarray, op: Any, operand: Any, **more: Any) -> np.ndarray:
    def body():
        d = empty(a.shape, str(a.dtype))
        nisa.tensor_scalar(d, tile(a), op, operand, **more)
        return values_of(d)

    return execute(body)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_of_two_tiles(name: str) -> None:
    expected = ARITHMETIC[name](X.astype(np.float64), Y.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(tensor_tensor(X, Y, OPS[name]), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_with_a_number_and_reversed(name: str) -> None:
    b = np.float32(0.75)
    wide = X.astype(np.float64)
    straight = ARITHMETIC[name](wide, np.float64(b)).astype(np.float32)
    turned = ARITHMETIC[name](np.float64(b), wide).astype(np.float32)
    np.testing.assert_allclose(tensor_scalar(X, OPS[name], 0.75), straight, rtol=1e-7)
    result = tensor_scalar(X, OPS[name], 0.75, reverse0=True)
    np.testing.assert_allclose(result, turned, rtol=1e-7)


def test_power_is_exact_for_small_integers_f80() -> None:
    base = np.array([[3, 2, -2, 10]], np.float32)
    np.testing.assert_array_equal(
        tensor_tensor(base, np.array([[2, 10, 3, 0]], np.float32), nl.power), [[9, 1024, -8, 1]]
    )
    np.testing.assert_array_equal(tensor_scalar(base, nl.power, 2.0), [[9, 4, 4, 100]])


def test_unary_operators_f80() -> None:
    x = np.array([[-1, 2, 0.25, -8]], np.float32)
    np.testing.assert_array_equal(tensor_scalar(x, nl.abs, 0), [[1, 2, 0.25, 8]])
    np.testing.assert_array_equal(tensor_scalar(x, nl.abs, None), [[1, 2, 0.25, 8]])
    np.testing.assert_array_equal(tensor_scalar(abs(x), nl.rsqrt, 0.0)[0, 2], 2)
    np.testing.assert_array_equal(tensor_scalar(x, nl.reciprocal, 0), [[-1, 0.5, 4, -0.125]])


BITS: dict[str, Callable] = {
    "bitwise_and": lambda a, b: a & b,
    "bitwise_or": lambda a, b: a | b,
    "bitwise_xor": lambda a, b: a ^ b,
}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
@pytest.mark.parametrize("name", BITS)
def test_bit_operators_keep_every_bit(name: str, dtype: str) -> None:
    limits = np.iinfo(dtype)
    a = RNG.integers(limits.min, limits.max, (4, 9), dtype, endpoint=True)
    b = RNG.integers(limits.min, limits.max, (4, 9), dtype, endpoint=True)
    expected = [
        [BITS[name](int(x), int(y)) for x, y in zip(*rows, strict=True)]
        for rows in zip(a, b, strict=True)
    ]
    np.testing.assert_array_equal(tensor_tensor(a, b, OPS[name]), expected)


@pytest.mark.parametrize(("dtype", "width"), [("int8", 8), ("uint16", 16), ("int32", 32)])
def test_shifts_are_logical(dtype: str, width: int) -> None:
    limits = np.iinfo(dtype)
    a = RNG.integers(limits.min, limits.max, (2, 16), dtype, endpoint=True)
    n = RNG.integers(0, width, (2, 16)).astype(dtype)
    mask = (1 << width) - 1

    def signed(bits: int) -> int:
        return bits - (1 << width) if bits > limits.max else bits

    pairs = [list(zip(*rows, strict=True)) for rows in zip(a.tolist(), n.tolist(), strict=True)]
    left = [[signed((x << s) & mask) for x, s in row] for row in pairs]
    right = [[signed((x & mask) >> s) for x, s in row] for row in pairs]
    np.testing.assert_array_equal(tensor_tensor(a, n, nl.left_shift), left)
    np.testing.assert_array_equal(tensor_tensor(a, n, nl.right_shift), right)


def test_right_shift_of_a_negative_number() -> None:
    """int32 -8 >> 1 brings in a zero."""
    result = tensor_scalar(np.array([[-8]], np.int32), nl.right_shift, 1)
    np.testing.assert_array_equal(result, [[0x7FFFFFFC]])


def test_two_bit_stages_and_patterns_beyond_the_signed_range() -> None:
    a = np.array([[-1, 0x12345678, 0]], np.int32)
    result = tensor_scalar(
        a, nl.bitwise_and, 0xFFFF0000, op1=nl.right_shift, operand1=16
    )  # fmt: skip
    np.testing.assert_array_equal(result, [[0xFFFF, 0x1234, 0]])
    np.testing.assert_array_equal(tensor_scalar(a, nl.invert, None), ~a)


def test_a_shift_by_the_width_is_a_hazard() -> None:
    with pytest.raises(NkiValidationError, match="operand0: shifts int8 by 8 bits"):
        tensor_scalar(np.array([[1]], np.int8), nl.left_shift, 8)
    with pytest.raises(NkiValidationError, match="data2: shifts uint32 by 33 bits"):
        tensor_tensor(np.array([[1, 1]], np.uint32), np.array([[3, 33]], np.uint32), nl.right_shift)


@pytest.mark.parametrize("name", ["square", "relu"])
def test_gen4_operators_are_refused_f54(name: str) -> None:
    with pytest.raises(NkiNotImplementedError, match=f"tensor_scalar: op0=nl.{name}.*v4"):
        tensor_scalar(X, OPS[name], 0)


@pytest.mark.parametrize("name", ["abs_max", "abs_min"])
def test_gen4_binary_operators_are_refused_f53(name: str) -> None:
    with pytest.raises(NkiNotImplementedError, match=f"op=nl.{name}.*v4"):
        tensor_tensor(X, Y, OPS[name])
    with pytest.raises(NkiNotImplementedError, match=f"op0=nl.{name}.*v4"):
        tensor_scalar(X, OPS[name], 1.0)


def test_absolute_maximum_keeps_the_sign_and_ties_take_the_second_f53() -> None:
    a, b = np.array([3, -3, -3, 1], np.float32), np.array([-2, 2, 3, -4], np.float32)
    np.testing.assert_array_equal(OPS["abs_max"].alu(a, b), [3, -3, 3, -4])
    np.testing.assert_array_equal(OPS["abs_min"].alu(a, b), [-2, 2, 3, 1])


@pytest.mark.parametrize("op", [np.add, "add", None, 1, nl.exp, nl.divide])
def test_what_is_no_alu_operator_is_refused(op: Any) -> None:
    with pytest.raises(NkiValidationError, match="tensor_tensor: op: "):
        tensor_tensor(X, Y, op)


def test_a_unary_operator_is_no_binary_one() -> None:
    with pytest.raises(NkiValidationError, match="op: nl.abs takes one operand"):
        tensor_tensor(X, Y, nl.abs)
    with pytest.raises(NkiValidationError, match="operand0: nl.abs takes one operand, got 3.0"):
        tensor_scalar(X, nl.abs, 3.0)


def test_max_and_min_are_operators_of_reductions() -> None:
    def body():
        d = empty((8, 1))
        nisa.tensor_reduce(d, nl.max, tile(X), axis=1)
        e = empty((8, 1))
        nisa.tensor_reduce(e, nl.min, tile(X), axis=1)
        return values_of(d), values_of(e)

    highest, lowest = execute(body)
    np.testing.assert_array_equal(highest, [[max(row)] for row in X])
    np.testing.assert_array_equal(lowest, [[min(row)] for row in X])


def test_infinities_and_nan_are_values() -> None:
    a = np.array([[math.inf, math.nan, 1e38, 0]], np.float32)
    result = tensor_scalar(a, nl.multiply, 10.0, op1=nl.add, operand1=-math.inf)
    np.testing.assert_array_equal(
        result, np.array([[math.nan, math.nan, math.nan, -math.inf]], np.float32)
    )
