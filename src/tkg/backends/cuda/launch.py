"""The one place where kernels are launched."""

from __future__ import annotations

from typing import Any


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Launch a kernel on the current stream of the current device.

    Args:
        kernel: a `triton.jit` function.
        grid: programs along up to three axes.
        arguments: all of the kernel's, by name, and Triton's own (`num_warps`, `num_stages`).
    """
    kernel[grid](**arguments)
