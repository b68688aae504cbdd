"""tensor_reduce, tensor_scalar_reduce, bn_stats, bn_aggr."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiHazardError, NkiValidationError
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

RNG = np.random.default_rng(11)

FOLDS: dict[str, Callable[[list[float]], float]] = {
    "add": sum,
    "subtract": lambda row: reduce(lambda a, b: a - b, row),
    "multiply": lambda row: reduce(lambda a, b: a * b, row),
    "maximum": max,
    "minimum": min,
    "logical_and": lambda row: float(all(row)),
    "logical_or": lambda row: float(any(row)),
    "logical_xor": lambda row: float(sum(x != 0 for x in row) % 2),
}


def fold(values: np.ndarray, kept: int, function: Callable[[list[float]], float]) -> np.ndarray:
    """Reduce all dimensions after the first `kept` in row-major order."""
    rows = values.astype(np.float64).reshape(-1, int(np.prod(values.shape[kept:])))
    return np.array([function(row.tolist()) for row in rows]).reshape(values.shape[:kept])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FOLDS)
@pytest.mark.parametrize("negate", [False, True])
def test_tensor_reduce_of_the_last_dimension(layout: str, name: str, negate: bool) -> None:
    values = RNG.normal(size=(20, 3, 7)).astype(np.float32)
    if name.startswith("logical"):
        values = RNG.integers(0, 2, values.shape).astype(np.float32)

    def body():
        d = place((20, 3), layout=layout)
        nisa.tensor_reduce(
            d, OPS[name], fill(place(values.shape, layout=layout), values), 2, negate=negate
        )
        return values_of(d)

    expected = fold(values, 2, FOLDS[name]) * (-1 if negate else 1)
    np.testing.assert_allclose(execute(body), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("axis", "kept", "shape"),
    [
        ((1, 2), 1, (20, 1)),
        ([2], 2, (20, 3)),
        (-1, 2, (20, 3)),
        ((1, 2), 1, (20, 1, 1)),
        (2, 2, (20, 3, 1)),
    ],
)
def test_axes_are_the_real_ones_f60(layout: str, axis: Any, kept: int, shape: tuple) -> None:
    values = RNG.integers(-50, 50, (20, 3, 7)).astype(ml_dtypes.bfloat16)

    def body(op: Any):
        d = empty(shape)
        nisa.tensor_reduce(d, op, fill(place(values.shape, "bfloat16", layout), values), axis)
        return values_of(d)

    for name in ("add", "subtract", "maximum"):
        expected = fold(values, kept, FOLDS[name]).reshape(shape)
        np.testing.assert_array_equal(execute(lambda n=name: body(OPS[n])), expected)


def test_four_free_dimensions() -> None:
    values = RNG.integers(-9, 9, (4, 2, 3, 2, 3)).astype(np.float32)

    def body():
        d = empty((4, 2, 3))
        nisa.tensor_reduce(d, nl.add, tile(values), axis=(3, 4))
        return values_of(d)

    np.testing.assert_array_equal(execute(body), fold(values, 3, sum))


@pytest.mark.parametrize("name", ["bitwise_and", "bitwise_or", "bitwise_xor"])
@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32"])
def test_bit_reductions(name: str, dtype: str) -> None:
    limits = np.iinfo(dtype)
    values = RNG.integers(limits.min, limits.max, (6, 5), dtype, endpoint=True)

    def body():
        d = empty((6, 1), dtype)
        nisa.tensor_reduce(d, OPS[name], tile(values), 1)
        return values_of(d)

    function = {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}[name[8:]]
    expected = [[reduce(function, row)] for row in values.tolist()]
    np.testing.assert_array_equal(execute(body), expected)


def test_a_reduction_is_rounded_once() -> None:
    """256 + 1 + 1 is 258 in bfloat16; rounded at each step it would stay at 256."""
    values = np.array([[256, 1, 1]], ml_dtypes.bfloat16)

    def body():
        d = empty((1, 1), "bfloat16")
        nisa.tensor_reduce(d, nl.add, tile(values), 1)
        return values_of(d)

    assert float(execute(body)[0, 0]) == 258


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"axis": 0}, "axis: 0 of 3 dimensions"),
        ({"axis": 1}, "axis: 1 of 3 dimensions"),
        ({"axis": (0, 1, 2)}, "axis: "),
        ({"axis": ()}, "axis: "),
        ({"axis": 3}, "axis: "),
        ({"shape": (8, 2)}, r"dst: shape \[8, 2\].*leaves 3 per partition"),
        ({"shape": (7, 3)}, r"dst: shape \[7, 3\]"),
        ({"op": nl.power}, "op: nl.power does not reduce"),
        ({"op": nl.average}, "op: nl.average does not reduce"),
        ({"op": nl.bitwise_or}, "dst: dtype float32"),
        ({"op": np.max}, "op: .* does not reduce"),
    ],
)
def test_rules_of_tensor_reduce(changes: dict[str, Any], text: str) -> None:
    def body():
        data = tile(np.ones((8, 3, 4), np.float32))
        d = empty(changes.get("shape", (8, 3)))
        nisa.tensor_reduce(d, changes.get("op", nl.add), data, changes.get("axis", 2))

    with pytest.raises(NkiValidationError, match=text):
        execute(body)


def test_bits_are_not_negated() -> None:
    def body():
        nisa.tensor_reduce(
            empty((4, 1), "int8"), nl.bitwise_or, tile(np.ones((4, 4), np.int8)), 1, negate=True
        )

    with pytest.raises(NkiValidationError, match="negate: True with nl.bitwise_or"):
        execute(body)


# tensor_scalar_reduce

STARTS = {"add": 0.0, "multiply": 1.0, "max": -np.inf, "min": np.inf}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", STARTS)
def test_tensor_scalar_reduce(layout: str, name: str) -> None:
    values = RNG.normal(size=(20, 3, 5)).astype(np.float32)
    column = RNG.normal(size=(20, 1)).astype(np.float32)

    def body():
        d, r = place(values.shape, "bfloat16", layout), empty((20, 1))
        source = fill(place(values.shape, layout=layout), values)
        nisa.tensor_scalar_reduce(d, source, nl.add, tile(column), OPS[name], r)
        return values_of(d), values_of(r)

    shifted = (values.astype(np.float64) + column[:, :, None]).astype(np.float32)
    result, total = execute(body)
    np.testing.assert_array_equal(result, shifted.astype(ml_dtypes.bfloat16))
    # The reduction sees float32, not the rounded destination.
    function = {"add": sum, "multiply": FOLDS["multiply"], "max": max, "min": min}[name]
    np.testing.assert_allclose(total[:, 0], fold(shifted, 1, function), rtol=2e-6)


@pytest.mark.parametrize("name", STARTS)
def test_only_the_last_call_reads_the_accumulators_out_f14(name: str) -> None:
    a, b = (RNG.normal(size=(8, 6)).astype(np.float32) for _ in range(2))

    def body():
        d, r = empty((8, 6)), empty((8, 1))
        nisa.tensor_scalar_reduce(d, tile(a), nl.multiply, 1.0, OPS[name])
        nisa.tensor_scalar_reduce(
            d, tile(b), nl.multiply, 1.0, OPS[name], r, reduce_cmd=ReduceCmd.reduce
        )
        return values_of(r)

    both = np.concatenate([a, b], axis=1)
    function = {"add": sum, "multiply": FOLDS["multiply"], "max": max, "min": min}[name]
    # A sum may cancel: its rounding errors go with the size of its terms.
    atol = 2.0**-24 * np.abs(both).sum(1).max() if name == "add" else 0.0
    np.testing.assert_allclose(execute(body)[:, 0], fold(both, 1, function), rtol=2e-6, atol=atol)


def test_load_reduce_and_negate() -> None:
    values = np.array([[1, 2], [3, 4]], np.float32)

    def body():
        d, r, s = empty((2, 2)), empty((2, 1)), empty((2, 1))
        load: dict[str, Any] = {"reduce_cmd": ReduceCmd.load_reduce}
        init = tile(np.array([[10], [20]], np.float32))
        nisa.tensor_scalar_reduce(
            d,
            tile(values),
            nl.add,
            0.0,
            nl.add,
            r,
            reduce_init=init,
            reduce_res_negate=True,
            **load,
        )
        # The registers themselves were not negated.
        more: dict[str, Any] = {"reduce_cmd": ReduceCmd.reduce}
        nisa.tensor_scalar_reduce(d, tile(values), nl.add, 0.0, nl.add, s, **more)
        return values_of(r), values_of(s)

    negated, total = execute(body)
    np.testing.assert_array_equal(negated, [[-13], [-27]])
    np.testing.assert_array_equal(total, [[16], [34]])


def test_going_on_from_unset_accumulators_is_a_hazard() -> None:
    def body():
        t = tile(np.ones((8, 6), np.float32))
        nisa.tensor_scalar_reduce(t, t, nl.add, 0.0, nl.add, reduce_cmd=ReduceCmd.reduce)

    with pytest.raises(NkiHazardError, match="tensor_scalar_reduce: reduce_cmd: continues from"):
        execute(body)


def test_accumulators_do_not_outlive_a_run_f86() -> None:
    def start():
        t = tile(np.ones((8, 6), np.float32))
        nisa.tensor_scalar_reduce(t, t, nl.add, 0.0, nl.add)

    def go_on():
        t = tile(np.ones((8, 6), np.float32))
        nisa.tensor_scalar_reduce(t, t, nl.add, 0.0, nl.add, reduce_cmd=ReduceCmd.reduce)

    execute(start)
    with pytest.raises(NkiHazardError):
        execute(go_on)


def test_the_record_has_both_results() -> None:
    def body():
        t = tile(np.ones((8, 6), np.float32))
        nisa.tensor_scalar_reduce(t, t, nl.add, 0.0, nl.max, empty((8, 1)))

    (record,) = records(observe(body))
    assert len(record.writes) == 2
    assert record.work == {"op0": "add", "op1": "max"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"op0": nl.bitwise_and}, "op0: nl.bitwise_and works on bits"),
        ({"op0": nl.power}, "op0: nl.power runs on gpsimd only"),
        ({"reduce_op": nl.subtract}, "reduce_op: got nl.subtract"),
        ({"reverse0": True}, "reverse0: True is not supported"),
        ({"reduce_cmd": ReduceCmd.idle}, "reduce_cmd: got"),
        ({"reduce_cmd": ReduceCmd.reset}, "reduce_cmd: got"),
        ({"reduce_cmd": ReduceCmd.load_reduce}, "reduce_init: None with"),
        ({"reduce_init": 1.0}, "reduce_init: 1.0 with"),
        ({"reduce_res": (8, 2)}, r"reduce_res: shape \[8, 2\]"),
        ({"operand0": None}, "operand0: must be a number"),
    ],
)
def test_rules_of_tensor_scalar_reduce(changes: dict[str, Any], text: str) -> None:
    def body():
        t = tile(np.ones((8, 6), np.float32))
        arguments: dict[str, Any] = {"op0": nl.add, "operand0": 1.0, "reduce_op": nl.add} | changes
        if "reduce_res" in changes:
            arguments["reduce_res"] = empty(changes["reduce_res"])
        nisa.tensor_scalar_reduce(t, t, **arguments)

    with pytest.raises(NkiValidationError, match=text):
        execute(body)


# bn_stats, bn_aggr


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(20, 3, 7), (20, 2, 8), (20, 1, 1)])
def test_bn_stats(layout: str, shape: tuple[int, ...]) -> None:
    values = RNG.normal(size=shape).astype(ml_dtypes.bfloat16)

    def body():
        d = place((20, 6), layout=layout)
        nisa.bn_stats(d, fill(place(shape, "bfloat16", layout), values))
        return values_of(d)

    rows = values.astype(np.float64).reshape(20, -1)
    expected = np.zeros((20, 6))
    for i in range(2):
        half = rows[:, i::2]
        if half.size:
            expected[:, 3 * i] = half.shape[1]
            expected[:, 3 * i + 1] = half.mean(1)
            expected[:, 3 * i + 2] = half.var(1) * half.shape[1]
    np.testing.assert_allclose(execute(body), expected, rtol=1e-5, atol=1e-6)


def test_bn_aggr_of_two_halves() -> None:
    values = (RNG.normal(size=(128, 1024)) * 3 + 5).astype(np.float32)

    def body():
        stats, d, data = empty((128, 12)), empty((128, 2)), tile(values)
        for i in range(2):
            nisa.bn_stats(stats[:, 6 * i : 6 * i + 6], data[:, 512 * i : 512 * i + 512])
        nisa.bn_aggr(d, stats)
        return values_of(d)

    wide = values.astype(np.float64)
    expected = np.stack([wide.mean(1), wide.var(1)], axis=1)
    np.testing.assert_allclose(execute(body), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("word", "d", "data", "text"),
    [
        ("bn_stats", (8, 6), (8, 513), "data: 513 elements per partition"),
        ("bn_stats", (8, 5), (8, 8), r"dst: shape \[8, 5\]"),
        ("bn_aggr", (8, 2), (8, 8), "data: 8 elements per partition"),
        ("bn_aggr", (8, 3), (8, 6), r"dst: shape \[8, 3\]"),
    ],
)
def test_rules_of_statistics(word: str, d: tuple, data: tuple, text: str) -> None:
    def body():
        getattr(nisa, word)(empty(d), tile(np.ones(data, np.float32)))

    with pytest.raises(NkiValidationError, match=f"{word}: {text}"):
        execute(body)
