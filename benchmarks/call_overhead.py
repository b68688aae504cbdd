"""Microseconds of a call outside its kernel, as Markdown.

    python benchmarks/call_overhead.py [--rounds N] [--profile]

The layer is SmolLM2's (H 576, 9 / 3 heads of 64, bfloat16), one row, a context of 64, one thread:
so little work that what surrounds the C++ core counts. The core alone runs the same step, described
to it once, in the same turns; the figure is the whole call's time less the core's. The surfaces
take turns. With `--profile`, the functions of each surface by their own time instead.
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
from tkg.backends.cpu import calls
from tkg.backends.cpu.library import core
from tkg.backends.cpu.parts import Prepared, plain
from tkg.bench.inputs import distinct
from tkg.bench.workloads import Row
from tkg.contract.block import BlockCall

FLAT, PAGED = Row("smollm2", context=64), Row("smollm2", context=64, cache="block")
CALLS = 500  # of a turn
SHOWN = 25

Run = Callable[[], Any]


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


def dropped_in(call: dict[str, Any]) -> tuple[Run, Run]:
    """The drop-in call, and the core's part of it."""
    described = tkg.describe(tkg.attention_block_tkg, **call)
    return lambda: tkg.attention_block_tkg(**call), alone(described, plain(described.block))


def step(call: dict[str, Any]) -> tuple[Run, Run]:
    """The same call on the object API, and the core's part of it."""
    described = tkg.describe(tkg.attention_block_tkg, **call)
    block, cache = described.block, described.cache
    parts = {name: getattr(block, name) for name in ("heads", "qkv", "out", "input_norm", "rope")}
    layer, rope = tkg.AttentionBlock(**parts), (call["cos"], call["sin"])
    x, positions = call["X"], call["pos_ids"]
    run = lambda: layer(x, cache, positions, rope=rope)  # noqa: E731
    return run, alone(described, layer.block.prepared)


def alone(call: BlockCall, layer: Prepared) -> Run:
    """The core's part of a call."""
    given = [call.x.numpy(), call.cos.numpy(), call.sin.numpy()]
    d_head, cache = call.block.heads.d_head, call.cache.v.numpy().dtype
    new = np.empty((2, call.batch, call.tokens, call.block.heads.kv, d_head), cache)
    out = np.empty(call.out_shape(), given[0].dtype)
    described = calls.step(call, *given, k_new=new[0], v_new=new[1], out=out)
    kept = call, given, new, out  # `described` points into them

    def run() -> tuple[Any, ...]:
        core().attention_block(layer.part, described)
        return kept

    return run


def surfaces() -> dict[str, tuple[Run, Run]]:
    """The ways to make the call, by their names, and the core's part of each."""
    flat, paged = distinct(FLAT), distinct(PAGED)
    torch = tensors(flat)
    return {
        "`attention_block_tkg`, NumPy": dropped_in(flat),
        "`attention_block_tkg`, torch": dropped_in(torch),
        "`AttentionBlock`, NumPy": step(flat),
        "`AttentionBlock`, torch": step(torch),
        "`AttentionBlock`, NumPy, block cache": step(paged),
    }


def measure(found: dict[str, tuple[Run, Run]], rounds: int) -> dict[str, np.ndarray]:
    """For each surface `[calls, 2]` microseconds: of the whole call, and of the core's part."""
    taken: dict[str, list[list[float]]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, both in found.items():
            for run in both:
                run()
            for _ in range(CALLS):
                taken[name].append([seconds(run) for run in both])
    return {name: np.array(times) * 1e6 for name, times in taken.items()}


def seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table(times: dict[str, np.ndarray]) -> None:
    print("| surface | outside the core: least, us | median | in the core: median |")
    print("|---|--:|--:|--:|")
    for name, spent in times.items():
        least, middle = spent.min(axis=0), np.median(spent, axis=0)
        figures = (least[0] - least[1], middle[0] - middle[1], middle[1])
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
        for name, (run, _) in found.items():
            profile(name, run)
    else:
        table(measure(found, options.rounds))


if __name__ == "__main__":
    main()
