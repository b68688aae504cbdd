"""range_select, select_reduce."""

from __future__ import annotations

import operator
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

RNG = np.random.default_rng(17)
FILL = -3.4028234663852886e38  # the most negative float32

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "equal": operator.eq,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}


def selected(values, bounds, ops: tuple[str, str], start: int) -> np.ndarray:
    result = np.full(values.shape, FILL, np.float32)
    for p in range(values.shape[0]):
        for i in range(values.shape[1]):
            low = COMPARISONS[ops[0]](start + i, bounds[0][p, 0])
            if low and COMPARISONS[ops[1]](start + i, bounds[1][p, 0]):
                result[p, i] = values[p, i]
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "ops", [("greater_equal", "less"), ("greater", "less_equal"), ("equal", "greater")]
)
def test_range_select(layout: str, ops: tuple[str, str]) -> None:
    values = RNG.normal(size=(20, 3, 7)).astype(ml_dtypes.bfloat16)
    low = RNG.integers(30, 45, (20, 1)).astype(np.float32)
    high = RNG.integers(35, 60, (20, 1)).astype(np.float32)

    def body():
        d, r = place(values.shape, layout=layout), empty((20, 1))
        nisa.range_select(
            d, fill(place(values.shape, "bfloat16", layout), values), OPS[ops[0]], OPS[ops[1]],
            tile(low), tile(high), reduce_res=r, range_start=32,
        )  # fmt: skip
        return values_of(d), values_of(r)

    expected = selected(values.reshape(20, -1), (low, high), ops, 32)
    result, most = execute(body)
    np.testing.assert_array_equal(result.reshape(20, -1), expected)
    np.testing.assert_array_equal(most[:, 0], [max(row) for row in expected])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e5m2", "float8_e4m3"])
def test_the_fill_is_infinite_in_narrow_floats_and_the_maximum_is_not_f79(dtype: str) -> None:
    def body():
        d, r = empty((1, 3), dtype), empty((1, 1))
        zero = tile(np.zeros((1, 1), np.float32))
        source = tile(np.ones((1, 3), np.float32))
        nisa.range_select(d, source, nl.less, nl.less, zero, zero, reduce_res=r)
        return values_of(d).astype(np.float32), values_of(r)

    result, most = execute(body)
    np.testing.assert_array_equal(result, [[-np.inf] * 3])
    np.testing.assert_array_equal(most, np.array([[FILL]], np.float32))


def test_range_select_over_two_tiles_f61() -> None:
    a, b = (RNG.normal(size=(8, 6)).astype(np.float32) for _ in range(2))

    def body():
        d, r = empty((8, 6)), empty((8, 1))
        low, high = tile(np.zeros((8, 1), np.float32)), tile(np.full((8, 1), 9, np.float32))
        bounds = (nl.greater_equal, nl.less, low, high)
        nisa.range_select(d, tile(a), *bounds, reduce_cmd=ReduceCmd.reset_reduce)
        nisa.range_select(
            d, tile(b), *bounds, reduce_cmd=ReduceCmd.reduce, reduce_res=r, range_start=6
        )
        return values_of(r)

    both = np.concatenate([a, b[:, :3]], axis=1)
    np.testing.assert_array_equal(execute(body)[:, 0], [max(row) for row in both])


@pytest.mark.parametrize(
    "value", [FILL, float(np.finfo(np.float32).min), np.float32(FILL), -3.4028235e38]
)
def test_the_fill_may_be_given_as_a_python_float_f10(value: float) -> None:
    def body():
        d, zero = empty((1, 2)), tile(np.zeros((1, 1), np.float32))
        source = tile(np.ones((1, 2), np.float32))
        nisa.range_select(d, source, nl.less, nl.less, zero, zero, on_false_value=value)
        return values_of(d)

    np.testing.assert_array_equal(execute(body), np.array([[FILL, FILL]], np.float32))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"comp_op0": nl.not_equal}, "comp_op0: got nl.not_equal"),
        ({"comp_op1": nl.add}, "comp_op1: got nl.add"),
        ({"bound0": ((8, 1), "bfloat16")}, "bound0: dtype bfloat16"),
        ({"bound1": ((8, 2), "float32")}, r"bound1: shape \[8, 2\]"),
        ({"on_true_tile": ((8, 6), "int16")}, "on_true_tile: dtype int16"),
        ({"on_false_value": -np.inf}, "on_false_value: got -inf"),
        ({"on_false_value": 0.0}, "on_false_value: got 0.0"),
        ({"range_start": 2**24 - 5}, "range_start: .*2\\^24"),
        ({"range_start": 1.5}, "range_start: must be known"),
        ({"reduce_op": nl.add}, "reduce_op: got nl.add"),
        ({"reduce_cmd": ReduceCmd.load_reduce}, "reduce_cmd: got"),
        ({"reduce_res": ((8, 2), "float32")}, r"reduce_res: shape \[8, 2\]"),
        ({"reduce_res": ((8, 1), "int32")}, "reduce_res: dtype int32"),
    ],
)
def test_rules_of_range_select(changes: dict[str, Any], text: str) -> None:
    def body():
        arguments: dict[str, Any] = {
            "on_true_tile": ((8, 6), "float32"), "comp_op0": nl.less, "comp_op1": nl.less,
            "bound0": ((8, 1), "float32"), "bound1": ((8, 1), "float32"),
        } | changes  # fmt: skip
        made: dict[str, Any] = {
            key: tile(np.ones(item[0], np.float32), item[1]) if isinstance(item, tuple) else item
            for key, item in arguments.items()
        }
        nisa.range_select(empty((8, 6)), **made)

    with pytest.raises(NkiValidationError, match=f"range_select: {text}"):
        execute(body)


def test_gen2_has_no_range_select() -> None:
    def body():
        t = tile(np.ones((8, 6), np.float32))
        nisa.range_select(t, t, nl.less, nl.less, t[:, 0:1], t[:, 0:1])

    with pytest.raises(NkiValidationError, match="NeuronCore-v2 has no range_select"):
        execute(body, target="trn1")


# select_reduce


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("predicate", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("reverse", [False, True])
def test_select_reduce(layout: str, predicate: str, reverse: bool) -> None:
    values = RNG.normal(size=(20, 3, 7)).astype(ml_dtypes.bfloat16)
    chosen = RNG.integers(0, 3, values.shape).astype(predicate)
    other = RNG.normal(size=(20, 1)).astype(np.float32)

    def body():
        d, r = place(values.shape, layout=layout), empty((20, 1))
        nisa.select_reduce(
            d, fill(place(values.shape, predicate, layout), chosen), tile(values), tile(other),
            r, ReduceCmd.reset_reduce, nl.maximum, reverse,
        )  # fmt: skip
        return values_of(d), values_of(r)

    expected = np.zeros(values.shape, np.float32)
    for place_ in np.ndindex(values.shape):
        taken = (chosen[place_] != 0) != reverse
        expected[place_] = values[place_] if taken else other[place_[0], 0]
    result, most = execute(body)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(most[:, 0], [max(row.flat) for row in expected])


def test_select_reduce_between_ranks_with_a_number_f09() -> None:
    values = RNG.normal(size=(8, 24)).astype(np.float32)
    chosen = RNG.integers(0, 2, (8, 2, 3, 4)).astype(np.uint8)

    def body():
        d = empty((8, 2, 3, 4))
        nisa.select_reduce(d, tile(chosen), tile(values), FILL)
        return values_of(d)

    expected = np.where(chosen.reshape(8, 24) > 0, values, np.float32(FILL))
    np.testing.assert_array_equal(execute(body).reshape(8, 24), expected)


def test_an_idle_select_may_change_the_accumulators() -> None:
    def body(cmd: ReduceCmd):
        t, d = tile(np.ones((4, 8), np.float32)), empty((4, 8))
        p, r = tile(np.ones((4, 8), np.uint8)), empty((4, 1))
        nisa.select_reduce(d, p, t, 0.0, reduce_cmd=ReduceCmd.reset_reduce)
        nisa.select_reduce(d, p, t, 0.0, reduce_cmd=cmd)
        nisa.select_reduce(d, p, t, 0.0, r, ReduceCmd.reduce)
        return values_of(r)

    np.testing.assert_array_equal(execute(lambda: body(ReduceCmd.reduce)), np.ones((4, 1)))
    with pytest.raises(NkiHazardError, match="select_reduce: reduce_cmd: continues"):
        execute(lambda: body(ReduceCmd.idle))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"predicate": ((8, 6), "int32")}, "predicate: dtype int32"),
        ({"predicate": ((8, 6), "float32")}, "predicate: dtype float32"),
        ({"predicate": ((8, 5), "uint8")}, r"predicate: shape \[8, 5\]"),
        ({"on_true": ((8, 6), "int32")}, "on_true: dtype int32"),
        ({"on_true": ((8, 6), "tfloat32")}, "on_true: dtype tfloat32"),
        ({"on_false": ((8, 2), "float32")}, r"on_false: shape \[8, 2\]"),
        ({"reduce_op": nl.minimum}, "reduce_op: got nl.minimum"),
        ({"reduce_cmd": ReduceCmd.load_reduce}, "reduce_cmd: got"),
        ({"reduce_res": ((8, 1), "int32")}, "reduce_res: dtype int32"),
        (
            {"predicate": ((8, 6), "uint8", PSUM), "on_true": ((8, 6), "float32", PSUM)},
            "predicate and on_true: are all in PSUM",
        ),
    ],
)
def test_rules_of_select_reduce(changes: dict[str, Any], text: str) -> None:
    def body():
        arguments: dict[str, Any] = {
            "predicate": ((8, 6), "uint8"), "on_true": ((8, 6), "float32"), "on_false": 0.0
        } | changes  # fmt: skip
        made: dict[str, Any] = {
            key: tile(np.ones(item[0], np.float32), *item[1:]) if isinstance(item, tuple) else item
            for key, item in arguments.items()
        }
        nisa.select_reduce(empty((8, 6)), **made)

    with pytest.raises(NkiValidationError, match=f"select_reduce: {text}"):
        execute(body)


def test_records_of_selections() -> None:
    def body():
        t, p = tile(np.ones((8, 6), np.float32)), tile(np.ones((8, 6), np.uint8))
        bound = t[:, 0:1]
        nisa.range_select(t, t, nl.less, nl.greater, bound, bound, reduce_res=empty((8, 1)))
        nisa.select_reduce(t, p, t, bound)

    first, second = records(observe(body))
    assert (len(first.reads), len(first.writes)) == (3, 2)
    assert first.work == {"op0": "less", "op1": "greater"}
    assert (len(second.reads), len(second.writes)) == (3, 1)
