"""Tensor engine: products against float64, transposes bit for bit, accumulation, every rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
from nkisim import NkiNotImplementedError, NkiValidationError
from nkisim.dtypes import NUMPY
from nkisim.enums import PRIVATE_HBM, PSUM
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

RNG = np.random.default_rng(11)
mm: Any = nisa.nc_matmul  # for calls that a type checker would refuse
tr = nisa.nc_transpose
DOUBLE_ROW = nisa.matmul_perf_mode.double_row
FLOATS = ("float8_e4m3", "float8_e5m2", "bfloat16", "float16", "tfloat32", "float32")


def psum(shape: tuple[int, ...], dtype: str = "float32", **where: Any) -> Any:
    return empty(shape, dtype, PSUM, **where)


def small(*shape: int) -> np.ndarray:
    """Multiples of 1/4 up to 2: exact in every float, and so are their sums of products."""
    return RNG.integers(-8, 9, shape).astype(np.float32) / 4


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.float64).T @ b.astype(np.float64)


def refused(body: Callable[[], Any], *words: str, error: type = NkiValidationError, **options: Any):
    with pytest.raises(error) as caught:
        execute(body, **options)
    for word in words:
        assert word in str(caught.value)
    return caught


# -- products -------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", FLOATS)
@pytest.mark.parametrize("second", FLOATS)
def test_product_of_every_pair_of_dtypes(first: str, second: str) -> None:
    """float32 and tfloat32 go together; everything else may mix."""
    a, b = small(48, 20), small(48, 36)

    def body() -> Any:
        dst = psum((20, 36))
        nisa.nc_matmul(dst, tile(a, first), tile(b, second))
        return values_of(dst)

    if ("32" in first) != ("32" in second):
        refused(body, "stationary and moving", first, second)
    else:
        np.testing.assert_array_equal(execute(body), product(a, b))


def test_product_rounds_its_operands_only() -> None:
    a = RNG.normal(size=(128, 128)).astype(np.float32)
    b = RNG.normal(size=(128, 512)).astype(np.float32)

    def body() -> Any:
        dst = psum((128, 512))
        nisa.nc_matmul(dst, tile(a, "bfloat16"), tile(b, "bfloat16"))
        return values_of(dst)

    expected = product(a.astype(ml_dtypes.bfloat16), b.astype(ml_dtypes.bfloat16))
    np.testing.assert_allclose(execute(body), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out", ("dense", "columns", "stepped", "partitions"))
def test_product_of_views(layout: str, out: str) -> None:
    a, b = small(32, 16), small(32, 24)

    def body() -> Any:
        s, m = place((32, 16), "float32", layout), place((32, 24), "float32", layout)
        dst = place((16, 24), "float32", out, PSUM)
        nisa.nc_matmul(dst, fill(s, a), fill(m, b))
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), product(a, b))


@pytest.mark.parametrize("shape", ((16, 32), (16, 4, 8)))
def test_f19_f34_free_dimensions_are_flattened(shape: tuple[int, ...]) -> None:
    a, b = small(24, 2, 8), small(24, 4, 8)

    def body() -> Any:
        dst = psum(shape)
        nisa.nc_matmul(dst, tile(a), tile(b))
        return values_of(dst)

    expected = product(a.reshape(24, 16), b.reshape(24, 32)).reshape(shape)
    np.testing.assert_array_equal(execute(body), expected)


@pytest.mark.parametrize("k", (1, 128))
def test_f06_double_row_sums_over_row_pairs(k: int) -> None:
    a, b = small(k, 2, 32), small(k, 2, 64)

    def body() -> Any:
        dst = psum((32, 64))
        nisa.nc_matmul(
            dst, tile(a, "float8_e4m3"), tile(b, "float8_e5m2"), perf_mode=DOUBLE_ROW
        )  # fmt: skip
        return values_of(dst)

    expected = np.einsum("kjm,kjn->mn", a.astype(float), b.astype(float))
    np.testing.assert_array_equal(execute(body), expected)


def test_row_and_column_tiles_give_the_same_product() -> None:
    a, b = small(32, 32), small(32, 16)

    def body() -> Any:
        dst = psum((32, 16))
        nisa.nc_matmul(dst, tile(a), tile(b), tile_position=(96, 32), tile_size=(32, 32))
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), product(a, b))


def test_ones_and_zeros_hint_must_be_true() -> None:
    a, b = small(8, 8), np.eye(8, dtype=np.float32)

    def body(hint: str) -> Any:
        dst = psum((8, 8))
        mm(dst, tile(a), tile(b), **{hint: True})
        return values_of(dst)

    np.testing.assert_array_equal(execute(lambda: body("is_moving_onezero")), a.T)
    refused(lambda: body("is_stationary_onezero"), "is_stationary_onezero", error=NkiHazardError)


def test_record_tells_the_cost_model_what_it_needs() -> None:
    def body() -> None:
        nisa.nc_matmul(psum((16, 24)), tile(small(32, 16)), tile(small(32, 24)), name="mm")
        nisa.nc_transpose(psum((16, 32)), tile(small(32, 16)))
        nisa.nc_transpose(empty((16, 32)), tile(small(32, 16)))

    matmul, transpose, by_vector = records(observe(body))
    assert (matmul.op, matmul.engine, matmul.name) == ("nc_matmul", nisa.engine.tensor, "mm")
    assert matmul.work == {
        "k": 32, "m": 16, "n": 24, "dtype": "float32", "onezero": False, "transpose": False,
        "double_row": False, "tile": (0, 0, 128, 128),
    }  # fmt: skip
    assert transpose.work == {"k": 32, "n": 16, "dtype": "float32"}
    assert (by_vector.engine, by_vector.work) == (nisa.engine.vector, {})


# -- accumulation ---------------------------------------------------------------------------------


def test_f07_first_write_is_decided_for_each_element() -> None:
    a, b, ones = small(16, 8), small(16, 8), np.eye(16, 8, dtype=np.float32)

    def body() -> Any:
        dst = psum((8, 8))
        nisa.nc_matmul(dst[:, 0:6], tile(ones), tile(a[:, 0:6]))
        nisa.nc_matmul(dst[:, 2:8], tile(ones), tile(b[:, 2:8]))
        return values_of(dst)

    expected = np.concatenate([a[:8, :2], a[:8, 2:6] + b[:8, 2:6], b[:8, 6:]], axis=1)
    np.testing.assert_array_equal(execute(body), expected)


@pytest.mark.parametrize("checks", ("raise", "off"))
def test_accumulate_none_true_and_false(checks: str) -> None:
    a, b = small(16, 8), small(16, 12)

    def body() -> Any:
        s, m = tile(a), tile(b)
        inferred, explicit, again = psum((8, 12)), psum((8, 12)), psum((8, 12))
        for step in range(3):
            nisa.nc_matmul(inferred, s, m)
            nisa.nc_matmul(explicit, s, m, accumulate=step > 0)
            nisa.nc_matmul(again, s, m, accumulate=False)
        return values_of(inferred), values_of(explicit), values_of(again)

    inferred, explicit, again = execute(body, checks=checks)
    np.testing.assert_array_equal(inferred, 3 * product(a, b))
    np.testing.assert_array_equal(explicit, 3 * product(a, b))
    np.testing.assert_array_equal(again, product(a, b))


@pytest.mark.parametrize("checks", ("raise", "off"))
def test_accumulate_none_overwrites_what_no_matmul_wrote(checks: str) -> None:
    """`nl.zeros(buffer=psum)` before a loop of matmuls is a public example."""
    a, b = small(16, 8), small(16, 12)

    def body() -> Any:
        dst = tile(np.full((8, 12), 7.0, np.float32), buffer=PSUM)
        nisa.nc_matmul(dst, tile(a), tile(b))
        return values_of(dst)

    np.testing.assert_array_equal(execute(body, checks=checks), product(a, b))


@pytest.mark.parametrize("before", ("nothing", "memset", "transpose", "half"))
def test_f08_accumulation_must_be_started_by_a_matmul(before: str) -> None:
    a, b = small(8, 8), small(8, 8)

    def body() -> None:
        dst = psum((8, 8))
        if before == "memset":
            nisa.memset(dst, 1.0)
        elif before == "transpose":
            nisa.nc_transpose(dst, tile(a))
        elif before == "half":
            nisa.nc_matmul(dst[:, :4], tile(a), tile(b[:, :4]))
        nisa.nc_matmul(dst, tile(a), tile(b), accumulate=True)

    caught = refused(body, "nc_matmul: accumulate", "accumulate=False", error=NkiHazardError)
    assert "test_tensor.py" in str(caught.value)
    assert ("32 of 64" if before == "half" else "64 of 64") in str(caught.value)


def test_f08_clean_twin_and_report_mode() -> None:
    a, b = small(8, 8), small(8, 8)

    def clean() -> Any:
        dst = tile(np.ones((8, 8), np.float32), buffer=PSUM)
        nisa.nc_matmul(dst, tile(a), tile(b), accumulate=False)
        nisa.nc_matmul(dst, tile(a), tile(b), accumulate=True)
        return values_of(dst)

    def planted() -> Any:
        dst = tile(np.ones((8, 8), np.float32), buffer=PSUM)
        nisa.nc_matmul(dst, tile(a), tile(b), accumulate=True)
        return values_of(dst)

    np.testing.assert_array_equal(execute(clean), 2 * product(a, b))
    run = observe(planted, checks="report")
    np.testing.assert_array_equal(run.result, 1 + product(a, b))
    assert [finding.kind for finding in run.report.program.findings] == ["accumulation not started"]


def test_uninitialised_operand() -> None:
    refused(
        lambda: nisa.nc_matmul(psum((8, 8)), empty((8, 8)), tile(small(8, 8))),
        "stationary", "never written", error=NkiHazardError,
    )  # fmt: skip


# -- transposes -----------------------------------------------------------------------------------


def bits(dtype: str, *shape: int) -> np.ndarray:
    """Random bit patterns, NaN and infinity among them."""
    size = NUMPY[dtype].itemsize
    return RNG.integers(0, 256, (*shape, size), np.uint8).view(NUMPY[dtype])[..., 0]


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(
        np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8)
    )


@pytest.mark.parametrize(
    "dtype", ("float32", "bfloat16", "float16", "int32", "uint16", "float8_e4m3")
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_transpose_on_both_engines(dtype: str, layout: str) -> None:
    data = bits(dtype, 32, 3, 8)

    def body() -> Any:
        source = fill(place((32, 3, 8), dtype, layout), data)
        by_tensor, by_vector = psum((24, 32), dtype), empty((24, 32), dtype)
        nisa.nc_transpose(by_tensor, source)
        nisa.nc_transpose(by_vector, source)
        return values_of(by_tensor), values_of(by_vector)

    for result in execute(body):
        same_bits(result, data.reshape(32, 24).T)


def test_float8_transpose_into_16_bit_slots() -> None:
    data = bits("float8_e5m2", 128, 64)

    def body() -> Any:
        dst = psum((64, 128), "uint16")
        nisa.nc_transpose(dst, tile(data))
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), data.T.view(np.uint8).astype(np.uint16))


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
def test_matmul_transpose_mode_passes_bits(dtype: str) -> None:
    data = bits(dtype, 64, 48)

    def body() -> Any:
        dst = psum((48, 64), dtype)
        identity = tile(np.eye(64, dtype=np.float32), dtype)
        nisa.nc_matmul(dst, tile(data), identity, is_transpose=True)
        nisa.nc_matmul(dst, tile(data), identity, is_transpose=True)  # overwrites
        return values_of(dst)

    same_bits(execute(body), data.T)


def test_transpose_mode_may_permute() -> None:
    data, order = bits("bfloat16", 64, 48), RNG.permutation(64)[:40]

    def body() -> Any:
        dst = psum((48, 40), "bfloat16")
        selection = np.eye(64, dtype=np.float32)[:, order]
        nisa.nc_matmul(dst, tile(data), tile(selection, "bfloat16"), is_transpose=True)
        return values_of(dst)

    same_bits(execute(body), data[order].T)


def test_trn1_has_no_transpose_mode() -> None:
    """There `is_transpose` is a hint: an ordinary matmul into float32."""
    data = small(16, 8)

    def body() -> Any:
        dst = psum((8, 16))
        identity = tile(np.eye(16, dtype=np.float32), "bfloat16")
        nisa.nc_matmul(dst, tile(data, "bfloat16"), identity, is_transpose=True)
        return values_of(dst)

    np.testing.assert_array_equal(execute(body, target="trn1"), data.T)


@pytest.mark.parametrize("buffer", (None, PSUM))
def test_f45_engine_of_a_transpose(buffer: Any) -> None:
    """Left open: Tensor for an SBUF source and PSUM destination, else Vector."""

    def body() -> None:
        source = tile(small(16, 8), buffer=buffer or tile(small(1, 1)).buffer)
        nisa.nc_transpose(psum((8, 16)), source)

    record = records(observe(body))[-1]
    assert record.engine is (nisa.engine.vector if buffer is PSUM else nisa.engine.tensor)


# -- rules ----------------------------------------------------------------------------------------

V = nisa.engine.vector
T = nisa.engine.tensor


def eye(n: int, dtype: str = "bfloat16") -> Any:
    return tile(np.eye(n, dtype=np.float32), dtype)


def ones(*shape: int, dtype: str = "bfloat16", **where: Any) -> Any:
    return tile(np.ones(shape, np.float32), dtype, **where)


MATMUL_RULES = {
    "dst in SBUF": (lambda: mm(empty((8, 8)), ones(8, 8), ones(8, 8)), "dst"),
    "stationary in PSUM": (
        lambda: mm(psum((8, 8)), ones(8, 8, buffer=PSUM), ones(8, 8)), "stationary",
    ),
    "moving in HBM": (
        lambda: mm(psum((8, 8)), ones(8, 8), ones(8, 8, buffer=PRIVATE_HBM)), "moving",
    ),
    "no tensor": (lambda: mm(psum((8, 8)), 3, ones(8, 8)), "stationary"),
    "integers": (
        lambda: mm(psum((8, 8)), ones(8, 8, dtype="int8"), ones(8, 8)), "stationary",
    ),
    "F56 e4m3fn": (
        lambda: mm(psum((8, 8)), ones(8, 8, dtype="float8_e4m3fn"), ones(8, 8)),
        "stationary",
    ),
    "F26 bf16 dst": (lambda: mm(psum((8, 8), "bfloat16"), ones(8, 8), ones(8, 8)), "dst"),
    "K": (lambda: mm(psum((8, 8)), ones(16, 8), ones(8, 8)), "moving"),
    "M": (lambda: mm(psum((128, 8)), ones(8, 129), ones(8, 8)), "M = 129"),
    "F26 N": (lambda: mm(psum((8, 513)), ones(8, 8), ones(8, 513)), "N = 513"),
    "dst shape": (lambda: mm(psum((8, 9)), ones(8, 8), ones(8, 8)), "dst"),
    "two banks": (lambda: mm(psum((8, 600))[:, 300:600], ones(8, 8), ones(8, 300)), "bank"),
    "two banks by address": (
        lambda: mm(psum((8, 600), address=(0, 2048))[:, 300:], ones(8, 8), ones(8, 300)), "bank",
    ),
    "start partition": (
        lambda: mm(psum((8, 8)), ones(40, 8)[16:24], ones(8, 8)), "stationary",
    ),
    "accumulate": (
        lambda: mm(psum((8, 8)), ones(8, 8), ones(8, 8), accumulate="yes"), "accumulate",
    ),
    "perf_mode": (
        lambda: mm(psum((8, 8)), ones(8, 8), ones(8, 8), perf_mode="double_row"), "perf_mode",
    ),
    "double_row dtype": (
        lambda: mm(psum((8, 8)), ones(8, 2, 8), ones(8, 2, 8), perf_mode=DOUBLE_ROW),
        "stationary",
    ),
    "double_row shape": (
        lambda: mm(
            psum((8, 8)), ones(8, 2, 8, dtype="float8_e4m3"), ones(8, 8, dtype="float8_e4m3"),
            perf_mode=DOUBLE_ROW,
        ), "moving",
    ),
    "double_row transposing": (
        lambda: mm(
            psum((8, 8)), ones(8, 2, 8, dtype="float8_e4m3"), ones(8, 2, 8, dtype="float8_e4m3"),
            perf_mode=DOUBLE_ROW, is_transpose=True,
        ), "perf_mode",
    ),
    "double_row in columns": (
        lambda: mm(
            psum((8, 8)), ones(8, 2, 8, dtype="float8_e4m3"), ones(8, 2, 8, dtype="float8_e4m3"),
            perf_mode=DOUBLE_ROW, tile_position=(0, 0), tile_size=(128, 64),
        ), "tile_size",
    ),
    "only tile_size": (
        lambda: mm(psum((8, 8)), ones(8, 8), ones(8, 8), tile_size=(64, 64)), "tile_position",
    ),
    "tile_size": (
        lambda: mm(
            psum((8, 8)), ones(8, 8), ones(8, 8), tile_position=(0, 0), tile_size=(16, 128)
        ), "tile_size",
    ),
    "tile_position": (
        lambda: mm(
            psum((8, 8)), ones(8, 8), ones(8, 8), tile_position=(32, 0), tile_size=(64, 128)
        ), "tile_position",
    ),
    "stationary beyond its tile": (
        lambda: mm(
            psum((8, 8)), ones(64, 8), ones(64, 8), tile_position=(0, 0), tile_size=(32, 128)
        ), "K = 64 exceeds the 32 rows",
    ),
    "transpose dtype": (
        lambda: mm(psum((8, 8)), ones(8, 8), eye(8), is_transpose=True), "dst",
    ),
    "transpose adds": (
        lambda: mm(
            psum((8, 8), "bfloat16"), ones(8, 8), eye(8), is_transpose=True, accumulate=True
        ), "accumulate",
    ),
    "transpose without identity": (
        lambda: mm(psum((8, 8), "bfloat16"), ones(8, 8), ones(8, 8), is_transpose=True),
        "moving",
    ),
}  # fmt: skip

TRANSPOSE_RULES = {
    "dtype": (lambda: tr(psum((8, 8)), ones(8, 8)), "dst"),
    "shape": (lambda: tr(psum((8, 9), "bfloat16"), ones(8, 8)), "dst"),
    "F45 too big for Vector": (
        lambda: tr(psum((64, 64), "bfloat16"), ones(64, 64), engine=V), "data",
    ),
    "too big for Tensor": (lambda: tr(psum((128, 8), "bfloat16"), ones(8, 129)), "data"),
    "F45 Tensor to SBUF": (
        lambda: tr(empty((8, 8), "bfloat16"), ones(8, 8), engine=T), "dst",
    ),
    "Tensor from PSUM": (
        lambda: tr(psum((8, 8)), ones(8, 8, dtype="float32", buffer=PSUM), engine=T),
        "data",
    ),
    "engine": (
        lambda: tr(psum((8, 8), "bfloat16"), ones(8, 8), engine=nisa.engine.scalar),
        "engine",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", MATMUL_RULES)
def test_matmul_rule(rule: str) -> None:
    body, word = MATMUL_RULES[rule]
    refused(body, "nc_matmul", word, "test_tensor.py")


@pytest.mark.parametrize("rule", TRANSPOSE_RULES)
def test_transpose_rule(rule: str) -> None:
    body, word = TRANSPOSE_RULES[rule]
    refused(body, "nc_transpose", word, "test_tensor.py")


@pytest.mark.parametrize("tiling", ((32, 128), (128, 32)))
def test_trn1_has_no_quarter_tiles_and_no_double_row(tiling: tuple[int, int]) -> None:
    def quarter() -> None:
        nisa.nc_matmul(psum((8, 8)), ones(8, 8), ones(8, 8), tile_position=(0, 0), tile_size=tiling)

    def double() -> None:
        pair = ones(8, 2, 8, dtype="float8_e4m3")
        nisa.nc_matmul(psum((8, 8)), pair, pair, perf_mode=DOUBLE_ROW)

    refused(quarter, "tile_size", target="trn1")
    refused(double, "perf_mode", target="trn1")
    execute(quarter)
    execute(double)


def test_illegal_call_leaves_the_destination_alone() -> None:
    def body() -> Any:
        dst = tile(np.full((8, 8), 5.0, np.float32), buffer=PSUM)
        with pytest.raises(NkiValidationError):
            nisa.nc_matmul(dst, ones(16, 8), ones(8, 8))
        with pytest.raises(NkiHazardError):
            nisa.nc_matmul(dst, ones(8, 8), ones(8, 8), accumulate=True)
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), np.full((8, 8), 5.0))


@pytest.mark.parametrize("old", ("psumAccumulateFlag", "is_moving_zero"))
def test_f88_old_names_are_unknown(old: str) -> None:
    def body() -> None:
        mm(psum((8, 8)), ones(8, 8), ones(8, 8), **{old: True})

    refused(body, old, error=TypeError)


def test_f05_mx_needs_gen4() -> None:
    refused(
        lambda: nisa.nc_matmul_mx(psum((8, 8)), 1, 1, 1, 1), "nc_matmul_mx", "v4",
        error=NkiNotImplementedError,
    )  # fmt: skip
