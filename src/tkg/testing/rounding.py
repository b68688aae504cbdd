"""Rounding to a dtype's grid, and the grid itself, in float64.

`ndarray.astype` is not used for it: `ml_dtypes` converts float64 through float32, which rounds
twice and so misplaces values next to a tie.
"""

from __future__ import annotations

import numpy as np

_MANTISSA_BITS = {"float32": 23, "float16": 10, "bfloat16": 7, "float8_e4m3": 3, "float8_e4m3fn": 3}
_MIN_EXPONENT = {
    "float32": -126,
    "float16": -14,
    "bfloat16": -126,
    "float8_e4m3": -6,
    "float8_e4m3fn": -6,
}


def unit_roundoff(dtype: str) -> float:
    """Largest relative error of rounding to nearest: half the gap above 1."""
    return 2.0 ** -(_MANTISSA_BITS[dtype] + 1)


def step(value: np.ndarray, dtype: str) -> np.ndarray:
    """Distance between neighbours of `dtype` in the binade of `value` (subnormals included)."""
    value = np.where(np.isfinite(value), value, 0.0).astype(np.float64)
    lowest = _MIN_EXPONENT[dtype]
    exponent = np.where(value == 0, lowest, np.frexp(value)[1] - 1)
    return np.ldexp(1.0, np.maximum(exponent, lowest) - _MANTISSA_BITS[dtype])


def round_to(value: np.ndarray, dtype: str) -> np.ndarray:
    """`value` rounded to nearest, ties to even, on `dtype`'s grid; stays float64. No overflow."""
    grid = step(value, dtype)
    return np.rint(np.asarray(value, np.float64) / grid) * grid


def error_before_rounding(got: np.ndarray, truth: np.ndarray, dtype: str) -> np.ndarray:
    """The least error before rounding that explains `got` where `truth` was right.

    `got` holds values of `dtype`. A value is what everything in its cell (half-way to each
    neighbour) rounds to, so 0 means that correct rounding of `truth` gives `got`.
    """
    got = np.asarray(got, np.float64)
    # The cell of a power of two is narrower on the side of zero.
    towards_zero = np.abs(truth) < np.abs(got)
    inner = np.nextafter(np.abs(got), np.where(towards_zero, 0.0, np.inf))
    half_cell = step(inner, dtype) / 2
    return np.maximum(np.abs(got - truth) - half_cell, 0.0)
