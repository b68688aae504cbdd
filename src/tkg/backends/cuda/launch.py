"""The one place where kernels are launched."""

from __future__ import annotations

import warnings
from typing import Any

from tkg.backends.cuda.environment import interpreting


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Launch a kernel on the current stream of the current device.

    Args:
        kernel: a `triton.jit` function.
        grid: programs along up to three axes.
        arguments: all of the kernel's, by name, and Triton's own (`num_warps`, `num_stages`).
    """
    arguments["enable_fp_fusion"] = True  # Triton's default, which it is about to change
    if not interpreting():
        kernel[grid](**arguments)
        return
    with warnings.catch_warnings():
        # NumPy, which interprets, remarks on Inf and NaN where a GPU goes on in silence.
        warnings.simplefilter("ignore", RuntimeWarning)
        kernel[grid](**arguments)
