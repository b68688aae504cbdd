"""dma_transpose: the direct and the gathering form, bit for bit, and every rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nkisim.isa as nisa
from nkisim import NkiNotImplementedError, NkiValidationError
from nkisim.dtypes import NUMPY
from nkisim.enums import PRIVATE_HBM, PSUM, SBUF
from nkisim.errors import NkiHazardError
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

RNG = np.random.default_rng(3)
HBM = PRIVATE_HBM
SKIP = nisa.oob_mode.skip
HWDGE, SWDGE, STATIC = nisa.dge_mode.hwdge, nisa.dge_mode.swdge, nisa.dge_mode.none
AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


def bits(dtype: str, *shape: int) -> np.ndarray:
    size = NUMPY[dtype].itemsize
    return RNG.integers(0, 256, (*shape, size), np.uint8).view(NUMPY[dtype])[..., 0]


def as_bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8)


def refused(
    body: Callable[..., Any],
    *words: str,
    error: type[Exception] = NkiValidationError,
    **options: Any,
) -> None:
    with pytest.raises(error) as caught:
        execute(body, **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("shape", ((16, 24), (40, 2, 24), (8, 3, 2, 24)))
@pytest.mark.parametrize("dtype", ("bfloat16", "float32", "uint16"))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("buffer", (HBM, SBUF))
def test_direct(shape: tuple[int, ...], dtype: str, layout: str, buffer: Any) -> None:
    values = bits(dtype, *shape)
    expected = values.transpose(AXES[len(shape)])

    def body() -> Any:
        src = fill(place(shape, dtype, layout, buffer), values)
        dst = place(expected.shape, dtype, "stepped")
        nisa.dma_transpose(dst, src)
        return values_of(dst)

    np.testing.assert_array_equal(as_bytes(execute(body)), as_bytes(expected))


@pytest.mark.parametrize("shape", ((16, 128), (8, 2, 64), (1, 16, 8), (2, 3, 8, 128)))
def test_f13_hwdge_shapes(shape: tuple[int, ...]) -> None:
    values = bits("bfloat16", *shape)
    expected = values.transpose(AXES[len(shape)])

    def body() -> Any:
        dst = empty(expected.shape, "bfloat16")
        nisa.dma_transpose(
            dst, tile(values, buffer=HBM), axes=AXES[len(shape)], dge_mode=HWDGE, name="t"
        )  # fmt: skip
        return values_of(dst)

    run = observe(body)
    np.testing.assert_array_equal(as_bytes(run.result), as_bytes(expected))
    (record,) = records(run)
    assert (record.op, record.engine, record.name) == ("dma_transpose", nisa.engine.dma, "t")
    assert record.work == {"mode": HWDGE, "trigger": nisa.engine.unknown, "indirect": "none"}


def test_f22_scalar_offset_may_be_skipped() -> None:
    values = bits("float16", 4, 16, 8)

    def body(at: int, **options: Any) -> Any:
        src, dst = tile(values, buffer=HBM), tile(np.full((8, 16), 7, np.float16))
        nisa.dma_transpose(dst, src.select(0, nisa.register_alloc(at)), **options)
        return values_of(dst)

    np.testing.assert_array_equal(as_bytes(execute(lambda: body(2))), as_bytes(values[2].T))
    refused(lambda: body(4), "src", "4")
    assert (execute(lambda: body(4, oob_mode=SKIP)) == 7).all()


# -- gather ---------------------------------------------------------------------------------------


def source(values: np.ndarray, index: np.ndarray, rows: int) -> Any:
    """Rows of `values` by an index tile, as in the reference's examples."""
    pattern = [
        [step // values.itemsize, size]
        for step, size in zip(values.strides, values.shape, strict=True)
    ]
    pattern[0][1] = rows
    return tile(values, buffer=HBM).ap(pattern, vector_offset=tile(index), indirect_dim=0)


@pytest.mark.parametrize("tail", ((128,), (64,), (3, 48), (1, 4, 32), (4, 1, 32)))
@pytest.mark.parametrize("columns", (1, 2))
def test_f48_gather(tail: tuple[int, ...], columns: int) -> None:
    """dst = src[index.T.flatten()[:rows]] with its axes permuted."""
    values = bits("bfloat16", 200, *tail)
    index = RNG.integers(0, 200, (128, columns)).astype(np.uint32)
    rows = 128 * columns - 16
    axes = AXES[1 + len(tail)]
    expected = values[index.T.flatten()[:rows]].transpose(axes)

    def body() -> Any:
        dst = empty(expected.shape, "bfloat16")
        nisa.dma_transpose(dst, source(values, index, rows), axes=axes)
        return values_of(dst)

    run = observe(body)
    np.testing.assert_array_equal(as_bytes(run.result), as_bytes(expected))
    (record,) = records(run)
    assert record.work["indirect"] == "vector" and record.work["rows"] == rows
    assert [access.shape for access in record.reads] == [(200, *tail), (128, columns)]


def test_f21_columns_of_bad_indices_stay_as_they_were() -> None:
    values = bits("float16", 20, 32)
    index = np.arange(16, dtype=np.uint32)[::-1].reshape(16, 1).copy()
    index[3] = 20
    index[9] = 2**32 - 1

    def body(**options: Any) -> Any:
        dst = tile(np.full((32, 16), 7, np.float16))
        nisa.dma_transpose(dst, source(values, index, 16), **options)
        return values_of(dst)

    refused(body, "index 20 of row 3")
    result = execute(lambda: body(oob_mode=SKIP))
    good = [i for i in range(16) if i not in (3, 9)]
    np.testing.assert_array_equal(as_bytes(result[:, good]), as_bytes(values[index[good, 0]].T))
    assert (result[:, [3, 9]] == 7).all()


def test_skipped_columns_stay_uninitialised() -> None:
    index = np.full((16, 1), 99, np.uint32)
    index[5] = 0

    def body(columns: slice) -> None:
        dst = empty((32, 16), "float16")
        nisa.dma_transpose(dst, source(bits("float16", 20, 32), index, 16), oob_mode=SKIP)
        nisa.dma_copy(empty((32, columns.stop - columns.start), "float16"), dst[:, columns])

    execute(lambda: body(slice(5, 6)))
    refused(lambda: body(slice(5, 7)), "32 of 64", error=NkiHazardError)


# -- rules ----------------------------------------------------------------------------------------


def direct(
    dst: tuple[int, ...], src: tuple[int, ...], dtype: str = "bfloat16", **options: Any
) -> None:
    nisa.dma_transpose(empty(dst, dtype), tile(bits(dtype, *src), buffer=HBM), **options)


def gathered(
    tail: tuple[int, ...] = (32,), index: tuple[int, int] = (16, 1), rows: int = 16,
    dtype: str = "bfloat16", kind: Any = np.uint32, **options: Any,
) -> None:  # fmt: skip
    src = source(bits(dtype, 20, *tail), np.zeros(index, kind), rows)
    shape = tuple(min(src.shape[axis], 128) for axis in AXES[src.ndim])
    nisa.dma_transpose(empty(shape, dtype), src, **options)


def at_run_time(**options: Any) -> None:
    src = tile(bits("float16", 4, 16, 8), buffer=HBM).select(0, nisa.register_alloc(1))
    nisa.dma_transpose(empty((8, 16), "float16"), src, **options)


RULES = {
    "dst in HBM": (
        lambda: nisa.dma_transpose(empty((8, 4), buffer=HBM), tile(bits("float32", 4, 8))), "dst",
    ),
    "src in PSUM": (
        lambda: nisa.dma_transpose(empty((8, 4)), tile(bits("float32", 4, 8), buffer=PSUM)), "src",
    ),
    "dtype": (
        lambda: nisa.dma_transpose(empty((8, 4), "float16"), tile(bits("bfloat16", 4, 8))), "dst",
    ),
    "one byte": (lambda: direct((8, 4), (4, 8), "int8"), "int8 of 1 bytes"),
    "five dimensions": (lambda: direct((2, 2, 2, 2, 2), (2, 2, 2, 2, 2)), "5 dimensions"),
    "axes": (lambda: direct((8, 2, 4), (4, 2, 8), axes=(0, 2, 1)), "axes=(2, 1, 0)"),
    "F49 dst shape": (lambda: direct((4, 8), (4, 8)), "shape [8, 4]"),
    "F49 dst rank": (lambda: direct((8, 1, 4), (4, 1, 1, 8)), "shape [8, 1, 1, 4]"),
    "swdge": (lambda: direct((8, 4), (4, 8), dge_mode=SWDGE), "dge_mode"),
    "static with a register": (lambda: at_run_time(dge_mode=STATIC), "dge_mode"),
    "F13 hwdge rows": (lambda: direct((8, 8), (8, 8), dge_mode=HWDGE), "8 rows"),
    "F13 hwdge product": (lambda: direct((64, 1, 8), (8, 1, 64), dge_mode=HWDGE), "shape[0]"),
    "F13 hwdge 32": (lambda: direct((64, 2, 32), (32, 2, 64), dge_mode=HWDGE), "shape[0]"),
    "hwdge bytes": (lambda: direct((8, 16), (16, 8), "float32", dge_mode=HWDGE), "2 bytes"),
    "skip without index": (lambda: direct((8, 4), (4, 8), oob_mode=SKIP), "oob_mode"),
    "F48 gather last": (lambda: gathered((129,)), "last dimension 129"),
    "gather rows": (lambda: gathered(rows=8), "8 gathered rows"),
    "gather 4-D": (lambda: gathered((2, 2, 8)), "shape[1] or [2]"),
    "gather bytes": (lambda: gathered(dtype="float32"), "2 bytes"),
    "gather hwdge": (lambda: gathered(dge_mode=HWDGE), "dge_mode"),
    "index partitions": (lambda: gathered(index=(24, 1)), "index shape [24, 1]"),
    "index columns": (lambda: gathered(index=(64, 2)), "index shape [64, 2]"),
    "too few indices": (lambda: gathered(index=(16, 1), rows=32), "index shape [16, 1]"),
    "index dtype": (lambda: gathered(kind=np.int32), "uint32"),
}  # fmt: skip


@pytest.mark.parametrize("mode", (STATIC, nisa.dge_mode.unknown))
def test_direct_without_dge(mode: Any) -> None:
    execute(lambda: direct((8, 4), (4, 8), dge_mode=mode))


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    body, word = RULES[rule]
    refused(body, "dma_transpose", word, "test_dma_transpose.py")


def test_gen3_and_gen4() -> None:
    refused(gathered, "v3", target="trn1")
    refused(lambda: direct((8, 16), (16, 8), dge_mode=HWDGE), "dge_mode", target="trn1")
    refused(lambda: direct((8, 4), (4, 8), priority=0), "priority", error=NkiNotImplementedError)


def test_overlap() -> None:
    def body() -> None:
        t = tile(bits("float16", 16, 16))
        nisa.dma_transpose(t, t)

    refused(body, "share bytes", error=NkiHazardError)
