"""The pytest option: tests can `import nki`, hazards fail them, the session ends with a table."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nkisim

TESTS = """\
import numpy as np
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def twice(x, load):
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    if load:
        nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_tensor(dst=tile, data1=tile, data2=tile, op=nl.add)
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=tile)
    return out


def test_right():
    x = np.ones((128, 8), np.float32)
    assert (twice(x, True) == 2).all()
    assert (twice(x, True) == 2).all()


def test_uninitialised():
    twice(np.ones((128, 8), np.float32), False)


def test_target():
    assert nisa.get_nc_version() == nisa.nc_version.gen3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_kernels.py").write_text(TESTS)
    return tmp_path


def pytest_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(nkisim.__file__).parents[1]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # an installed nkisim would be there twice
    }
    for name in ("NEURON_PLATFORM_TARGET_OVERRIDE", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "nkisim.pytest_plugin",
        "-W",
        "error",
        *arguments,
    ]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def table(output: str) -> list[list[str]]:
    """The rows of the table at the end: name, runs, time, findings."""
    section = output.partition("NKI kernels (modelled, nkisim)")[2]
    return [line.split() for line in section.splitlines() if line.startswith("twice")]


def test_hazards_fail_tests_and_the_table_counts_runs(folder: Path) -> None:
    done = pytest_process(folder, "--nkisim")
    assert done.returncode == 1
    assert "2 passed" in done.stdout and "1 failed" in done.stdout, done.stdout
    assert "NkiHazardError" in done.stdout
    ((name, runs, slowest, findings),) = table(done.stdout)
    assert (name, runs, findings) == ("twice", "2", "0")
    assert float(slowest) > 1


def test_reported_hazards_are_counted_also_by_workers(folder: Path) -> None:
    """The workers of pytest-xdist hand their runs to the process that prints."""
    done = pytest_process(folder, "--nkisim", "--nkisim-checks", "report", "-p", "xdist", "-n", "1")
    assert "3 passed" in done.stdout, done.stdout
    assert [(row[1], row[3]) for row in table(done.stdout)] == [("3", "1")]


def test_the_target_is_chosen(folder: Path) -> None:
    done = pytest_process(folder, "--nkisim", "--nkisim-target", "trn1", "-k", "target")
    assert "gen2" in done.stdout and "1 failed" in done.stdout
    assert "no kernel ran" in done.stdout
    done = pytest_process(folder, "--nkisim", "--nkisim-target", "trn9")
    assert done.returncode == 4
    assert "--nkisim-target: no chip 'trn9'" in done.stderr


def test_nothing_happens_without_the_option(folder: Path) -> None:
    done = pytest_process(folder)
    assert done.returncode == 2
    assert "No module named 'nki'" in done.stdout
    assert "modelled" not in done.stdout


def test_the_package_registers_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {"nkisim": "nkisim.pytest_plugin"}
    assert "src/nkisim" in project["tool"]["scikit-build"]["wheel"]["packages"]
