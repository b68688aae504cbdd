"""Compiles what calls of the cuda backend would launch: `python -m tests.cubins sm [case ...]`.

Needs no GPU: the calls are made with tensors on the host, and every launch is compiled for the GPU
named, then dropped. Prints one line of JSON a compiled kernel. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tkg
from tkg.testing import placed
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.cases import find

SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that a block may have, by compute capability (CUDA C++ Programming Guide,
"Technical Specifications per Compute Capability")."""


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel.

    Attributes:
        kernel: name of the function.
        variant: types of its arguments and values of its constants.
        registers: of a thread.
        spilled: bytes of local memory a thread, the stack included.
        shared: bytes of shared memory a block.
        seconds: that the compiler took.
    """

    kernel: str
    variant: str
    registers: int
    spilled: int
    shared: int
    seconds: float


class Target:
    """Stands where Triton's driver of a real GPU would."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def record(capability: int, take: Callable[[Cubin], None]) -> None:
    """From now on launches of this process are compiled instead; each variant is, once."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    target: Any = Target(capability)
    driver.set_active(target)
    launch: Any = JITFunction.run
    seen: set[tuple[str, str]] = set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        key = self.__name__, variant(self, args, options)
        if key in seen:
            return
        seen.add(key)
        start = time.perf_counter()
        compiled = launch(self, *args, grid=grid, warmup=True, **options)
        seconds = round(time.perf_counter() - start, 2)
        registers, spilled = resources(compiled.asm["cubin"])
        take(Cubin(*key, registers, spilled, compiled.metadata.shared, seconds))

    JITFunction.run = compile_only


def variant(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    """What tells a launch's code from another's; divisibility of sizes and strides is left out."""
    named = dict(zip(kernel.arg_names, args, strict=False)) | options
    constants = {p.name for p in kernel.params if p.is_constexpr}

    def shown(name: str, value: Any) -> str:
        if hasattr(value, "data_ptr"):
            return f"*{value.dtype}".replace("torch.", "")
        known = name in constants or name not in kernel.arg_names
        return str(value) if known or value is None else type(value).__name__

    return " ".join(f"{name}={shown(name, value)}" for name, value in named.items())


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory a thread, as cuobjdump (part of Triton) reads them."""
    found = importlib.util.find_spec("triton")
    assert found is not None and found.origin is not None
    tool = Path(found.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(number) for name, number in re.findall(r"\b(\w+):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def too_large(made: list[Cubin], capability: int) -> list[Cubin]:
    """Those that a GPU refuses to launch: more shared memory than it has for a block."""
    return [cubin for cubin in made if cubin.shared > SHARED_LIMITS[capability]]


def make(case: Case | ProjectionCase) -> None:
    """Everything that a case launches."""
    from tkg.backends import cuda

    backend: Any = cuda
    arguments = {
        name: placed.tensor(value, "cpu") if hasattr(value, "dtype") else value
        for name, value in case.inputs().items()
    }
    if isinstance(case, ProjectionCase):
        backend.output_projection(tkg.describe(tkg.output_projection_tkg, **arguments))
    else:
        backend.attention_block(tkg.describe(tkg.attention_block_tkg, **arguments))


def main(capability: str, *names: str) -> None:
    record(int(capability), lambda cubin: print(json.dumps(asdict(cubin)), flush=True))
    for name in names:
        make(find(name))


if __name__ == "__main__":
    main(*sys.argv[1:])
