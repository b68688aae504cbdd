"""Inputs for the published kernels, and what several of them compute."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

BF16 = ml_dtypes.bfloat16


def draw(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def exact(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def product(lhs_t: np.ndarray, rhs: np.ndarray, *blocks_: int) -> np.ndarray:
    return exact(lhs_t).T @ exact(rhs)


def matrices(k: int, m: int, n: int, dtype: Any = np.float32, *more: int) -> tuple[Any, ...]:
    return draw(k, m, dtype=dtype), draw(k, n, dtype=dtype, seed=1), *more


def into_last(kernel: Any, *arguments: Any) -> Any:
    """What the kernel leaves in its last argument."""
    kernel(*arguments)
    return arguments[-1]
