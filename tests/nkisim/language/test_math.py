"""Element-wise functions against float64 formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiNotImplementedError, NkiValidationError
from nkisim.isa.ops import Op
from tests.nkisim.harness import execute, observe, records, tile, values_of

BF16 = ml_dtypes.bfloat16
RNG = np.random.default_rng(11)
EPSILON = {"float32": 2.0**-22, "bfloat16": 2.0**-8, "float16": 2.0**-10}


def run(function: Callable[..., Any], *values: Any, **options: Any) -> np.ndarray:
    """The function of these tiles (arrays) and numbers."""

    def body() -> np.ndarray:
        operands = [tile(v) if isinstance(v, np.ndarray) else v for v in values]
        result = function(*operands, **options)
        assert result.buffer is nl.sbuf
        return values_of(result)

    return execute(body)


def numbers(shape: tuple[int, ...] = (6, 4, 8), dtype: Any = np.float32) -> np.ndarray:
    return (RNG.standard_normal(shape) * 3).astype(dtype)


BINARY = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply,
    "maximum": np.maximum, "minimum": np.minimum,
    "equal": np.equal, "not_equal": np.not_equal, "less": np.less, "less_equal": np.less_equal,
    "greater": np.greater, "greater_equal": np.greater_equal,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
@pytest.mark.parametrize("name", BINARY)
def test_two_tiles_and_a_number_on_either_side(name: str, dtype: Any) -> None:
    x, y = numbers(dtype=dtype), numbers(dtype=dtype)
    y[:, :2] = x[:, :2]
    function, formula = getattr(nl, name), BINARY[name]
    half = x.flat[3]
    for got, wanted in [
        (run(function, x, y), formula(x.astype(np.float32), y.astype(np.float32))),
        (run(function, x, float(half)), formula(x.astype(np.float32), np.float32(half))),
        (run(function, float(half), x), formula(np.float32(half), x.astype(np.float32))),
    ]:
        assert got.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(got, wanted.astype(np.float32).astype(dtype))


def test_the_result_takes_the_dtype_asked_for() -> None:
    x = numbers()
    got = run(nl.equal, x, x, dtype=nl.uint8)
    assert got.dtype == np.uint8 and (got == 1).all()
    assert run(nl.exp, x, dtype=nl.bfloat16).dtype == BF16


@pytest.mark.parametrize(
    ("left", "right", "wanted"),
    [
        (np.float32, BF16, np.float32),
        (BF16, np.float32, np.float32),
        (np.int32, BF16, BF16),
        (BF16, np.float16, np.float32),
        (np.int8, np.int32, np.int32),
    ],
)
def test_two_dtypes(left: Any, right: Any, wanted: Any) -> None:
    x, y = numbers(dtype=left), numbers(dtype=right)
    assert run(nl.add, x, y).dtype == np.dtype(wanted)


def test_integers_add_exactly_f93() -> None:
    """F93: 32-bit integers go to GpSimd, which does not round them to float32."""
    x = np.array([[2**24 + 1, -(2**24) - 1, 5]], np.int32)
    y = np.array([[2, -4, 6]], np.int32)
    assert run(nl.add, x, y).tolist() == (x + y).tolist()
    assert run(nl.subtract, x, y).tolist() == (x - y).tolist()


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int16])
def test_bits(dtype: Any) -> None:
    limits = np.iinfo(dtype)
    x = RNG.integers(limits.min, limits.max, (5, 12), endpoint=True).astype(dtype)
    y = RNG.integers(limits.min, limits.max, (5, 12), endpoint=True).astype(dtype)
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
        formula = getattr(np, name)
        np.testing.assert_array_equal(run(getattr(nl, name), x, y), formula(x, y))
        np.testing.assert_array_equal(run(getattr(nl, name), x, 21), formula(x, dtype(21)))
    np.testing.assert_array_equal(run(nl.invert, x), ~x)
    unsigned = x.view(f"u{x.itemsize}")
    wanted = (unsigned << np.uint8(3)).view(dtype)
    np.testing.assert_array_equal(run(nl.left_shift, x, 3), wanted)
    # The right shift is logical: the sign moves in no bits (SHR).
    wanted = (unsigned >> np.uint8(3)).view(dtype)
    np.testing.assert_array_equal(run(nl.right_shift, x, 3), wanted)
    counts = (np.arange(60).reshape(5, 12) % 7).astype(dtype)
    wanted = (unsigned >> counts.view(unsigned.dtype)).view(dtype)
    np.testing.assert_array_equal(run(nl.right_shift, x, counts), wanted)


def test_logical_f37() -> None:
    """F37: logical operators, not bitwise ones."""
    x, y = np.array([[0, 0, 1, 1]], np.float32), np.array([[0, 1, 0, 1]], np.float32)
    assert run(nl.logical_and, x, y).tolist() == [[0, 0, 0, 1]]
    assert run(nl.logical_or, x, y).tolist() == [[0, 1, 1, 1]]
    assert run(nl.logical_xor, x, y).tolist() == [[0, 1, 1, 0]]
    assert run(nl.logical_not, x).tolist() == [[1, 1, 0, 0]]


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


UNARY: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, float]] = {
    "exp": (np.exp, -20, 20),
    "log": (np.log, 0.01, 50),
    "sqrt": (np.sqrt, 0.01, 50),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 0.01, 50),
    "reciprocal": (lambda x: 1 / x, 0.01, 50),
    "tanh": (np.tanh, -4, 4),
    "sigmoid": (sigmoid, -9, 9),
    "relu": (lambda x: np.maximum(x, 0), -4, 4),
    "gelu": (lambda x: x * (1 + erf(x / np.sqrt(2))) / 2, -3, 4),
    "gelu_dx": (
        lambda x: (
            (1 + erf(x / np.sqrt(2))) / 2 + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
        ),
        -0.5,
        4,
    ),
    "gelu_apprx_tanh": (
        lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2, -2, 4,
    ),
    "gelu_apprx_sigmoid": (lambda x: x * sigmoid(1.702 * x), -4, 4),
    "gelu_apprx_sigmoid_dx": (
        lambda x: sigmoid(1.702 * x) * (1 + 1.702 * x * (1 - sigmoid(1.702 * x))), -0.5, 4,
    ),
    "silu": (lambda x: x * sigmoid(x), -4, 4),
    "silu_dx": (lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x))), -1, 4),
    "softplus": (lambda x: np.log1p(np.exp(x)), -4, 9),
    "mish": (lambda x: x * np.tanh(np.log1p(np.exp(x))), -4, 4),
    "erf": (erf, -3, 3),
    "erf_dx": (lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2)), -3, 3),
    "arctan": (np.arctan, -1.5, 1.5),
    "sin": (np.sin, -2000, 2000),
    "cos": (np.cos, -2000, 2000),
    "tan": (np.tan, -1.2, 1.2),
    "abs": (np.abs, -4, 4),
    "square": (np.square, -4, 4),
    "negative": (np.negative, -4, 4),
    "sign": (np.sign, -4, 4),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", UNARY)
def test_one_tile(name: str, dtype: str) -> None:
    formula, low, high = UNARY[name]
    x = RNG.uniform(low, high, (5, 3, 14)).astype(np.float32)
    x = x.astype(BF16 if dtype == "bfloat16" else np.float32)
    if name in ("sign", "relu", "abs"):
        x.flat[0] = 0
    got = run(getattr(nl, name), x).astype(np.float64)
    wanted = formula(x.astype(np.float64))
    # A few roundings of float32 and one of the result; sin and cos: of their argument too.
    absolute = 2.0**-24 * 2000 * 4 if name in ("sin", "cos") else 1e-7
    np.testing.assert_allclose(got, wanted, rtol=4 * EPSILON[dtype], atol=absolute)


def test_sin_of_9_is_reduced() -> None:
    """SHR: the activation alone gives about 27.65; the language function gives the sine."""
    assert abs(run(nl.sin, np.array([[9.0]], np.float32))[0, 0] - math.sin(9)) < 1e-6


def test_power_of_tiles_f80_f58() -> None:
    """F80: 3 ** 2 = 9, on GpSimd; F58: a number as exponent is refused."""
    x, y = np.full((4, 3), 3, np.float32), np.full((4, 3), 2, np.float32)
    assert (run(nl.power, x, y) == 9).all()
    with pytest.raises(NkiValidationError, match="power: x and y: .* use two tiles"):
        run(nl.power, x, 2.0)


def test_rsqrt_runs_on_gpsimd_and_cannot_read_psum_f24() -> None:
    """F24: GpSimd, SBUF only."""

    def body() -> None:
        nl.rsqrt(nl.full((4, 4), 4.0, nl.float32))

    executed = records(observe(body))
    assert executed[-1].engine is nisa.engine.gpsimd
    with pytest.raises(NkiValidationError, match="tensor_scalar: data: .* not in SBUF"):
        execute(lambda: nl.rsqrt(nl.full((4, 4), 4.0, nl.float32, buffer=nl.psum)))


WHOLE = np.array(
    [[0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -1.5, -2.5, 3.2, -3.7, 3.0, -3.0, 8388607.5, -8388607.5,
      8388608.0, 3e9, -3e9, 1e30, np.inf, -np.inf, np.nan, 2.0**31, 0.99999994, -0.99999994]],
    np.float32,
)  # fmt: skip


@pytest.mark.parametrize("name", ["floor", "ceil", "trunc"])
def test_whole_numbers(name: str) -> None:
    """The documented values, halves, and what float32 or int32 cannot hold a fraction of."""
    np.testing.assert_array_equal(run(getattr(nl, name), WHOLE), getattr(np, name)(WHOLE))
    x = (numbers() * 10).astype(BF16)
    wanted = getattr(np, name)(x.astype(np.float32)).astype(BF16)
    np.testing.assert_array_equal(run(getattr(nl, name), x), wanted)
    integers = np.array([[-5, 7, 2**24 + 1]], np.int32)
    assert run(getattr(nl, name), integers).tolist() == integers.tolist()


@pytest.mark.parametrize("name", ["floor", "cos", "exp", "add", "reciprocal"])
def test_psum_operands(name: str) -> None:
    x = np.abs(numbers((4, 6))) + np.float32(0.5)

    def body() -> np.ndarray:
        operand = tile(x, buffer=nl.psum)
        arguments = (operand, 1.0) if name == "add" else (operand,)
        return values_of(getattr(nl, name)(*arguments))

    formula = {"add": lambda v: v + 1, "reciprocal": lambda v: 1 / v}.get(name) or getattr(np, name)
    np.testing.assert_allclose(execute(body), formula(x.astype(np.float64)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["divide", "mod", "fmod"])
def test_the_hardware_does_not_divide_f58(name: str) -> None:
    """F58: no division, no remainder; AWS's simulator runs the latter."""
    x = numbers((4, 4))
    with pytest.raises(NkiValidationError, match=f"{name}: .*reciprocal"):
        run(getattr(nl, name), x, x)


def test_nothing_is_broadcast_f58() -> None:
    """F58: both operands have one shape."""
    with pytest.raises(NkiValidationError, match=r"add: y: shape \[4, 1\], but x has \[4, 6\]"):
        run(nl.add, numbers((4, 6)), numbers((4, 1)))


@pytest.mark.parametrize("name", ["abs_max", "abs_min"])
def test_gen4_functions_f53(name: str) -> None:
    """F53: only on NeuronCore-v4, as a function and as an operator."""
    x = numbers((4, 4))
    with pytest.raises(NkiNotImplementedError, match=f"nl.{name} .*NeuronCore-v4"):
        run(getattr(nl, name), x, x)
    with pytest.raises(NkiNotImplementedError, match="NeuronCore-v4"):
        execute(lambda: nisa.tensor_tensor(tile(x), tile(x), tile(x), getattr(nl, name)))


def test_what_is_no_tile_is_named() -> None:
    with pytest.raises(NkiValidationError, match="add: x and y: got 1 and 2"):
        run(nl.add, 1, 2)
    with pytest.raises(NkiValidationError, match="exp: x: must be a tensor, got 3"):
        run(nl.exp, 3)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_dropout_f91(rate: float) -> None:
    """F91: probability 0 keeps everything, 1 nothing."""
    x = numbers((8, 40))
    np.testing.assert_array_equal(run(nl.dropout, x, rate), x * (1 - rate))


def test_dropout_of_half() -> None:
    x = np.abs(numbers((128, 40))) + 1
    kept = run(nl.dropout, x, 0.5, dtype=nl.float32) != 0
    # 5120 coins: within 6 standard deviations.
    assert abs(kept.mean() - 0.5) < 6 * 0.5 / math.sqrt(kept.size)


def test_operators_are_functions_too() -> None:
    """One object serves as `op=` and as a function."""
    for name in (*BINARY, *UNARY, "power", "copy", "max", "min", "logical_not", "invert"):
        if name not in ("cos", "tan", "negative"):
            assert isinstance(getattr(nl, name), Op) and getattr(nl, name).function is not None
    with pytest.raises(TypeError, match="nl.average is an operator only"):
        nl.average(1)
