"""activation and activation_reduce: functions, scale and bias, the running sum, ranges, rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiHazardError, NkiNotImplementedError, NkiValidationError
from nkisim.enums import PSUM
from nkisim.enums import engine as Engine
from nkisim.enums import reduce_cmd as ReduceCmd
from nkisim.isa.ops import OPS
from tests.nkisim.harness import (
    LAYOUTS,
    empty,
    execute,
    fill,
    observe,
    place,
    records,
    tile,
    values_of,
)

RNG = np.random.default_rng(23)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def phi(x: float) -> float:
    """Distribution function of the normal distribution."""
    return math.erfc(-x / math.sqrt(2)) / 2


def density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def log1p_exp(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def slope(function: Callable[[float], float], x: float) -> float:
    """A central difference: independent of the derivative's formula."""
    h = 1e-5
    return (function(x + h) - function(x - h)) / (2 * h)


def gelu_sigmoid(x: float) -> float:
    return x * logistic(1.702 * x)


FORMULAS: dict[str, Callable[[float], float]] = {
    "copy": lambda x: x,
    "square": lambda x: x * x,
    "sigmoid": logistic,
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * phi(x),
    "gelu_apprx_tanh": lambda x: (
        x * logistic(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))  # 1 + tanh u = 2 s(2u)
    ),
    "gelu_apprx_sigmoid": gelu_sigmoid,
    "silu": lambda x: x * logistic(x),
    "tanh": math.tanh,
    "softplus": log1p_exp,
    "mish": lambda x: x * math.tanh(log1p_exp(x)),
    "erf": math.erf,
    "exp": math.exp,
    "log": math.log,
    "sin": math.sin,
    "arctan": math.atan,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: 1 / math.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "abs": abs,
}
DERIVATIVES: dict[str, Callable[[float], float]] = {
    "gelu_dx": FORMULAS["gelu"],
    "gelu_apprx_sigmoid_dx": gelu_sigmoid,
    "silu_dx": FORMULAS["silu"],
    "erf_dx": math.erf,
}
EXPONENTIAL = (
    "sigmoid", "gelu_apprx_tanh", "gelu_apprx_sigmoid", "silu", "softplus", "mish", "exp"
)  # fmt: skip
FLUSH = 2.0**-126  # the smallest normal float32
POSITIVE = ("log", "sqrt", "rsqrt")
NARROW = {"sin": math.pi, "arctan": math.pi / 2}


def activate(values: np.ndarray, op: Any, **more: Any) -> np.ndarray:
    def body():
        d = empty(values.shape)
        nisa.activation(d, op, tile(values), **more)
        return values_of(d)

    return execute(body)


@pytest.mark.parametrize("name", FORMULAS)
def test_each_function_against_its_formula(name: str) -> None:
    wide = np.concatenate([RNG.normal(size=200) * 4, np.geomspace(1e-6, 12, 60)])
    values = np.concatenate([wide, -wide]).astype(np.float32)
    if name in POSITIVE:
        values = abs(values)
    if name in NARROW:
        values = np.clip(values, -NARROW[name] + 1e-3, NARROW[name] - 1e-3).astype(np.float32)
    expected = np.array([FORMULAS[name](float(x)) for x in values])
    result = activate(values[None], OPS[name])[0]
    # Where the value is e^u times something, the rounding of u to float32 costs |u| roundings.
    steps = 4 + (2 * np.abs(np.log(np.abs(expected))) if name in EXPONENTIAL else 0)
    error = np.abs(result.astype(np.float64) - expected)
    assert (error <= steps * 2.0**-24 * np.abs(expected) + FLUSH).all()


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_against_differences(name: str) -> None:
    values = np.concatenate([RNG.normal(size=100) * 3, [0, 1e-4, -1e-4]]).astype(np.float32)
    expected = [slope(DERIVATIVES[name], float(x)) for x in values]
    np.testing.assert_allclose(activate(values[None], OPS[name])[0], expected, rtol=1e-5, atol=1e-6)


def test_special_values() -> None:
    values = np.array([[0, np.inf, -np.inf, np.nan]], np.float32)
    np.testing.assert_array_equal(activate(values, nl.exp), [[1, np.inf, 0, np.nan]])
    np.testing.assert_array_equal(activate(values, nl.sigmoid), [[0.5, 1, 0, np.nan]])
    np.testing.assert_array_equal(activate(values, nl.tanh), [[0, 1, -1, np.nan]])
    np.testing.assert_array_equal(activate(values, nl.erf), [[0, 1, -1, np.nan]])
    np.testing.assert_allclose(
        activate(values, nl.softplus), [[math.log(2), np.inf, 0, np.nan]], rtol=1e-7
    )


def test_sine_beyond_pi_is_the_published_cubic() -> None:
    values = np.array([[9.0, -9.0, 4.0, 3.0]], np.float32)
    cubic = [-(x - math.pi) + (x - math.pi) ** 3 / 6 for x in (9.0, 4.0)]
    expected = [[cubic[0], -cubic[0], cubic[1], math.sin(3.0)]]
    result = activate(values, nl.sin)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert abs(result[0, 0] - 27.65) < 0.01


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_scale_then_bias_over_views(layout: str, dtype: str) -> None:
    """square(data * scale + bias), rounded once."""
    values = RNG.integers(-9, 9, (20, 3, 7)).astype(getattr(ml_dtypes, dtype, dtype))
    scale = RNG.normal(size=(20, 1)).astype(np.float32)
    bias = RNG.integers(-9, 9, (20, 1)).astype(ml_dtypes.bfloat16)

    def body():
        d = place(values.shape, dtype, layout)
        source = fill(place(values.shape, dtype, layout), values)
        nisa.activation(d, nl.square, source, bias=tile(bias), scale=tile(scale))
        return values_of(d)

    scaled = (values.astype(np.float64) * scale[:, :, None]).astype(np.float32)
    inner = (scaled.astype(np.float64) + bias[:, :, None].astype(np.float64)).astype(np.float32)
    exact = (inner.astype(np.float64) ** 2).astype(np.float32)
    if dtype == "int8":
        expected = np.clip(np.rint(exact), -128, 127)
    else:
        expected = exact.astype(values.dtype).astype(np.float32)
    np.testing.assert_array_equal(execute(body).astype(np.float32), expected)


def test_numbers_for_scale_and_bias() -> None:
    values = np.array([[1, 2]], np.float32)
    np.testing.assert_array_equal(activate(values, nl.copy, scale=2.0, bias=0.5), [[2.5, 4.5]])
    np.testing.assert_array_equal(activate(values, nl.copy, scale=3), [[3, 6]])
    np.testing.assert_array_equal(activate(values, nl.copy, bias=-1), [[0, 1]])


def test_from_psum_to_psum_with_other_shape() -> None:
    values = RNG.normal(size=(16, 2, 6)).astype(np.float32)

    def body():
        d = empty((16, 12), buffer=PSUM)
        nisa.activation(d, nl.relu, tile(values, buffer=PSUM))
        return values_of(d)

    np.testing.assert_array_equal(execute(body), np.maximum(values, 0).reshape(16, 12))


# The reduction registers.


def test_activation_reduce_sums_before_the_cast() -> None:
    values = np.array([[1, 2**-9, 2**-9], [3, -1, 0.5]], np.float32)

    def body():
        d, r = empty((2, 3), "bfloat16"), empty((2, 1))
        nisa.activation_reduce(d, nl.copy, tile(values), nl.add, r, bias=1.0)
        return values_of(r)

    np.testing.assert_array_equal(execute(body)[:, 0], [4 + 2**-8, 5.5])


def test_the_sum_is_over_all_free_dimensions() -> None:
    values = RNG.normal(size=(20, 3, 7)).astype(np.float32)

    def body():
        d, r = empty(values.shape), empty((20, 1))
        nisa.activation_reduce(d, nl.square, tile(values), nl.add, r)
        return values_of(r)

    expected = (values.astype(np.float64) ** 2).sum((1, 2))
    np.testing.assert_allclose(execute(body)[:, 0], expected, rtol=1e-6)


def test_the_result_may_alias_the_destination_f04() -> None:
    def body():
        t = tile(np.tile(np.array([1, 2, 3, 4], np.float32), (8, 1)))
        nisa.activation(
            t, nl.copy, t, reduce_op=nl.add, reduce_cmd=ReduceCmd.reset_reduce,
            reduce_res=t[:, 0:1],
        )  # fmt: skip
        return values_of(t)

    np.testing.assert_array_equal(execute(body), np.tile([10, 2, 3, 4], (8, 1)))


def test_idle_leaves_the_registers_f78() -> None:
    a, b = (RNG.integers(-9, 9, (8, 6)).astype(np.float32) for _ in range(2))

    def body():
        d, r = empty((8, 6)), empty((8, 1))
        add: dict[str, Any] = {"reduce_op": nl.add}
        nisa.activation(d, nl.copy, tile(a), reduce_cmd=ReduceCmd.reset_reduce, **add)
        nisa.activation(d, nl.exp, tile(b))
        nisa.activation(d, nl.copy, tile(b), reduce_cmd=ReduceCmd.reduce, reduce_res=r, **add)
        return values_of(r)

    np.testing.assert_array_equal(execute(body)[:, 0], (a + b).sum(1))


def test_reset_sets_to_zero_and_adds_nothing() -> None:
    def body():
        t, r, s = tile(np.ones((8, 6), np.float32)), empty((8, 1)), empty((8, 1))
        nisa.activation(t, nl.copy, t, reduce_cmd=ReduceCmd.reset, reduce_res=r)
        nisa.activation(
            t, nl.copy, t, reduce_op=nl.add, reduce_cmd=ReduceCmd.reduce, reduce_res=s
        )  # fmt: skip
        return values_of(r), values_of(s)

    zero, six = execute(body)
    np.testing.assert_array_equal(zero, np.zeros((8, 1)))
    np.testing.assert_array_equal(six, np.full((8, 1), 6))


def test_registers_of_scalar_and_vector_are_apart() -> None:
    def body():
        t, r = tile(np.ones((8, 6), np.float32)), empty((8, 1))
        add: dict[str, Any] = {"reduce_op": nl.add}
        nisa.activation(t, nl.copy, t, reduce_cmd=ReduceCmd.reset_reduce, **add)
        nisa.tensor_scalar_reduce(t, t, nl.multiply, 1.0, nl.max)
        nisa.activation(t, nl.copy, t, reduce_cmd=ReduceCmd.reduce, reduce_res=r, **add)
        return values_of(r)

    np.testing.assert_array_equal(execute(body), np.full((8, 1), 12))


@pytest.mark.parametrize("cmd", [ReduceCmd.reduce, ReduceCmd.idle])
def test_reading_unset_registers_is_a_hazard(cmd: ReduceCmd) -> None:
    def body():
        t = tile(np.ones((8, 6), np.float32))
        nisa.activation(t, nl.copy, t, reduce_op=nl.add, reduce_cmd=cmd, reduce_res=empty((8, 1)))

    with pytest.raises(NkiHazardError, match="activation: reduce_cmd: continues from"):
        execute(body)


def test_more_lanes_than_were_set_is_a_hazard() -> None:
    """load of 4 lanes leaves the others unknown; reset_reduce sets them all."""

    def body():
        t, r = tile(np.ones((8, 6), np.float32)), empty((8, 1))
        nisa.activation(
            t[0:4], nl.copy, t[0:4], reduce_op=nl.add, reduce_cmd=ReduceCmd.reset_reduce
        )  # fmt: skip
        nisa.activation(
            t, nl.copy, t, reduce_op=nl.add, reduce_cmd=ReduceCmd.reduce, reduce_res=r
        )  # fmt: skip
        return values_of(r)

    np.testing.assert_array_equal(execute(body)[:, 0], [12] * 4 + [6] * 4)


def test_the_records_and_the_engine() -> None:
    def body():
        t, r = tile(np.ones((8, 6), np.float32)), empty((8, 1))
        nisa.activation(t, nl.exp, t, bias=t[:, 0:1], scale=t[:, 1:2], name="softmax")
        nisa.activation_reduce(t, nl.exp, t, nl.add, r)

    first, second, third = records(observe(body))
    assert (first.op, first.name, first.work) == ("activation", "softmax", {"op": "exp"})
    assert (len(first.reads), first.engine) == (3, Engine.scalar)
    assert (second.op, len(second.writes)) == ("activation", 1)
    assert (third.op, len(third.writes), third.engine) == ("activation_read", 1, Engine.scalar)


# Ranges.


@pytest.mark.parametrize(
    ("op", "inside", "outside"),
    [
        (nl.log, 2.0**-64, 2.0**-65),
        (nl.log, 2.0**64, 2.0**65),
        (nl.log, 1.0, -1.0),
        (nl.sin, 3.0, 3.2),
        (nl.arctan, -1.5, -1.6),
        (nl.sqrt, 0.0, 2.0**-117),
        (nl.sqrt, 2.0**118, 2.0**119),
        (nl.rsqrt, 2.0**-87, 0.0),
        (nl.reciprocal, -(2.0**42), 2.0**43),
        (nl.reciprocal, 2.0**-42, 0.0),
    ],
)
def test_inputs_outside_the_range_are_noted(op: Any, inside: float, outside: float) -> None:
    def notes(value: float) -> list[str]:
        def body():
            d = empty((1, 2))
            nisa.activation(d, op, tile(np.array([[value, 1.0]], np.float32)))

        return list(observe(body).report.program.notes.values())

    assert notes(inside) == []
    (text,) = notes(outside)
    assert f"op={op}" in text and "range" in text


def test_the_value_outside_the_range_is_the_exact_one() -> None:
    """F94: the range of sqrt goes to 2^118."""
    tiny = np.array([[2.0**-118, 2.0**118, 0.0]], np.float32)
    np.testing.assert_array_equal(activate(tiny, nl.sqrt), [[2.0**-59, 2.0**59, 0]])
    result = activate(np.array([[0.0, 2.0**-70]], np.float32), nl.log)
    np.testing.assert_allclose(result, [[-np.inf, -70 * math.log(2)]], rtol=1e-6)


# Rules.


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"op": nl.add}, "op: nl.add is no activation function"),
        ({"op": np.exp}, "op: must be an operator"),
        ({"bias": np.ones((8, 6), np.float32)}, r"bias: shape \[8, 6\]"),  # F83
        ({"bias": np.ones((7, 1), np.float32)}, r"bias: shape \[7, 1\]"),
        ({"bias": "x"}, "bias: must be a number"),
        ({"scale": np.ones((8, 1), ml_dtypes.bfloat16)}, "scale: dtype bfloat16"),
        ({"scale": None}, "scale: must be a number"),
        ({"reduce_cmd": ReduceCmd.load_reduce}, "reduce_cmd: got"),
        ({"reduce_cmd": ReduceCmd.reset_reduce}, "reduce_op: got None; use nl.add"),
        ({"reduce_op": nl.maximum}, "reduce_op: got nl.maximum; use nl.add"),
        ({"reduce_res": np.ones((8, 2), np.float32)}, r"reduce_res: shape \[8, 2\]"),
        ({"data": np.ones((8, 7), np.float32)}, r"data: shape \[8, 7\]"),
    ],
)
def test_rules(changes: dict[str, Any], text: str) -> None:
    def body():
        arguments: dict[str, Any] = {"op": nl.exp, "data": np.ones((8, 6), np.float32)} | changes
        made: dict[str, Any] = {
            k: tile(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()
        }
        nisa.activation(empty((8, 6)), **made)

    with pytest.raises(NkiValidationError, match=f"activation: {text}"):
        execute(body)


def test_a_tfloat32_bias_is_refused() -> None:
    def body():
        t = tile(np.ones((8, 6), np.float32))
        nisa.activation(t, nl.exp, t, bias=tile(np.ones((8, 1), np.float32), "tfloat32"))

    with pytest.raises(NkiValidationError, match="bias: dtype tfloat32"):
        execute(body)


def test_prelu_needs_activate2() -> None:
    with pytest.raises(NkiNotImplementedError, match="nl.prelu.*activate2.*v4"):
        activate(np.ones((4, 4), np.float32), nl.prelu)


def test_gen2_takes_a_column_as_bias() -> None:
    def body(bias: Any):
        t = tile(np.ones((4, 4), np.float32))
        nisa.activation(t, nl.reciprocal, t, bias=t[:, 0:1] if bias is None else bias)

    execute(lambda: body(0.5))
    with pytest.raises(NkiValidationError, match="bias: the number 0.5, on a NeuronCore-v2"):
        execute(lambda: body(0.5), target="trn1")
    with pytest.raises(NkiValidationError, match="bias: given with nl.reciprocal"):
        execute(lambda: body(None), target="trn1")
