"""Where the kernels can run: on a GPU, or under Triton's interpreter."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os

_OR_INTERPRET = " (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly, for testing)"


def interpreting() -> bool:
    """Whether Triton was told to interpret its kernels (`TRITON_INTERPRET`, read by Triton too)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def device() -> str:
    """torch's type of the device that calls' arrays are on: "cuda", or "cpu" when interpreting."""
    return "cpu" if interpreting() else "cuda"


@functools.cache
def unavailable() -> str | None:
    """Why the backend cannot run here, or `None`."""
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} is not installed (it needs torch and triton)"
    if interpreting():
        return None
    if not _driver():
        return f"there is no NVIDIA driver here (libcuda.so.1){_OR_INTERPRET}"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device here{_OR_INTERPRET}"
    return None


def _driver() -> bool:
    """Whether the driver's library is there. Asked first: to load torch takes seconds."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
