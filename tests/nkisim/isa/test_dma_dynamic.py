"""dma_copy with run-time indices: one for the operand, or one a row (gather and scatter)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiValidationError
from nkisim.enums import PRIVATE_HBM, SBUF
from nkisim.errors import NkiHazardError
from tests.nkisim.harness import empty, execute, observe, records, tile, values_of

RNG = np.random.default_rng(9)
HBM = PRIVATE_HBM
SKIP = nisa.oob_mode.skip
TABLE = RNG.normal(size=(40, 6)).astype(np.float32)
CUBE = RNG.normal(size=(4, 16, 12)).astype(np.float32)


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


def number(value: int, kind: str) -> Any:
    """A run-time index: a register or a (1, 1) tile."""
    if kind == "register":
        return nisa.register_alloc(value)
    return tile(np.array([[value]], np.int32))


def column(*indices: int, dtype: Any = np.int32) -> Any:
    return tile(np.array(indices, np.int64).astype(dtype).reshape(-1, 1))


KINDS = ("register", "tile")

# -- one index ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", list(nisa.dge_mode)[:3])  # all but none
def test_scalar_source_with_every_mode(kind: str, mode: Any) -> None:
    def body() -> Any:
        dst = empty((16, 12))
        nisa.dma_copy(dst, tile(CUBE, buffer=HBM).select(0, number(3, kind)), dge_mode=mode)
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), CUBE[3])


@pytest.mark.parametrize("kind", KINDS)
def test_scalar_offset_counts_in_its_dimension(kind: str) -> None:
    """offset + scalar_offset * prod(shape[indirect_dim + 1:]), in the base tensor's shape (APS)."""

    def body() -> Any:
        cube, dst = tile(CUBE, buffer=HBM), empty((4, 3, 5))
        pattern = [[192, 4], [12, 3], [1, 5]]
        nisa.dma_copy(dst, cube.ap(pattern, 2, scalar_offset=number(7, kind), indirect_dim=1))
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), CUBE[:, 7:10, 2:7])


def test_scalar_offset_of_a_reshaped_tensor_counts_in_the_new_shape() -> None:
    def body() -> Any:
        flat, dst = tile(CUBE, buffer=HBM).reshape((64, 12)), empty((2, 12))
        nisa.dma_copy(dst, flat.ap([[12, 2], [1, 12]], scalar_offset=nisa.register_alloc(33)))
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), CUBE.reshape(64, 12)[33:35])


@pytest.mark.parametrize("kind", KINDS)
def test_scalar_destination(kind: str) -> None:
    new = RNG.normal(size=(16, 2)).astype(np.float32)

    def body() -> Any:
        cube = tile(CUBE[0], buffer=HBM)
        nisa.dma_copy(cube[:, nl.ds(number(9, kind), 2)], tile(new))
        return values_of(cube)

    expected = CUBE[0].copy()
    expected[:, 9:11] = new
    np.testing.assert_array_equal(execute(body), expected)


def test_scalar_index_in_sbuf_moves_within_the_partition() -> None:
    def body() -> Any:
        src, dst = tile(CUBE[0]), empty((16, 4))
        nisa.dma_copy(dst, src[:, nl.ds(nisa.register_alloc(5), 4)])
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), CUBE[0][:, 5:9])


@pytest.mark.parametrize("index", (-1, 9, 2**31 - 1))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("buffer", (SBUF, HBM))
def test_scalar_out_of_bounds(index: int, kind: str, buffer: Any) -> None:
    """Columns 9 to 12 do not exist; with skip the destination stays as it was."""

    def body(**options: Any) -> Any:
        src = tile(CUBE[0], buffer=buffer)
        dst = tile(np.full((16, 4), 7.0, np.float32))
        nisa.dma_copy(dst, src[:, nl.ds(number(index, kind), 4)], **options)
        return values_of(dst)

    refused(body, "dma_copy", "src", str(index), "oob_mode.skip", "test_dma_dynamic.py")
    assert (execute(lambda: body(oob_mode=SKIP)) == 7.0).all()


def test_scalar_offset_of_ap_may_not_leave_the_tensor() -> None:
    def body(offset: int) -> Any:
        dst = empty((2, 6))
        src = tile(TABLE, buffer=HBM).ap(
            [[6, 2], [1, 6]], scalar_offset=nisa.register_alloc(offset)
        )
        nisa.dma_copy(dst, src)
        return values_of(dst)

    np.testing.assert_array_equal(execute(lambda: body(38)), TABLE[38:])
    refused(lambda: body(39), "src", "39")


def test_scalar_record_holds_the_place_that_was_meant() -> None:
    def body() -> None:
        cube, index = tile(CUBE, buffer=HBM), number(2, "tile")
        nisa.dma_copy(empty((16, 12)), cube.select(0, index))
        nisa.dma_copy(empty((16, 12)), cube.select(0, number(8, "tile")), oob_mode=SKIP)

    moved, skipped = records(observe(body))
    assert moved.work["indirect"] == skipped.work["indirect"] == "scalar"
    assert [access.shape for access in moved.reads] == [(16, 12), (1, 1)]
    assert moved.reads[0].offset == 2 * 16 * 12
    assert [access.shape for access in skipped.reads] == [(1, 1)] and skipped.writes == ()


@pytest.mark.parametrize("kind", KINDS)
def test_uninitialised_index(kind: str) -> None:
    def body() -> None:
        index = nisa.register_alloc() if kind == "register" else empty((1, 1), "int32")
        nisa.dma_copy(empty((16, 12)), tile(CUBE, buffer=HBM).select(0, index))

    refused(body, "src", "never written")


def test_uninitialised_index_vector() -> None:
    def body() -> None:
        index = empty((4, 1), "int32")
        nisa.dma_copy(index[0:2], column(1, 2))
        nisa.dma_copy(empty((4, 6)), tile(TABLE, buffer=HBM).vector_select(0, index))

    refused(body, "src's index", "2 of 4", error=NkiHazardError)


# -- gather ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (np.int32, np.uint32))
@pytest.mark.parametrize("form", ("vector_select", "ap"))
@pytest.mark.parametrize("to", (SBUF, HBM))
def test_gather(dtype: Any, form: str, to: Any) -> None:
    rows = [39, 0, 7, 7, 12]

    def body() -> Any:
        table, index, dst = (
            tile(TABLE, buffer=HBM),
            column(*rows, dtype=dtype),
            empty((5, 6), buffer=to),
        )
        src = table.vector_select(0, index)
        if form == "ap":  # the leading step is ignored
            src = table.ap([[1, 5], [1, 6]], vector_offset=index, indirect_dim=0)
        nisa.dma_copy(dst, src)
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), TABLE[rows])


def test_gather_part_of_rows_into_another_shape_and_dtype() -> None:
    rows = [3, 1, 0, 2]

    def body() -> Any:
        cube, dst = tile(CUBE, buffer=HBM), empty((16, 5), "bfloat16")
        pattern = [[192, 4], [24, 4], [1, 5]]
        nisa.dma_copy(dst, cube.ap(pattern, 12, vector_offset=column(*rows)))
        return values_of(dst)

    expected = CUBE[rows][:, 1:8:2, :5].reshape(16, 5).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(execute(body), expected)


def test_gather_out_of_bounds_f18() -> None:
    """Row 1's index is one too far: an error, or row 1 keeps what it had."""

    def body(**options: Any) -> Any:
        dst = tile(np.full((4, 6), 7.0, np.float32))
        src = tile(TABLE, buffer=HBM).vector_select(0, column(5, 40, -1, 39))
        nisa.dma_copy(dst, src, **options)
        return values_of(dst)

    refused(body, "src", "index 40 of row 1", "0 to 39", "oob_mode.skip")
    result = execute(lambda: body(oob_mode=SKIP))
    np.testing.assert_array_equal(result[[0, 3]], TABLE[[5, 39]])
    assert (result[1:3] == 7.0).all()


@pytest.mark.parametrize("dtype", ("int32", "uint8", "bfloat16"))
def test_f31_gather_keeps_integer_bits(dtype: str) -> None:
    table = np.array([[2**24 + 1, -1], [2**31 - 1, -(2**31)]], np.int32)

    def body() -> Any:
        source = tile(table, buffer=HBM).view(dtype)
        dst = tile(np.zeros((3, 2), np.int32)).view(dtype)
        nisa.dma_copy(dst, source.vector_select(0, column(1, 9, 0)), oob_mode=SKIP)
        return values_of(dst)

    result = np.ascontiguousarray(execute(body)).view(np.int32)
    np.testing.assert_array_equal(result, np.stack([table[1], [0, 0], table[0]]))


def test_skipped_rows_stay_uninitialised() -> None:
    def body() -> None:
        dst = empty((3, 6))
        nisa.dma_copy(
            dst, tile(TABLE, buffer=HBM).vector_select(0, column(1, 99, 2)), oob_mode=SKIP
        )
        nisa.dma_copy(empty((2, 6)), dst[1:3])

    refused(body, "6 of 12", "[0, 0]", error=NkiHazardError)


def test_gather_reads_only_the_rows_it_names() -> None:
    def body(*rows: int) -> Any:
        table, dst = empty((40, 6), buffer=HBM), empty((2, 6))
        nisa.dma_copy(table[10:20], tile(TABLE[10:20]))
        nisa.dma_copy(dst, table.vector_select(0, column(*rows)))
        return values_of(dst)

    np.testing.assert_array_equal(execute(lambda: body(19, 10)), TABLE[[19, 10]])
    refused(lambda: body(19, 20), "src", "6 of 12", error=NkiHazardError)


# -- scatter --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", (SBUF, HBM))
def test_scatter(source: Any) -> None:
    new, rows = RNG.normal(size=(4, 6)).astype(np.float32), [8, 0, 39, 1]

    def body() -> Any:
        table = tile(TABLE, buffer=HBM)
        nisa.dma_copy(table.vector_select(0, column(*rows)), tile(new, buffer=source))
        return values_of(table)

    expected = TABLE.copy()
    expected[rows] = new
    np.testing.assert_array_equal(execute(body), expected)


def test_scatter_skips_indices_out_of_bounds() -> None:
    """-1 in an unsigned index, as caches mark rows that are not to be written."""
    new = RNG.normal(size=(3, 6)).astype(np.float32)

    def body(**options: Any) -> Any:
        table = tile(TABLE, buffer=HBM)
        index = column(2**32 - 1, 4, 2**32 - 1, dtype=np.uint32)
        nisa.dma_copy(table.vector_select(0, index), tile(new), **options)
        return values_of(table)

    refused(body, "dst", "4294967295 of row 0")
    expected = TABLE.copy()
    expected[4] = new[1]
    np.testing.assert_array_equal(execute(lambda: body(oob_mode=SKIP)), expected)


def test_scatter_of_column_blocks_with_a_cast() -> None:
    new = RNG.normal(size=(2, 3)).astype(np.float32)

    def body() -> Any:
        table = tile(TABLE, "bfloat16", buffer=HBM)
        dst = table.ap([[6, 2], [1, 3]], 3, vector_offset=column(11, 10))
        nisa.dma_copy(dst, tile(new))
        return values_of(table)

    expected = TABLE.astype(ml_dtypes.bfloat16)
    expected[[11, 10], 3:] = new.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(execute(body), expected)


def test_scatter_initialises_the_rows_it_writes() -> None:
    def body() -> None:
        table = empty((8, 6), buffer=HBM)
        nisa.dma_copy(table.vector_select(0, column(1, 2)), tile(TABLE[:2]))
        nisa.dma_copy(empty((2, 6)), table[1:3])
        nisa.dma_copy(empty((3, 6)), table[1:4])

    refused(body, "6 of 18", "[2, 0]", error=NkiHazardError)


def test_duplicate_indices_have_no_defined_order() -> None:
    def body(*rows: int) -> None:
        table = tile(TABLE, buffer=HBM)
        nisa.dma_copy(table.vector_select(0, column(*rows)), tile(TABLE[:3]), oob_mode=SKIP)

    refused(lambda: body(4, 9, 4), "dst", "row 4", "not defined", error=NkiHazardError)
    execute(lambda: body(99, 4, 99))  # nothing is written twice


def test_rows_that_overlap_collide_like_duplicates() -> None:
    """Rows of one element with a pattern of three: windows at 4 and 6 share an element."""

    def body(*rows: int) -> Any:
        line = tile(np.zeros((20,), np.float32), buffer=HBM)
        dst = line.ap([[1, 2], [1, 3]], vector_offset=column(*rows))
        nisa.dma_copy(dst, tile(np.array([[1, 2, 3], [4, 5, 6]], np.float32)))
        return values_of(line)

    refused(lambda: body(4, 6), "dst", error=NkiHazardError)
    assert execute(lambda: body(4, 7))[4:10].tolist() == [1, 2, 3, 4, 5, 6]


def test_vector_record_is_conservative() -> None:
    def body() -> None:
        table, index, dst = tile(TABLE, buffer=HBM), column(3, 50, 4), empty((3, 6))
        nisa.dma_copy(dst, table.vector_select(0, index), oob_mode=SKIP)

    (record,) = records(observe(body))
    assert record.work["indirect"] == "vector" and record.work["rows"] == 2
    assert [access.shape for access in record.reads] == [(40, 6), (3, 1)]


# -- rules ----------------------------------------------------------------------------------------


def gather(index: Any, rows: int = 4, **options: Any) -> None:
    nisa.dma_copy(empty((rows, 6)), tile(TABLE, buffer=HBM).vector_select(0, index), **options)


def taller() -> None:
    src = tile(TABLE, buffer=HBM).ap([[6, 5], [1, 6]], vector_offset=column(0, 1, 2, 3))
    nisa.dma_copy(empty((5, 6)), src)


def both() -> None:
    table, other = tile(TABLE, buffer=HBM), tile(TABLE, buffer=HBM)
    nisa.dma_copy(other.vector_select(0, column(1)), table.vector_select(0, column(2)))


RULES = {
    "hwdge": (lambda: gather(column(0, 1, 2, 3), dge_mode=nisa.dge_mode.hwdge), "dge_mode"),
    "static": (lambda: gather(column(0, 1, 2, 3), dge_mode=nisa.dge_mode.none), "dge_mode"),
    "static with a register": (
        lambda: nisa.dma_copy(
            empty((1, 6)), tile(TABLE, buffer=HBM)[nl.ds(nisa.register_alloc(1), 1)],
            dge_mode=nisa.dge_mode.none,
        ), "dge_mode",
    ),
    "an index a row": (taller, "index shape [4, 1]"),
    "two columns": (lambda: gather(tile(np.zeros((4, 2), np.int32))), "index shape [4, 2]"),
    "index dtype": (lambda: gather(tile(np.zeros((4, 1), np.int16))), "int16"),
    "index in HBM": (lambda: gather(tile(np.zeros((4, 1), np.int32), buffer=HBM)), "SBUF"),
    "table in SBUF": (lambda: tile(TABLE).vector_select(0, column(0, 1, 2, 3)), "HBM"),
    "both": (both, "both"),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    body, word = RULES[rule]
    refused(body, word, "test_dma_dynamic.py")


def test_trn1_gathers_too() -> None:
    execute(lambda: gather(column(0, 1, 2, 3)), target="trn1")


def test_gather_within_one_tensor() -> None:
    """Rows may move within a tensor as long as none is both read and written."""

    def body(*rows: int) -> Any:
        table = tile(TABLE, buffer=HBM)
        nisa.dma_copy(table[0:2], table.vector_select(0, column(*rows)))
        return values_of(table)

    np.testing.assert_array_equal(execute(lambda: body(5, 2))[:2], TABLE[[5, 2]])
    refused(lambda: body(5, 1), "share bytes", error=NkiHazardError)
