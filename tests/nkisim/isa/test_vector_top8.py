"""max8, nc_find_index8, nc_match_replace8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
from nkisim import NkiValidationError
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

RNG = np.random.default_rng(19)
NONE = {"uint16": 0xFFFF, "uint32": 0xFFFFFFFF}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(20, 8), (20, 5, 7), (20, 4, 33)])
def test_max8(layout: str, shape: tuple[int, ...]) -> None:
    values = RNG.integers(-20, 20, shape).astype(ml_dtypes.bfloat16)  # with ties

    def body():
        d = empty((20, 8))
        nisa.max8(d, fill(place(shape, "bfloat16", layout), values))
        return values_of(d)

    rows = values.astype(np.float32).reshape(20, -1).tolist()
    expected = [sorted(row, reverse=True)[:8] for row in rows]
    np.testing.assert_array_equal(execute(body), expected)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_find_index_of_duplicates_and_of_what_is_missing_f03(dtype: str) -> None:
    def body():
        d = empty((1, 8), dtype)
        data = tile(np.array([[5, 7, 5, 9, 1, 2, 3, 4]], np.float32))
        nisa.nc_find_index8(d, data, tile(np.array([[5, 5, 5, 9, 0, 1, 7, 5]], np.float32)))
        return values_of(d)

    none = NONE[dtype]
    np.testing.assert_array_equal(execute(body), [[0, 2, none, 3, none, 4, 1, none]])


def occurrences(row: list[float], wanted: list[float], order: range) -> list[int]:
    """Occurrences of each value in ascending order, handed out in `order` of the slots."""
    places = {value: [i for i, x in enumerate(row) if x == value] for value in wanted}
    result = [-1] * 8
    for slot in order:
        if places[wanted[slot]]:
            result[slot] = places[wanted[slot]].pop(0)
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
def test_find_index_over_random_data(layout: str) -> None:
    data = RNG.integers(0, 9, (20, 3, 6)).astype(np.float16)
    wanted = RNG.integers(0, 10, (20, 2, 4)).astype(np.float32)

    def body():
        d = empty((20, 8), "uint32")
        nisa.nc_find_index8(d, fill(place(data.shape, "float16", layout), data), tile(wanted))
        return values_of(d)

    rows = zip(data.reshape(20, -1).tolist(), wanted.reshape(20, 8).tolist(), strict=True)
    expected = np.array([occurrences(*row, range(8)) for row in rows]).astype(np.uint32)
    np.testing.assert_array_equal(execute(body), expected)


def test_match_replace_of_duplicates_f02() -> None:
    def body():
        d, places = empty((1, 11)), empty((1, 8), "uint32")
        data = tile(np.array([[1, 2, 3, 4, 8, 8, 8, 8, 8, 8, 8]], np.float32))
        nisa.nc_match_replace8(d, data, tile(np.array([[3] + [8] * 7], np.float32)), -1.0, places)
        return values_of(d), values_of(places)

    result, places = execute(body)
    np.testing.assert_array_equal(result, [[1, 2, -1, 4] + [-1] * 7])
    np.testing.assert_array_equal(places, [[2, 10, 9, 8, 7, 6, 5, 4]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("index", ["uint16", "uint32"])
def test_match_replace_over_random_data(layout: str, index: str) -> None:
    """`imm` is a value that is looked for too: a replaced element is not matched again."""
    data = RNG.integers(0, 9, (20, 3, 6)).astype(np.float32)
    wanted = RNG.integers(0, 10, (20, 8)).astype(np.float32)

    def body():
        d, places = place(data.shape, layout=layout), empty((20, 8), index)
        source = fill(place(data.shape, layout=layout), data)
        nisa.nc_match_replace8(d, source, tile(wanted), 4.0, places)
        return values_of(d), values_of(places)

    expected = data.reshape(20, -1).copy()
    slots = []
    for row, wanted_row in zip(expected, wanted.tolist(), strict=True):
        slots.append(occurrences(row.tolist(), wanted_row, range(7, -1, -1)))
        for place_ in slots[-1]:
            if place_ >= 0:
                row[place_] = 4
    result, places = execute(body)
    np.testing.assert_array_equal(result.reshape(20, -1), expected)
    np.testing.assert_array_equal(places, np.array(slots).astype(index))


def test_the_sixteen_largest_in_two_rounds() -> None:
    """The use that the three are made for; in place."""
    values = RNG.permutation(128 * 40).reshape(128, 40).astype(np.float32)

    def body():
        data, best = tile(values), empty((128, 16))
        nisa.max8(best[:, 0:8], data)
        nisa.nc_match_replace8(data, data, best[:, 0:8], -1.0)
        nisa.max8(best[:, 8:16], data)
        return values_of(best)

    expected = [sorted(row, reverse=True)[:16] for row in values.tolist()]
    np.testing.assert_array_equal(execute(body), expected)


def call(word: str, **changes: tuple) -> Callable[[], Any]:
    def body():
        given: dict[str, Any] = {
            "dst": ((8, 8), "uint32"),
            "data": ((8, 9), "float32"),
            "vals": ((8, 8), "float32"),
        }
        if word == "max8":
            given = {"dst": ((8, 8), "float32"), "src": ((8, 9), "float32")}
        made: dict[str, Any] = {
            k: tile(np.ones(v[0], np.float32), v[1]) for k, v in (given | changes).items()
        }
        getattr(nisa, word)(**made)

    return body


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (call("max8", src=((8, 7), "float32")), "max8: src: .*7 elements per partition"),
        (call("max8", src=((8, 16385), "int8")), "max8: src: .*16385 elements per partition"),
        (call("max8", src=((8, 2, 2, 2), "float32")), "max8: src: .*at most 3 dimensions"),
        (call("max8", dst=((8, 9), "float32")), r"max8: dst: shape \[8, 9\]"),
        (call("nc_find_index8", dst=((8, 8), "int32")), "nc_find_index8: dst: dtype int32"),
        (call("nc_find_index8", vals=((8, 7), "float32")), r"nc_find_index8: vals: shape \[8, 7\]"),
        (call("nc_find_index8", data=((8, 7), "float32")), "nc_find_index8: data: .*7 elements"),
    ],
)
def test_rules(body: Callable[[], Any], text: str) -> None:
    with pytest.raises(NkiValidationError, match=text):
        execute(body)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"vals": (8, 9)}, r"vals: shape \[8, 9\]"),
        ({"dst": (8, 9)}, r"dst: shape \[8, 9\]"),
        ({"imm": None}, "imm: must be a number"),
        ({"dst_idx": (8, 8)}, "dst_idx: dtype float32"),
    ],
)
def test_rules_of_match_replace(changes: dict[str, Any], text: str) -> None:
    def body():
        given: dict[str, Any] = {
            "dst": (8, 10),
            "data": (8, 10),
            "vals": (8, 8),
            "imm": 0.0,
        } | changes
        made: dict[str, Any] = {
            key: tile(np.ones(item, np.float32)) if isinstance(item, tuple) else item
            for key, item in given.items()
        }
        nisa.nc_match_replace8(**made)

    with pytest.raises(NkiValidationError, match=f"nc_match_replace8: {text}"):
        execute(body)


def test_the_records() -> None:
    def body():
        data, vals = tile(np.ones((8, 9), np.float32)), empty((8, 8))
        nisa.max8(vals, data)
        nisa.nc_match_replace8(data, data, vals, 0.0, empty((8, 8), "uint16"))

    first, second = records(observe(body))
    assert (len(first.reads), len(first.writes)) == (1, 1)
    assert (len(second.reads), len(second.writes)) == (2, 2)
