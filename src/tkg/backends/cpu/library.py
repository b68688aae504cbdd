"""The compiled core: finding it, its settings, and what it measures."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType

import numpy as np

from tkg.contract.errors import is_whole
from tkg.contract.memory import zeroed

BANDWIDTH_BUFFER_BYTES = 512 * 2**20
"""Read to measure bandwidth; several times the last-level cache of most machines."""


MAX_THREADS = 1024
"""More than any machine's processors; each thread of a team is one of the system's."""


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The compiled core, or why there is none."""
    try:
        core = importlib.import_module("tkg.backends.cpu._core")
    except ImportError as error:
        return None, (
            f"the C++ core is not built in this installation ({error}); "
            "`pip install .` in the source folder builds it (needs a C++20 compiler and CMake)"
        )
    settings = (
        ("TKG_ISA", core.set_isa),
        ("OMP_NUM_THREADS", _thread_setter(core)),
        ("TKG_NUM_THREADS", _thread_setter(core)),
    )
    for variable, setter in settings:
        value = os.environ.get(variable)
        if value:
            try:
                setter(value)
            except ValueError as error:
                return None, f"the environment variable {variable} is {value!r}: {error}"
    return core, None


def _thread_setter(core: ModuleType) -> Callable[[str], None]:
    # OMP_NUM_THREADS may be a list, one number a nesting level; the first counts.
    return lambda value: core.set_num_threads(_checked_threads(int(value.split(",")[0])))


def _checked_threads(n: int) -> int:
    if not is_whole(n):
        raise TypeError(f"set_num_threads: n must be a whole number; got {n!r}")
    if not 1 <= n <= MAX_THREADS:
        raise ValueError(f"set_num_threads: n must be from 1 to {MAX_THREADS}; got {n}")
    return int(n)


@functools.cache
def core() -> ModuleType:
    """The compiled core.

    Raises:
        RuntimeError: there is none, or `TKG_ISA` names an instruction set that it does not have.
    """
    module, reason = _load()
    if module is None:
        raise RuntimeError(f"cpu backend: {reason}")
    return module


def unavailable() -> str | None:
    """Why the backend cannot run here, or `None`."""
    return _load()[1]


def computes() -> str:
    """What is rounded on the way: "bfloat16 operands" where units for bfloat16 may be used."""
    return "bfloat16 operands" if core().rounds_operands() else "float32"


def get_num_threads() -> int:
    """Threads that the next calls use; at first, one for each CPU that this process may use."""
    return core().get_num_threads()


def set_num_threads(n: int) -> None:
    """Set the number of threads of the next calls. The results do not depend on it.

    Raises:
        ValueError, TypeError: n is no whole number from 1 to `MAX_THREADS`.
    """
    core().set_num_threads(_checked_threads(n))


def measure_read_bandwidth(repeats: int = 5) -> float:
    """Streaming read from memory with the current threads, bytes a second: the best of passes."""
    memory = zeroed(BANDWIDTH_BUFFER_BYTES).view(np.float32)
    return core().measure_read_bandwidth(memory, repeats)


def measure_fma_rate(repeats: int = 5) -> float:
    """Float32 multiply-adds with the current threads, FLOPs a second (2 each): the best."""
    return core().measure_fma_rate(repeats)
