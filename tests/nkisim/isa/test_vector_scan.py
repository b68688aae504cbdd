"""tensor_tensor_scan and tensor_scalar_cumulative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiHazardError, NkiValidationError
from nkisim.enums import PSUM
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

RNG = np.random.default_rng(13)

SCALAR: dict[str, Callable[[np.float32, np.float32], np.float32]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "maximum": max,
    "minimum": min,
    "max": max,
    "min": min,
    "less": lambda a, b: np.float32(a < b),
}


def scan(a, b, start, op0: str, op1: str, reverse0: bool = False, reverse1: bool = False):
    """The definition, one float32 at a time."""
    first, second = SCALAR[op0], SCALAR[op1]
    result = np.zeros(a.shape, np.float32)
    for p in range(a.shape[0]):
        before = np.float32(start[p])
        for i in range(a.shape[1]):
            x, y = np.float32(a[p, i]), np.float32(b[p, i])
            step = first(before, x) if reverse0 else first(x, before)
            before = second(y, step) if reverse1 else second(step, y)
            result[p, i] = before
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("op0", "op1", "reverse0", "reverse1"),
    [
        ("multiply", "add", False, False),
        ("multiply", "subtract", False, True),
        ("subtract", "subtract", False, False),
        ("subtract", "maximum", True, False),
        ("subtract", "multiply", True, True),
        ("less", "add", False, False),
        ("minimum", "add", False, False),
    ],
)
def test_scan(layout: str, op0: str, op1: str, reverse0: bool, reverse1: bool) -> None:
    """Bit for bit: each step is rounded to float32, in order."""
    a = RNG.normal(size=(20, 3, 7)).astype(np.float32)
    b = RNG.normal(size=(20, 21)).astype(ml_dtypes.bfloat16)
    start = RNG.normal(size=(20, 1)).astype(np.float32)

    def body():
        d = place(a.shape, layout=layout)
        nisa.tensor_tensor_scan(
            d, fill(place(a.shape, layout=layout), a), tile(b), tile(start), OPS[op0], OPS[op1],
            reverse0, reverse1,
        )  # fmt: skip
        return values_of(d)

    expected = scan(a.reshape(20, -1), b, start[:, 0], op0, op1, reverse0, reverse1)
    np.testing.assert_array_equal(execute(body).reshape(20, -1), expected)


def test_scan_in_two_halves_continues_from_the_last_column() -> None:
    a = RNG.uniform(0.5, 1, size=(128, 64)).astype(np.float32)
    b = RNG.normal(size=(128, 64)).astype(np.float32)

    def body():
        d, x, y = empty((128, 64)), tile(a), tile(b)
        nisa.tensor_tensor_scan(d[:, :32], x[:, :32], y[:, :32], 0, nl.multiply, nl.add)
        nisa.tensor_tensor_scan(
            d[:, 32:], x[:, 32:], y[:, 32:], d[:, 31:32], nl.multiply, nl.add
        )  # fmt: skip
        return values_of(d)

    expected = scan(a, b, np.zeros(128), "multiply", "add")
    np.testing.assert_array_equal(execute(body), expected)


def test_the_scan_keeps_float32_between_steps_of_a_narrow_result() -> None:
    ones = np.ones((1, 300), np.float32)

    def body():
        d = empty((1, 300), "bfloat16")
        nisa.tensor_tensor_scan(d, tile(ones), tile(ones), 0.0, nl.multiply, nl.add)
        return values_of(d)

    assert float(execute(body)[0, -1]) == 300  # 256 + 1 is 256 in bfloat16


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data1": ((8, 5), "float32")}, r"data1: shape \[8, 5\]"),
        (
            {"data0": ((8, 6), "float32", PSUM), "data1": ((8, 6), "float32", PSUM)},
            "data0 and data1: are all in PSUM",
        ),
        ({"op0": nl.bitwise_or}, "op0: nl.bitwise_or works on bits"),
        ({"op1": nl.abs}, "op1: nl.abs takes one operand"),
        ({"op0": nl.power}, "op0: nl.power runs on gpsimd only"),
        ({"initial": None}, "initial: must be a number"),
    ],
)
def test_rules_of_scan(changes: dict[str, Any], text: str) -> None:
    def body():
        made: dict[str, Any] = {}
        for name in ("data0", "data1"):
            shape, dtype, *buffer = changes.get(name, ((8, 6), "float32"))
            made[name] = tile(np.ones(shape, np.float32), dtype, *buffer)
        rest: dict[str, Any] = {"initial": 0.0, "op0": nl.multiply, "op1": nl.add} | {
            key: item for key, item in changes.items() if key not in made
        }
        nisa.tensor_tensor_scan(empty((8, 6)), **made, **rest)

    with pytest.raises(NkiValidationError, match=f"tensor_tensor_scan: {text}"):
        execute(body)


# tensor_scalar_cumulative

STARTS = {"add": 0, "subtract": 0, "multiply": 1, "max": -np.inf, "minimum": np.inf}


def cumulate(values, column, start, op0: str, op1: str):
    """reg = op1(op0(x, column), reg), as the stub writes it."""
    result = np.zeros(values.shape, np.float32)
    for p in range(values.shape[0]):
        reg = np.float32(start[p])
        for i in range(values.shape[1]):
            reg = SCALAR[op1](SCALAR[op0](np.float32(values[p, i]), np.float32(column[p])), reg)
            result[p, i] = reg
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op1", STARTS)
def test_cumulative(layout: str, op1: str) -> None:
    values = RNG.normal(size=(20, 3, 7)).astype(np.float32)
    column = RNG.normal(size=(20, 1)).astype(np.float32)

    def body():
        d = place(values.shape, layout=layout)
        source = fill(place(values.shape, layout=layout), values)
        nisa.tensor_scalar_cumulative(d, source, nl.subtract, OPS[op1], tile(column))
        return values_of(d)

    start = np.full(20, STARTS[op1])
    expected = cumulate(values.reshape(20, -1), column[:, 0], start, "subtract", op1)
    np.testing.assert_array_equal(execute(body).reshape(20, -1), expected)


@pytest.mark.parametrize("op1", STARTS)
def test_cumulative_continues_and_loads(op1: str) -> None:
    a, b = (RNG.normal(size=(8, 5)).astype(np.float32) for _ in range(2))
    start = RNG.normal(size=(8, 1)).astype(np.float32)

    def body():
        d, e = empty((8, 5)), empty((8, 5))
        nisa.tensor_scalar_cumulative(
            d, tile(a), nl.multiply, OPS[op1], 2.0, tile(start), ReduceCmd.load_reduce
        )
        nisa.tensor_scalar_cumulative(
            e, tile(b), nl.multiply, OPS[op1], 2.0, reduce_cmd=ReduceCmd.reduce
        )
        return np.concatenate([values_of(d), values_of(e)], axis=1)

    both, twos = np.concatenate([a, b], axis=1), np.full(8, 2)
    expected = cumulate(both, twos, start[:, 0], "multiply", op1)
    np.testing.assert_array_equal(execute(body), expected)


def test_cumulative_and_reduce_share_the_accumulators() -> None:
    def body():
        t, d = tile(np.ones((4, 8), np.float32)), empty((4, 8))
        nisa.tensor_scalar_reduce(d, t, nl.add, 0.0, nl.add)
        nisa.tensor_scalar_cumulative(d, t, nl.add, nl.add, 0.0, reduce_cmd=ReduceCmd.reduce)
        return values_of(d)

    np.testing.assert_array_equal(execute(body), np.tile(np.arange(9, 17), (4, 1)))


def test_cumulative_from_unset_accumulators_is_a_hazard() -> None:
    def body():
        t = tile(np.ones((4, 8), np.float32))
        nisa.tensor_scalar_cumulative(t, t, nl.add, nl.add, 0.0, reduce_cmd=ReduceCmd.reduce)

    with pytest.raises(NkiHazardError, match="tensor_scalar_cumulative: reduce_cmd"):
        execute(body)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"op0": nl.bitwise_or}, "op0: nl.bitwise_or works on bits"),
        ({"op1": nl.logical_or}, "op1: got nl.logical_or"),
        ({"dtype": "int32"}, "dst: dtype int32"),
        ({"imm1": 1.0}, "imm1: 1.0 with"),
        ({"reduce_cmd": ReduceCmd.load_reduce}, "imm1: must be a number"),
        ({"reduce_cmd": ReduceCmd.idle}, "reduce_cmd: got"),
        ({"imm0": None}, "imm0: must be a number"),
    ],
)
def test_rules_of_cumulative(changes: dict[str, Any], text: str) -> None:
    def body():
        t = tile(np.ones((8, 6), np.float32), str(changes.get("dtype", "float32")))
        arguments: dict[str, Any] = {"op0": nl.add, "op1": nl.add, "imm0": 1.0} | changes
        arguments.pop("dtype", None)
        nisa.tensor_scalar_cumulative(t, t, **arguments)

    with pytest.raises(NkiValidationError, match=f"tensor_scalar_cumulative: {text}"):
        execute(body)


def test_records_of_scans() -> None:
    def body():
        t = tile(np.ones((8, 6), np.float32))
        nisa.tensor_tensor_scan(t, t, t, t[:, 0:1], nl.multiply, nl.add)
        nisa.tensor_scalar_cumulative(t, t, nl.multiply, nl.add, 1.0)

    first, second = records(observe(body))
    assert (first.op, len(first.reads)) == ("tensor_tensor_scan", 3)
    assert first.work == second.work == {"op0": "multiply", "op1": "add"}
