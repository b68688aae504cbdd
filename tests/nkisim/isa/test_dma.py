"""dma_copy with static operands: every pair of memories and layouts, casts, every rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
from nkisim import NkiNotImplementedError, NkiValidationError
from nkisim.dtypes import NUMPY
from nkisim.enums import PRIVATE_HBM, PSUM, SBUF, SHARED_HBM, MemoryRegion
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

RNG = np.random.default_rng(5)
HWDGE, SWDGE, STATIC = nisa.dge_mode.hwdge, nisa.dge_mode.swdge, nisa.dge_mode.none
HBM = PRIVATE_HBM


def ramp(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out", LAYOUTS)
@pytest.mark.parametrize("memories", ((HBM, SBUF), (SBUF, HBM), (SBUF, SBUF), (HBM, HBM)))
def test_copy_between_layouts(
    layout: str, out: str, memories: tuple[MemoryRegion, MemoryRegion]
) -> None:
    values = ramp(32, 3, 8)

    def body() -> Any:
        src = fill(place((32, 3, 8), "float32", layout, memories[0]), values)
        dst = place((32, 3, 8), "float32", out, memories[1])
        nisa.dma_copy(dst, src)
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), values)


@pytest.mark.parametrize("start", (0, 1, 17, 111))
def test_dma_reaches_any_partition(start: int) -> None:
    values = ramp(17, 5)

    def body() -> Any:
        src, dst = tile(np.zeros((128, 5), np.float32)), tile(np.zeros((128, 5), np.float32))
        fill(src[start : start + 17], values)
        nisa.dma_copy(dst[111:128], src[start : start + 17])
        return values_of(dst)

    result = execute(body)
    np.testing.assert_array_equal(result[111:], values)
    assert not result[:111].any()


def test_shapes_may_differ_and_elements_keep_their_order() -> None:
    values = ramp(6, 4, 10)

    def body() -> Any:
        dst = empty((40, 6))
        nisa.dma_copy(dst=dst, src=tile(values, buffer=HBM))
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), values.reshape(40, 6))


def test_broadcast_source() -> None:
    row = ramp(1, 9)

    def body() -> Any:
        dst = empty((20, 9))
        nisa.dma_copy(dst, tile(row, buffer=HBM).broadcast(0, 20))
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), np.repeat(row, 20, 0))


@pytest.mark.parametrize("dtype", sorted(NUMPY))
@pytest.mark.parametrize("mode", (nisa.dge_mode.unknown, HWDGE, SWDGE, STATIC))
def test_equal_dtypes_are_copied_bit_for_bit(dtype: str, mode: Any) -> None:
    size = NUMPY[dtype].itemsize
    values = RNG.integers(0, 256, (16, 12, size), np.uint8).view(NUMPY[dtype])[..., 0]

    def body() -> Any:
        src, dst = fill(empty((16, 12), dtype, HBM), values), empty((16, 12), dtype)
        nisa.dma_copy(dst, src, dge_mode=mode)
        return values_of(dst)

    np.testing.assert_array_equal(
        execute(body).view(np.uint8), np.ascontiguousarray(values).view(np.uint8)
    )


def test_f01_cast_to_integers_rounds_to_even_and_saturates() -> None:
    values = np.array([[0.5, 1.5, 2.5, -0.5, -2.5, 127.5, 128.5, 300, -300, 1e10]], np.float32)

    def body() -> Any:
        source = tile(values, buffer=HBM)
        signed, unsigned = empty((1, 10), "int8"), empty((1, 10), "uint8")
        nisa.dma_copy(signed, source)
        nisa.dma_copy(unsigned, source)
        return values_of(signed), values_of(unsigned)

    signed, unsigned = execute(body)
    assert signed.tolist() == [[0, 2, 2, 0, -2, 127, 127, 127, -128, 127]]
    assert unsigned.tolist() == [[0, 2, 2, 0, 0, 128, 128, 255, 0, 255]]


@pytest.mark.parametrize("mode", (nisa.dge_mode.unknown, SWDGE, STATIC))
def test_cast_goes_through_float32(mode: Any) -> None:
    """int32 to bfloat16: rounded to float32 first."""
    values = np.array([[3, -(2**24) - 1, 2**31 - 1]], np.int32)

    def body() -> Any:
        dst = empty((1, 3), "bfloat16")
        nisa.dma_copy(dst, tile(values, buffer=HBM), dge_mode=mode)
        return values_of(dst)

    expected = values.astype(np.float32).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(execute(body), expected)


def test_record() -> None:
    def body() -> None:
        src, dst = tile(ramp(8, 4), buffer=HBM), empty((8, 4))
        nisa.dma_copy(dst, src, dge_mode=HWDGE, engine=nisa.engine.scalar, name="load")

    (record,) = records(observe(body))
    assert (record.op, record.engine, record.name) == ("dma_copy", nisa.engine.dma, "load")
    assert record.work == {"mode": HWDGE, "trigger": nisa.engine.scalar, "indirect": "none"}
    assert [a.allocation.buffer for a in (*record.reads, *record.writes)] == [HBM, SBUF]


# -- rules ----------------------------------------------------------------------------------------


def copy(dst: Any = None, src: Any = None, **options: Any) -> None:
    dst = empty((8, 4)) if dst is None else dst
    nisa.dma_copy(dst, tile(ramp(8, 4), buffer=HBM) if src is None else src, **options)


RULES = {
    "F62 src in PSUM": (lambda: copy(src=tile(ramp(8, 4), buffer=PSUM)), ("src", "tensor_copy")),
    "F62 dst in PSUM": (lambda: copy(dst=empty((8, 4), buffer=PSUM)), ("dst", "tensor_copy")),
    "no tensor": (lambda: copy(src=1.0), ("src", "1.0")),
    "elements": (lambda: copy(dst=empty((8, 5))), ("src", "32", "40")),
    "F63 hwdge casts": (
        lambda: copy(dst=empty((8, 4), "bfloat16"), dge_mode=HWDGE), ("dge_mode", "view()"),
    ),
    "engine without hwdge": (lambda: copy(engine=nisa.engine.sync), ("engine", "hwdge")),
    "engine without DGE": (
        lambda: copy(engine=nisa.engine.vector, dge_mode=HWDGE), ("engine", "vector"),
    ),
    "F71 engine number": (lambda: copy(engine=6), ("engine", "6")),
    "F71 dge_mode number": (lambda: copy(dge_mode=2), ("dge_mode", "2")),
    "F71 oob_mode number": (lambda: copy(oob_mode=1), ("oob_mode", "1")),
    "packed": (
        lambda: copy(src=fill(empty((8, 4), "float4_e2m1fn_x4", HBM), np.ones((8, 4), np.uint16))),
        ("src", "float4_e2m1fn_x4"),
    ),
    "broadcast dst": (
        lambda: copy(dst=empty((8, 1)).broadcast(1, 4)), ("dst", "broadcast"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    body, words = RULES[rule]
    refused(body, "test_dma.py", "dma_copy", *words)


def test_priority_needs_gen4() -> None:
    refused(lambda: copy(priority=1), "priority", "v4", error=NkiNotImplementedError)


def test_hwdge_needs_gen3() -> None:
    refused(lambda: copy(dge_mode=HWDGE), "dge_mode", target="trn1")
    execute(lambda: copy(dge_mode=SWDGE), target="trn1")


@pytest.mark.parametrize("old", ("dst_rmw_op", "unique_indices"))
def test_f64_old_names_are_unknown(old: str) -> None:
    refused(lambda: copy(**{old: True}), old, error=TypeError)


def test_uninitialised_source() -> None:
    refused(lambda: copy(src=empty((8, 4), buffer=HBM)), "src", "32 of 32", error=NkiHazardError)


@pytest.mark.parametrize("buffer", (SBUF, HBM, SHARED_HBM))
def test_overlap_of_source_and_destination(buffer: MemoryRegion) -> None:
    def shifted() -> None:
        t = tile(ramp(8, 16), buffer=buffer)
        nisa.dma_copy(t[:, 4:12], t[:, 0:8])

    def interleaved() -> Any:
        t = tile(ramp(8, 16), buffer=buffer)
        nisa.dma_copy(t[:, 1:16:2], t[:, 0:16:2])
        return values_of(t)

    refused(shifted, "dma_copy", "share bytes", error=NkiHazardError)
    result = execute(interleaved)
    np.testing.assert_array_equal(result[:, 1::2], result[:, ::2])


def test_overlap_by_explicit_addresses() -> None:
    def body() -> None:
        src = tile(ramp(8, 16), address=(0, 0))
        nisa.dma_copy(empty((8, 16), address=(0, 32)), src)

    refused(body, "dma_copy", "share bytes", error=NkiHazardError)


def test_report_mode_finds_the_overlap_and_goes_on() -> None:
    def body() -> None:
        t = tile(ramp(8, 16))
        nisa.dma_copy(t[:, 4:12], t[:, 0:8])

    findings = observe(body, checks="report").report.program.findings
    assert [finding.kind for finding in findings] == ["overlap within one DMA"]
