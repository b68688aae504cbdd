"""dma_compute: sums of tensors, read-modify-write of rows, and every rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiValidationError
from nkisim.enums import PRIVATE_HBM, PSUM, SBUF
from nkisim.errors import NkiHazardError
from tests.nkisim.harness import empty, execute, observe, records, tile, values_of

RNG = np.random.default_rng(13)
HBM = PRIVATE_HBM
SKIP = nisa.oob_mode.skip
TABLE = RNG.normal(size=(20, 6)).astype(np.float32)
NEW = RNG.normal(size=(3, 6)).astype(np.float32)


def refused(
    body: Callable[..., Any], *words: str, error: type[Exception] = NkiValidationError
) -> None:
    with pytest.raises(error) as caught:
        execute(body)
    for word in words:
        assert word in str(caught.value)


def column(*indices: int) -> Any:
    return tile(np.array(indices, np.uint32).reshape(-1, 1))


@pytest.mark.parametrize("count", (1, 2, 16))
@pytest.mark.parametrize("memories", ((SBUF, HBM), (HBM, SBUF)))
def test_sum(count: int, memories: tuple[Any, Any]) -> None:
    values = RNG.integers(-100, 100, (count, 8, 12)).astype(np.float32)

    def body() -> Any:
        srcs = [tile(v, buffer=memories[i % 2]) for i, v in enumerate(values)]
        dst = empty((24, 4), buffer=memories[1])
        nisa.dma_compute(dst, srcs, nl.add, scales=[1.0] * count)
        return values_of(dst)

    expected = values.astype(np.float64).sum(0).reshape(24, 4)
    np.testing.assert_array_equal(execute(body), expected)


def test_sum_is_made_in_float32_and_cast_once() -> None:
    """1 + 2^-8 twice: each rounds away in bfloat16, the float32 sum does not."""
    small = np.full((1, 1), 2.0**-8, np.float32)

    def body() -> Any:
        dst = empty((1, 1), "bfloat16")
        one = tile(np.ones((1, 1), ml_dtypes.bfloat16))
        nisa.dma_compute(dst, [one, tile(small), tile(small, "bfloat16")], nl.add)
        return values_of(dst)

    assert float(execute(body)[0, 0]) == 1 + 2.0**-7


def test_accumulate_in_place() -> None:
    def body() -> Any:
        dst = tile(NEW, buffer=HBM)
        nisa.dma_compute(dst, [dst, tile(TABLE[:3])], nl.add)
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), NEW + TABLE[:3])


@pytest.mark.parametrize("first", (True, False))
def test_scatter_adds_to_rows(first: bool) -> None:
    rows = [7, 0, 19]

    def body() -> Any:
        table = tile(TABLE, buffer=HBM)
        dst = table.vector_select(0, column(*rows))
        srcs = [dst, tile(NEW)] if first else [tile(NEW), dst]
        nisa.dma_compute(dst, srcs, nl.add)
        return values_of(table)

    run = observe(body)
    expected = TABLE.copy()
    expected[rows] += NEW
    np.testing.assert_array_equal(run.result, expected)
    (record,) = records(run)
    assert (record.work["indirect"], record.work["rows"]) == ("vector", 3)
    assert record.work["mode"] is nisa.dge_mode.swdge


def test_gather_adds_rows() -> None:
    rows = [7, 7, 1]

    def body() -> Any:
        dst = tile(NEW)
        src = tile(TABLE, buffer=HBM).ap([[6, 3], [1, 6]], vector_offset=column(*rows))
        nisa.dma_compute(dst, [dst, src], nl.add)
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), NEW + TABLE[rows])


@pytest.mark.parametrize("form", ("scatter", "gather"))
def test_f52_out_of_bounds_rows_are_skipped(form: str) -> None:
    rows = [7, 20, 2]

    def body(**options: Any) -> Any:
        table, tile_ = tile(TABLE, buffer=HBM), tile(NEW)
        indexed = table.vector_select(0, column(*rows))
        dst = indexed if form == "scatter" else tile_
        nisa.dma_compute(dst, [indexed, tile_], nl.add, **options)
        return values_of(table), values_of(tile_)

    refused(body, "index 20 of row 1")
    table, new = execute(lambda: body(oob_mode=SKIP))
    expected_table, expected_new = TABLE.copy(), NEW.copy()
    if form == "scatter":
        expected_table[[7, 2]] += NEW[[0, 2]]
    else:
        expected_new[[0, 2]] += TABLE[[7, 2]]
    np.testing.assert_array_equal(table, expected_table)
    np.testing.assert_array_equal(new, expected_new)


def test_duplicate_rows() -> None:
    def body() -> None:
        dst = tile(TABLE, buffer=HBM).vector_select(0, column(4, 1, 4))
        nisa.dma_compute(dst, [dst, tile(NEW)], nl.add)

    refused(body, "row 4", error=NkiHazardError)


def test_rows_that_were_never_written() -> None:
    def body() -> None:
        dst = empty((20, 6), buffer=HBM).vector_select(0, column(4, 1, 2))
        nisa.dma_compute(dst, [dst, tile(NEW)], nl.add)

    refused(body, "dst", "18 of 18", error=NkiHazardError)


def test_overlap() -> None:
    def body() -> None:
        t = tile(TABLE)
        nisa.dma_compute(t[:, 1:4], [t[:, 0:3], tile(np.zeros((20, 3), np.float32))], nl.add)

    refused(body, "srcs[0]", "share bytes", error=NkiHazardError)


# -- rules ----------------------------------------------------------------------------------------


def add(srcs: Any = None, op: Any = nl.add, dst: Any = None, **options: Any) -> None:
    dst = empty((3, 6)) if dst is None else dst
    nisa.dma_compute(dst, [tile(NEW), tile(NEW)] if srcs is None else srcs, op, **options)


def scatter(*extra: Any, data: Any = None, index: Any = None, **options: Any) -> None:
    dst = tile(TABLE, buffer=HBM).vector_select(0, index or column(1, 2, 3))
    nisa.dma_compute(dst, [dst, data or tile(NEW), *extra], nl.add, **options)


def not_itself() -> None:
    dst = tile(TABLE, buffer=HBM).vector_select(0, column(1, 2, 3))
    nisa.dma_compute(dst, [tile(NEW), tile(NEW)], nl.add)


def run_time_address() -> None:
    add([tile(TABLE[:6], buffer=HBM)[0:6, nl.ds(nisa.register_alloc(0), 3)], tile(NEW)])


RULES = {
    "op": (lambda: add(op=nl.multiply), "reduce_op"),
    "F36 scales": (lambda: add(scales=[2.0, 1.0]), "scales"),
    "scales a source": (lambda: add(scales=[1.0]), "scales"),
    "17 sources": (lambda: add([tile(NEW)] * 17), "srcs"),
    "no list": (lambda: add(tile(NEW)), "srcs"),
    "elements": (lambda: add([tile(NEW), tile(TABLE)]), "srcs[1]"),
    "PSUM": (lambda: add([tile(NEW), tile(NEW, buffer=PSUM)]), "srcs[1]"),
    "run-time address": (run_time_address, "srcs[0]"),
    "F52 skip on static": (lambda: add(oob_mode=SKIP), "oob_mode"),
    "three sources": (lambda: scatter(tile(NEW)), "exactly 2"),
    "not unique": (lambda: scatter(unique_indices=False), "unique_indices"),
    "dst not a source": (not_itself, "dst itself"),
    "data in HBM": (lambda: scatter(data=tile(NEW, buffer=HBM)), "SBUF"),
    "index shape": (lambda: scatter(index=tile(np.zeros((3, 2), np.uint32))), "index tile"),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    body, word = RULES[rule]
    refused(body, "dma_compute", word, "test_dma_compute.py")


def test_f65_argument_order() -> None:
    scales: Any = [1.0]
    refused(lambda: add([tile(NEW)], scales), "reduce_op")
