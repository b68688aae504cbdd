"""`tkg info`: versions, backends, and this machine's measured ceilings."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

import tkg
from tkg.backends import cpu, registry
from tkg.cli import info
from tkg.cli.commands import commands


def output() -> str:
    done = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(commands, ["info"])
    assert done.exit_code == 0
    return done.stdout


def test_it_says_what_is_here() -> None:
    text = output()
    assert re.search(rf"tkg +{tkg.__version__}", text)
    assert platform.python_version() in text
    for package in ("numpy", "ml_dtypes", "gguf", "tokenizers", "torch"):
        assert re.search(rf"{package} +{re.escape(version(package))}", text)
    assert re.search(r"reference +available", text)
    for name, reason in registry.status():
        assert re.search(rf"{name} +{re.escape(reason or 'available')}", text)
    assert re.search(rf"ISA +{cpu.core().isa()} ", text)
    assert re.search(rf"threads +{tkg.get_num_threads()}\b", text)
    for what, unit in (("memory", "GB/s"), ("arithmetic", "GFLOP/s")):
        measured = re.search(rf"{what} +([\d.]+) {unit}", text)
        assert measured and 0.1 < float(measured[1]) < 1e5


def test_without_the_core_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "the C++ core is not built in this installation"
    monkeypatch.setattr(cpu, "unavailable", lambda: reason)
    text = output()
    assert re.search(rf"cpu +{re.escape(reason)}", text)
    assert re.search(rf"C\+\+ core +{re.escape(reason)}", text)
    assert "GB/s" not in text


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "PACKAGES", ("numpy", "no-such-package-here"))
    monkeypatch.setattr(info, "ceilings", lambda: "not now")
    assert re.search(r"no-such-package-here +not installed", output())
