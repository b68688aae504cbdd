"""What is measured on the GPU itself: time, its ceilings, and the facts of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tkg.bench.run import Place
from tkg.machine import Ceilings
from tkg.testing.verify import COMPUTES

COPY_BYTES = 2**30
MATMUL = 8192
REPEATS = 10

MARGIN = 4
"""Copies of weights and caches together are more than so many L2 caches."""


def event_clock(run: Callable[[], None]) -> float:
    """Seconds between two events on the current stream, around what `run` puts there."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def free_memory() -> int:
    """Bytes that can be had, those that torch keeps for later included."""
    import torch

    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def place() -> Place:
    """The current GPU as a place to run rows in."""
    import torch

    return Place(
        computes=lambda: COMPUTES["cuda"],
        cache_bytes=lambda: torch.cuda.get_device_properties().L2_cache_size,
        margin=MARGIN,
        free_memory=free_memory,
        clock=event_clock,
    )


def ceilings() -> Ceilings:
    """The best of some runs: a copy of 1 GiB in the GPU's memory, counted as read and written, and
    a bfloat16 product of two matrices of 8192 x 8192."""
    import torch

    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda")
    to = torch.empty_like(source)
    a = torch.randn(MATMUL, MATMUL, dtype=torch.bfloat16, device="cuda")

    def copy() -> None:
        to.copy_(source)

    def multiply() -> None:
        torch.mm(a, a)

    copied, product = (min(event_clock(f) for _ in range(REPEATS)) for f in (copy, multiply))
    return Ceilings(2 * COPY_BYTES / copied, 2 * MATMUL**3 / product)


def specified_bandwidth(properties: Any) -> float | None:
    """Bytes a second: two transfers a memory clock over the bus; `None` if torch does not tell."""
    clock = getattr(properties, "memory_clock_rate", None)  # kHz
    width = getattr(properties, "memory_bus_width", None)  # bits
    return None if not clock or not width else 2 * clock * 1e3 * width / 8


def facts(best: Ceilings) -> dict[str, Any]:
    """What the figures depend on."""
    import torch
    import triton

    properties = torch.cuda.get_device_properties()
    specified = specified_bandwidth(properties)
    return {
        "gpu": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "l2_bytes": properties.L2_cache_size,
        "copy_gb_per_s": best.bytes_per_second / 1e9,
        "specified_gb_per_s": None if specified is None else specified / 1e9,
        "matmul_tflop_per_s": best.flops_per_second / 1e12,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
    }
