"""Two cores of a launch: core_barrier and sendrecv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiValidationError
from nkisim.enums import PRIVATE_HBM, PSUM, SHARED_HBM
from nkisim.errors import NkiHazardError
from tests.nkisim.harness import empty, execute, observe, records, tile

RNG = np.random.default_rng(21)
HALVES = RNG.normal(size=(2, 8, 6)).astype(np.float32)
DMA, GPSIMD = nisa.dma_engine.dma, nisa.dma_engine.gpsimd_dma


def refused(
    body: Callable[..., Any], *words: str, error: type[Exception] = NkiValidationError,
    lnc: int = 2, **options: Any,
) -> None:  # fmt: skip
    with pytest.raises(error) as caught:
        execute(body, lnc=lnc, **options)
    for word in words:
        assert word in str(caught.value)


# -- core_barrier ---------------------------------------------------------------------------------


def exchange_through_hbm() -> Any:
    """Each core writes its half of a shared tensor and, after the barrier, reads the other's."""
    me = nl.program_id(0)
    shared = empty((2, 8, 6), buffer=SHARED_HBM)
    out = empty((2, 8, 6), buffer=SHARED_HBM)
    nisa.dma_copy(shared[me], tile(HALVES[me]))
    nisa.core_barrier(shared, (0, 1))
    seen = empty((8, 6))
    nisa.dma_copy(seen, shared[1 - me])
    nisa.dma_copy(out[me], seen)
    return out


def test_barrier_makes_the_other_half_visible() -> None:
    np.testing.assert_array_equal(execute(exchange_through_hbm, lnc=2), HALVES[::-1])


def test_barrier_record() -> None:
    run = observe(exchange_through_hbm, lnc=2)
    both = [*records(run, 0), *records(run, 1)]
    barriers = [record for record in both if record.op == "core_barrier"]
    assert len(barriers) == 2
    assert barriers[0].work["meeting"] == barriers[1].work["meeting"]
    assert {barrier.work["members"] for barrier in barriers} == {(0, 1)}
    assert {barrier.engine for barrier in barriers} == {nisa.engine.gpsimd}
    assert all(b.reads[0].allocation is b.writes[0].allocation for b in barriers)


def test_each_barrier_is_a_meeting_of_its_own() -> None:
    def body() -> None:
        shared = empty((4, 4), buffer=SHARED_HBM)
        for engine in (nisa.engine.gpsimd, nisa.engine.sync, nisa.engine.vector):
            nisa.core_barrier(shared, (0, 1), engine=engine)

    run = observe(body, lnc=2)
    keys = [[record.work["meeting"] for record in records(run, core)] for core in (0, 1)]
    assert keys[0] == keys[1] and len(set(keys[0])) == 3
    engines = [record.engine for record in records(run)]
    assert engines == [nisa.engine.gpsimd, nisa.engine.sync, nisa.engine.vector]


def test_barrier_of_one_core_is_a_deadlock() -> None:
    def body() -> None:
        shared = empty((4, 4), buffer=SHARED_HBM)
        if nl.program_id(0) == 0:
            nisa.core_barrier(shared, (0, 1))

    refused(body, "deadlock", "core_barrier at", "test_cores.py", "core 1 has finished",
            error=NkiHazardError)  # fmt: skip


loose: Any = nisa  # for calls that a type checker would refuse

BARRIER_RULES = {
    "data in private HBM": (
        lambda: nisa.core_barrier(empty((2, 2), buffer=PRIVATE_HBM), (0, 1)), "data",
    ),
    "data in SBUF": (lambda: nisa.core_barrier(empty((2, 2)), (0, 1)), "data"),
    "no tensor": (lambda: loose.core_barrier(0, (0, 1)), "data"),
    "cores": (lambda: nisa.core_barrier(empty((2, 2), buffer=SHARED_HBM), (0,)), "cores"),
    "engine": (
        lambda: nisa.core_barrier(empty((2, 2), buffer=SHARED_HBM), (0, 1), engine=nisa.engine.dma),
        "engine",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", BARRIER_RULES)
def test_barrier_rule(rule: str) -> None:
    body, word = BARRIER_RULES[rule]
    refused(body, "core_barrier", word, "test_cores.py")


def test_barrier_needs_two_cores_and_gen3() -> None:
    def body() -> None:
        nisa.core_barrier(empty((2, 2), buffer=SHARED_HBM), (0, 1))

    refused(body, "lnc", "kernel[2]", lnc=1)
    refused(body, "trn1", target="trn1")


# -- sendrecv -------------------------------------------------------------------------------------


def swap(mode: Any = DMA, dtype: str = "float32", partitions: int = 8) -> Any:
    me = nl.program_id(0)
    dst = empty((partitions, 6), dtype)
    nisa.sendrecv(tile(HALVES[me, :partitions], dtype), dst, 1 - me, 1 - me, 0, dma_engine=mode)
    out = empty((2, partitions, 6), dtype, SHARED_HBM)
    nisa.dma_copy(out[me], dst)
    return out


@pytest.mark.parametrize("mode", nisa.dma_engine)
def test_sendrecv_swaps_tiles(mode: Any) -> None:
    run = observe(lambda: swap(mode), lnc=2)
    np.testing.assert_array_equal(run.result, HALVES[::-1])
    first, second = records(run, 0)[0], records(run, 1)[0]
    assert first.work["meeting"] == second.work["meeting"]
    assert first.work["members"] == (0, 1) and first.work["pipe"] == 0
    gpsimd = mode is GPSIMD
    assert first.engine is (nisa.engine.gpsimd if gpsimd else nisa.engine.dma)


def test_f47_any_number_of_partitions() -> None:
    np.testing.assert_array_equal(execute(lambda: swap(partitions=5), lnc=2), HALVES[::-1, :5])


def test_sendrecv_sends_what_was_there_at_the_call() -> None:
    """The sender overwrites its tile right after; the receiver has the old values."""

    def body() -> Any:
        me = nl.program_id(0)
        src, out = tile(HALVES[me]), empty((2, 8, 6), buffer=SHARED_HBM)
        dst = empty((8, 6))
        nisa.sendrecv(src, dst, 1 - me, 1 - me, pipe_id=3)
        nisa.dma_copy(src, tile(np.zeros((8, 6), np.float32)))
        nisa.dma_copy(out[me], dst)
        return out

    np.testing.assert_array_equal(execute(body, lnc=2), HALVES[::-1])


def test_sendrecv_to_itself() -> None:
    def body() -> Any:
        me = nl.program_id(0)
        dst, out = empty((8, 6)), empty((2, 8, 6), buffer=SHARED_HBM)
        nisa.sendrecv(tile(HALVES[me]), dst, me, me, 0)
        nisa.dma_copy(out[me], dst)
        return out

    np.testing.assert_array_equal(execute(body, lnc=2), HALVES)


def test_different_pipes_are_a_deadlock() -> None:
    def body() -> None:
        me = nl.program_id(0)
        nisa.sendrecv(tile(HALVES[me]), empty((8, 6)), 1 - me, 1 - me, pipe_id=me)

    refused(body, "deadlock", "pipe_id 0", "pipe_id 1", error=NkiHazardError)


def test_cores_that_do_not_fit_each_other() -> None:
    def wrong_partner() -> None:
        nisa.sendrecv(tile(HALVES[0]), empty((8, 6)), 0, 1 - nl.program_id(0), 0)

    def wrong_shape() -> None:
        me = nl.program_id(0)
        src = tile(HALVES[0, : 8 - me])
        nisa.sendrecv(src, empty(src.shape), 1 - me, 1 - me, 0)

    refused(wrong_partner, "recv_from_rank", "sends to core 0", error=NkiHazardError)
    refused(wrong_shape, "[8, 6]", "[7, 6]", error=NkiHazardError)


def send(src: Any = None, dst: Any = None, to: Any = 1, frm: Any = 1, **options: Any) -> None:
    src = tile(HALVES[0]) if src is None else src
    nisa.sendrecv(src, empty((8, 6)) if dst is None else dst, to, frm, 0, **options)


def wide(columns: int, dtype: str) -> None:
    values = np.zeros((4, columns), np.float32)
    me = nl.program_id(0)
    send(tile(values, dtype), empty((4, columns), dtype), 1 - me, 1 - me, dma_engine=GPSIMD)


SEND_RULES = {
    "src in HBM": (lambda: send(tile(HALVES[0], buffer=SHARED_HBM)), "src"),
    "dst in PSUM": (lambda: send(dst=empty((8, 6), buffer=PSUM)), "dst"),
    "dtype": (lambda: send(dst=empty((8, 6), "bfloat16")), "dst"),
    "shape": (lambda: send(dst=empty((6, 8))), "dst"),
    "send_to_rank": (lambda: send(to=2), "send_to_rank"),
    "recv_from_rank": (lambda: send(frm=-1), "recv_from_rank"),
    "F71 dma_engine": (lambda: send(dma_engine=2), "dma_engine"),
    "gpsimd_dma 4 bytes": (lambda: wide(257, "float32"), "1024 bytes"),
    "gpsimd_dma 2 bytes": (lambda: wide(257, "bfloat16"), "512 bytes"),
    "gpsimd_dma 1 byte": (lambda: wide(257, "int8"), "256 bytes"),
}


@pytest.mark.parametrize("rule", SEND_RULES)
def test_sendrecv_rule(rule: str) -> None:
    body, word = SEND_RULES[rule]
    refused(body, "sendrecv", word, "test_cores.py")


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "int8"))
def test_gpsimd_dma_moves_256_elements(dtype: str) -> None:
    execute(lambda: wide(256, dtype), lnc=2)


def test_sendrecv_needs_two_cores() -> None:
    refused(send, "lnc", lnc=1)


def test_f67_old_name_is_unknown() -> None:
    refused(lambda: send(use_gpsimd_dma=True), "use_gpsimd_dma", error=TypeError)


def test_uninitialised_source() -> None:
    refused(lambda: send(empty((8, 6))), "src", "48 of 48", error=NkiHazardError)
