"""Every kernel compiles to machine code of three generations of GPUs, and fits on them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cubins import SHARED_LIMITS, Cubin, too_large
from tkg.backends.cuda import kernels

ROOT = Path(__file__).parents[2]

REPRESENTATIVE = (
    "llama3-8b",  # bfloat16, the shape that is timed
    "llama3-8b-tp8-fp8",  # ROW weights, a block cache in FP8
    "fp8-everything",  # STATIC
    "d-head-512",
)
"""Cases that together launch each kernel in each kind of arithmetic."""

MORE = (
    "gemma3-1b",  # d_head 256, a window, norms of the heads
    "gpt-oss-20b-tp8",  # sinks and biases
    "mask-holes-transposed-bf16",
    "fp8-cache-fn",
    "float16",
    "tokens-128",
    "transposed-out-lnc2",
)
"""Those that add layouts and options; for one GPU, the one that the kernels are made for."""


def compiled(capability: int, cases: tuple[str, ...], folder: Path) -> list[Cubin]:
    """In a process of its own: Triton reads TRITON_INTERPRET once, and keeps a driver."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.cubins", str(capability), *cases],
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return [Cubin(**json.loads(line)) for line in ran.stdout.splitlines()]


def launched() -> set[str]:
    """Names of the kernels: each is a function in the module of its name."""
    names = [module.name for module in pkgutil.iter_modules(kernels.__path__)]
    modules = {name: importlib.import_module(f"{kernels.__name__}.{name}") for name in names}
    return {name for name, module in modules.items() if hasattr(module, name)}


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_LIMITS)
def test_every_kernel_compiles_and_fits(capability: int, tmp_path: Path) -> None:
    cases = REPRESENTATIVE + MORE if capability == 90 else ("llama3-8b", "fp8-everything")
    made = compiled(capability, cases, tmp_path)
    assert {cubin.kernel for cubin in made} == launched()
    assert all(cubin.registers > 0 for cubin in made)
    assert not too_large(made, capability)


def test_a_kernel_that_asks_for_too_much_is_named() -> None:
    fits = Cubin("small", "", registers=32, spilled=0, shared=163 * 1024, seconds=0.0)
    large = dataclasses.replace(fits, kernel="large", shared=163 * 1024 + 1)
    assert too_large([fits, large], 80) == [large]
    assert too_large([fits, large], 90) == []
