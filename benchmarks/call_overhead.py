"""Microseconds of a call outside its kernel, as Markdown.

    python benchmarks/call_overhead.py [--rounds N] [--profile]

The layer is SmolLM2's (H 576, 9 / 3 heads of 64, bfloat16), one row, a context of 64, one thread:
so little work that what surrounds the C++ core counts. A clock around the core's entry is read in
the same calls; the figure is the whole call less the time in there, where some 3 us go into taking
the arguments apart. The surfaces take turns. With `--profile`, the functions of each surface by
their own time instead.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import tkg
from tkg.backends.cpu.library import core
from tkg.bench.inputs import distinct
from tkg.bench.workloads import Row

FLAT, PAGED = Row("smollm2", context=64), Row("smollm2", context=64, cache="block")
CALLS = 500  # of a turn
SHOWN = 25

Run = Callable[[], Any]


class Clock:
    """Stands in for the core's entry while `measure` runs; seconds of the last call in there."""

    def __init__(self, entry: Callable[..., None]) -> None:
        self._entry = entry
        self.inside = 0.0

    def __call__(self, *arguments: Any, **named: Any) -> None:
        start = time.perf_counter()
        self._entry(*arguments, **named)
        self.inside = time.perf_counter() - start


def tensors(call: dict[str, Any]) -> dict[str, Any]:
    """The call with torch tensors for arrays; they share the arrays' memory."""
    import torch

    def tensor(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype.name != "bfloat16":
            return torch.from_numpy(value)
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)

    return {name: tensor(value) for name, value in call.items()}


def step(call: dict[str, Any]) -> Run:
    """The same call on the object API."""
    described = tkg.describe(tkg.attention_block_tkg, **call)
    block, cache = described.block, described.cache
    parts = {name: getattr(block, name) for name in ("heads", "qkv", "out", "input_norm", "rope")}
    layer, rope = tkg.AttentionBlock(**parts), (call["cos"], call["sin"])
    x, positions = call["X"], call["pos_ids"]
    return lambda: layer(x, cache, positions, rope=rope)


def surfaces() -> dict[str, Run]:
    """The ways to make the call, by their names."""
    flat, paged = distinct(FLAT), distinct(PAGED)
    torch = tensors(flat)
    return {
        "`attention_block_tkg`, NumPy": lambda: tkg.attention_block_tkg(**flat),
        "`attention_block_tkg`, torch": lambda: tkg.attention_block_tkg(**torch),
        "`AttentionBlock`, NumPy": step(flat),
        "`AttentionBlock`, torch": step(torch),
        "`AttentionBlock`, NumPy, block cache": step(paged),
    }


def measure(found: dict[str, Run], rounds: int) -> dict[str, np.ndarray]:
    """For each surface `[calls, 2]` microseconds: outside the core, and in it."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    module = core()
    clock = Clock(module.attention_block)
    module.attention_block = clock
    for _ in range(rounds):
        for name, run in found.items():
            run()
            for _ in range(CALLS):
                start = time.perf_counter()
                run()
                whole = time.perf_counter() - start
                taken[name].append((whole - clock.inside, clock.inside))
    return {name: np.array(times) * 1e6 for name, times in taken.items()}


def table(times: dict[str, np.ndarray]) -> None:
    print("| surface | outside the core: least, us | median | in the core: median |")
    print("|---|--:|--:|--:|")
    for name, spent in times.items():
        outside, inside = spent.T
        figures = (outside.min(), np.median(outside), np.median(inside))
        print(f"| {name} | {' | '.join(f'{figure:.1f}' for figure in figures)} |")


def profile(name: str, run: Run) -> None:
    run()
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(CALLS):
        run()
    profiler.disable()
    print(f"{name}, {CALLS} calls")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(SHOWN)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a call outside its kernel.")
    parser.add_argument("--rounds", type=int, default=20, help=f"turns of {CALLS} calls")
    parser.add_argument("--profile", action="store_true", help="functions by their own time")
    options = parser.parse_args()
    tkg.set_num_threads(1)
    found = surfaces()
    if options.profile:
        for name, run in found.items():
            profile(name, run)
    else:
        table(measure(found, options.rounds))


if __name__ == "__main__":
    main()
