"""The entry point, with and without the packages of the `run` extra."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tkg.cli.main import EXTRA

APP = "from tkg.cli.main import app; app()"


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_command() -> None:
    done = run(APP, "--help")
    assert done.returncode == 0
    for name in ("generate", "verify", "info"):
        assert name in done.stdout


@pytest.mark.parametrize("package", EXTRA)
def test_a_missing_package_is_named_with_its_cure(package: str) -> None:
    done = run(f"import sys; sys.modules[{package!r}] = None; {APP}", "generate", "hi")
    assert done.returncode == 1
    assert f"needs the package {package}: pip install 'tkg[run]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_missing_module_is_a_bug_and_shows() -> None:
    done = run(f"import sys; sys.modules['hashlib'] = None; {APP}", "generate", "hi")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "hashlib" in done.stderr
