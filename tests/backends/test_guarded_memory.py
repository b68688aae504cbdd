"""No case makes the core touch memory outside of its arrays, or a page that is not in use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.calls import BACKENDS
from tkg.backends import cpu
from tkg.testing.cases import CASES, PROJECTION_CASES

pytestmark = [
    pytest.mark.skipif("cpu" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cpu out"),
    pytest.mark.skipif(sys.platform == "win32", reason="mprotect is POSIX"),
]


def guarded(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.guarded", *arguments],
        env=os.environ | {"TKG_ISA": isa},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("place", ["end", "start"])
def test_on_every_instruction_set(place: str) -> None:
    for isa in cpu.core().runnable_isas().split():
        ran = guarded(isa, place)
        assert ran.returncode == 0, f"{isa}: {ran.stdout[-60:]} {ran.stderr[-2000:]}"
        count = sum("ci" in case.tags for case in (*CASES, *PROJECTION_CASES))
        assert len(ran.stdout.split()) == count


@pytest.mark.parametrize("place", ["end", "start"])
def test_the_guards_work(place: str) -> None:
    ran = guarded("baseline", place, "prove")
    assert ran.returncode in (-signal.SIGSEGV, -signal.SIGBUS)
