"""Several Python threads at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import tkg
from tests.calls import BACKENDS, run, same_bits
from tests.interpreter import INTERPRETED
from tkg.testing.case import Case, ProjectionCase

cpu_only = pytest.mark.skipif("cpu" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cpu out")


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter has one grid for all threads")
def test_calls_at_once_do_not_disturb_each_other(backend: str) -> None:
    """Different sizes, so that shared scratch memory would show."""
    calls = [
        Case(name=f"thread-{n}", lengths=(n * 9,) * n, tokens=n, d_head=16 * n).inputs()
        for n in (1, 2, 3, 4)
    ]
    want = [run(backend, call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            got = list(pool.map(lambda call: run(backend, call), calls))
            for ours, theirs in zip(got, want, strict=True):
                assert all(map(same_bits, ours, theirs))


@cpu_only
def test_changing_the_number_of_threads_during_calls_changes_no_bits(backend: str) -> None:
    call = Case(name="changing", lengths=(60, 3, 20)).inputs()
    want = run(backend, call)
    before = tkg.get_num_threads()
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for count in (1, 2, 3):
                tkg.set_num_threads(count)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(50):
            assert all(map(same_bits, run(backend, call), want))
    finally:
        done.set()
        changer.join()
        tkg.set_num_threads(before)


@cpu_only
def test_the_gil_is_free_while_the_core_runs() -> None:
    """Another thread counts on while one call takes long. If the GIL were held, it would stop."""
    call = ProjectionCase(name="long", d_head=512, heads=4, batch=640, hidden=4096).inputs()
    ticks: list[float] = []
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    before = tkg.get_num_threads()
    tkg.set_num_threads(1)
    counter = threading.Thread(target=count)
    counter.start()
    try:
        tkg.output_projection_tkg(**call, backend="cpu")
        start = time.perf_counter()
        tkg.output_projection_tkg(**call, backend="cpu")
        stop = time.perf_counter()
    finally:
        done.set()
        counter.join()
        tkg.set_num_threads(before)
    during = sum(start < tick < stop for tick in ticks)
    assert stop - start > 0.015, "the call is too short to tell"
    assert during >= 5, f"{during} ticks in {stop - start:.3f} s"


@cpu_only
@pytest.mark.parametrize("count", [0, -1])
def test_a_number_of_threads_is_at_least_one(count: int) -> None:
    with pytest.raises(ValueError, match=str(count)):
        tkg.set_num_threads(count)


@cpu_only
def test_more_threads_than_work(backend: str) -> None:
    """More threads than rows, heads or processors."""
    call = Case(name="many", lengths=(1,), q_heads=1).inputs()
    want = run(backend, call)
    before = tkg.get_num_threads()
    try:
        tkg.set_num_threads(33)
        got = run(backend, call)
    finally:
        tkg.set_num_threads(before)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@cpu_only
def test_thousands_of_short_calls() -> None:
    """Threads that wait go to sleep; each has to be woken each time."""
    call = ProjectionCase(name="short", d_head=8, heads=1, hidden=8).inputs()
    want = tkg.output_projection_tkg(**call, backend="reference")
    before = tkg.get_num_threads()
    tkg.set_num_threads(3)
    try:
        for _ in range(3000):
            got = tkg.output_projection_tkg(**call, backend="cpu")
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    finally:
        tkg.set_num_threads(before)


@cpu_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_can_call() -> None:
    """multiprocessing and torch's data loaders fork; the child has none of the parent's threads."""
    code = """
import os, numpy as np, tkg
tkg.set_num_threads(3)
call = np.ones((64, 8, 4, 1), np.float32), np.ones((256, 512), np.float32)
want = tkg.output_projection_tkg(*call, backend="cpu")
child = os.fork()
if child == 0:
    os._exit(0 if (tkg.output_projection_tkg(*call, backend="cpu") == want).all() else 3)
assert os.waitpid(child, 0)[1] == 0
assert (tkg.output_projection_tkg(*call, backend="cpu") == want).all()
"""
    command = ["timeout", "20", sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(command, timeout=30).returncode == 0


@cpu_only
@pytest.mark.parametrize("n", [0, -1, 1025, 2**40, 1.5, "2", None, True])
def test_a_wrong_number_of_threads_is_refused(n: Any) -> None:
    before = tkg.get_num_threads()
    with pytest.raises((ValueError, TypeError), match=f"^set_num_threads: n must be .*; got {n!r}"):
        tkg.set_num_threads(n)
    assert tkg.get_num_threads() == before
