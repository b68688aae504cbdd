"""Every instruction set that this machine has: all cases, and the same bits always."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.calls import BACKENDS
from tkg.backends import cpu

HERE = Path(__file__).parent
ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "neon")

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cpu out")


def run_with(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"TKG_ISA": isa, "OMP_NUM_THREADS": "2"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_cases_and_invariance_on(isa: str) -> None:
    """The set in use by default is the one that all other tests run on."""
    core = cpu.core()
    if isa not in core.runnable_isas().split():
        refused = run_with(isa, "-c", "from tkg.backends import cpu; print(cpu.unavailable())")
        assert isa in refused.stdout
        return
    if isa == core.isa():
        return
    tests = [str(HERE / name) for name in ("test_cases.py", "test_invariance.py")]
    picked = "cpu and is_right or invariance and not every_case"
    ran = run_with(isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", picked)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert " passed" in ran.stdout


def test_the_forced_set_is_the_one_in_use() -> None:
    for isa in cpu.core().runnable_isas().split():
        ran = run_with(isa, "-c", "from tkg.backends import cpu; print(cpu.core().isa())")
        assert ran.stdout.strip() == isa


def test_an_unknown_set_is_refused_by_name() -> None:
    ran = run_with("mmx", "-c", "from tkg.backends import cpu; print(cpu.unavailable())")
    assert "mmx" in ran.stdout
