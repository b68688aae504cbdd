"""The compiler of NKI 0.6 would take every function and method of the kernel modules."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nkisim.lint import lint
from tkg.backends import neuron

FOLDER = Path(inspect.getfile(neuron)).parent
HOST = {"__init__", "calls", "launch", "limits"}
"""Modules that run on the host only."""

KERNELS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in HOST)


def functions(module: Any) -> Iterator[Callable[..., Any]]:
    """All that the module defines, methods included."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        members = vars(value).values() if inspect.isclass(value) else (value,)
        yield from filter(inspect.isfunction, members)


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_is_found(name: str) -> None:
    module = importlib.import_module(f"tkg.backends.neuron.{name}")
    found = list(functions(module))
    assert found
    for function in found:
        assert lint(function) == []
    assert lint(inspect.getsource(module)) == []


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_import_only_what_the_compiler_knows(name: str) -> None:
    """NKI, the other kernel modules, and the contract's enumeration."""
    module = importlib.import_module(f"tkg.backends.neuron.{name}")
    allowed = ("nki.", "nkisim.", "tkg.backends.neuron.", "tkg.contract.quantization")
    for key, value in vars(module).items():
        where = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        if key.startswith("__") or not isinstance(where, str) or where == module.__name__:
            continue
        assert where.startswith(allowed), where
        assert where.rpartition(".")[2] not in HOST


def test_the_host_modules_are_no_kernels() -> None:
    """So that the list above cannot hide one."""
    for name in HOST:
        source = (FOLDER / f"{name}.py").read_text()
        assert "import nki." not in source
