"""Float weights to FP8 with a scale for each column: to the nearest values, or calibrated."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3)
FLOAT8_MAX = 240.0
MIN_NORMAL = 2.0**-6
MANTISSA_BITS = 3

DAMPING = 0.1
"""Of the mean square of the inputs, added to each one's: a text of a few thousand tokens knows
little of 1536 inputs' correlations. From 0.03 to 0.3 SmolLM2 shows no difference."""

SCALES = 8
"""Tried for each column, within an octave: twice the scale has the same grid again."""

SCALED_BY = 4
"""The scales are chosen by one in so many inputs: those that are rounded first."""

BLOCK = 128
"""Inputs rounded one after the other between products of matrices, and columns of a Cholesky factor
found together. Where the processors are busy a product waits for its threads, so few are better."""

ALONE = 64
"""Columns of a Cholesky factor that LAPACK finds without threads. On a busy machine those wait for
each other for tens of milliseconds, where the work takes a quarter of one."""

SLICE = 4096
"""Columns rounded together: a row of them stays in the nearest cache."""


def row_quantised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row in FP8 with the scale that puts its largest value at FP8's largest, 240.

    Args:
        rows: `[out, in]`, any float dtype.

    Returns:
        `(quantised, scale)`: float8_e4m3 `[out, in]` and float32 `[out]`; a row is about
        `quantised * scale`.
    """
    rows = rows.astype(np.float32)  # a copy
    scale = _scale_of_largest(rows)
    # The division may round to just above 240, which the cast would turn into infinity.
    rows /= scale[:, None]
    np.clip(rows, -FLOAT8_MAX, FLOAT8_MAX, out=rows)
    return rows.astype(FLOAT8), scale


class Calibrated:
    """Rounds a projection's weights so that its outputs, not the weights, change least.

    With the inputs' second moments `H = X^T X`, an error `e` of a column changes its outputs by
    `e^T H e` in all. Let `H = L D L^T` with a unit lower triangle `L` (Cholesky). Then this is the
    sum over inputs i of `D[i] (e[i] + sum_{j > i} L[j, i] e[j])^2`: each input, the last one first,
    is rounded with the errors made so far taken into account. This is GPTQ (arXiv 2210.17323) in
    the form of QuIP's LDLQ (arXiv 2307.13304), which needs no inverse. The inputs are in ascending
    order of their squares, so that the largest are rounded first and the others make up for them.

    A column's scale is one of `SCALES` candidates: the one with the least `sum_i D[i] e[i]^2` where
    each value is rounded to the nearest.

    Args:
        moments: `[in, in]` float32, finite: sums of the inputs' products over a text.
    """

    def __init__(self, moments: np.ndarray) -> None:
        squares = np.diag(moments)
        # No input may ever have been other than zero; then any positive number will do.
        mean = np.float32(squares.mean(dtype=np.float64)) or np.float32(1.0)
        self._order = np.argsort(squares, kind="stable")
        damped = moments[np.ix_(self._order, self._order)] / mean
        damped[np.diag_indices_from(damped)] += np.float32(DAMPING)
        lower = cholesky(damped)
        self._importance = np.diag(lower) ** 2
        self._upper = np.ascontiguousarray((lower / np.diag(lower)).T)

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `row_quantised`."""
        quantised = np.empty(rows.shape, FLOAT8)
        scale = np.empty(len(rows), np.float32)

        def quantise(first: int) -> None:
            part = slice(first, first + SLICE)
            columns = np.ascontiguousarray(rows[part, self._order].astype(np.float32).T)
            scale[part] = self._scale(columns)
            columns /= scale[part]
            columns += self._errors(columns)  # on the grid but for float32's rounding of this sum
            quantised[part, self._order] = columns.astype(FLOAT8).T

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy works without the GIL
            list(pool.map(quantise, range(0, len(rows), SLICE)))
        return quantised, scale

    def _scale(self, columns: np.ndarray) -> np.ndarray:
        """The best of each column's scales, `[out]`, for `[in, out]`."""
        least = _scale_of_largest(columns.T)
        some = slice(-max(len(columns) // SCALED_BY, 1), None)
        columns, importance = columns[some] / least, self._importance[some]
        best, lowest = np.ones_like(least), np.full_like(least, np.inf)
        for factor in np.exp2(np.arange(SCALES, dtype=np.float32) / SCALES):
            errors = columns / factor
            errors -= nearest(errors)
            errors *= errors
            loss = importance @ errors * factor**2
            better = loss < lowest
            best[better], lowest[better] = factor, loss[better]
        return least * best

    def _errors(self, columns: np.ndarray) -> np.ndarray:
        """By how much each value of `[in, out]` changes to get onto FP8's grid."""
        errors, upper = np.empty_like(columns), self._upper
        for end in range(len(columns), 0, -BLOCK):
            start = max(end - BLOCK, 0)
            wanted = columns[start:end] - upper[start:end, end:] @ errors[end:]
            for i in reversed(range(start, end)):
                made = slice(i + 1, end)
                # Not @, whose threads would wait for each other at every row.
                row = wanted[i - start] - np.einsum("j,jn->n", upper[i, made], errors[made])
                np.subtract(nearest(row), columns[i], out=errors[i])
        return errors


def cholesky(matrix: np.ndarray) -> np.ndarray:
    """The lower triangle `L` of `matrix = L L^T`; what is above it has no meaning.

    `np.linalg.cholesky` block by block: nearly all of it becomes products of matrices, which is
    four times as fast.
    """
    lower = matrix.copy()
    for start in range(0, len(lower), BLOCK):
        end = start + BLOCK
        block = slice(start, end)
        lower[start:, block] -= lower[start:, :start] @ lower[block, :start].T
        lower[block, block], inverse = _factor(lower[block, block])
        lower[end:, block] @= inverse.T
    return lower


def _factor(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`L` of `matrix = L L^T`, a few columns, and its inverse; both zero above the diagonal."""
    if len(matrix) <= ALONE:
        lower = np.linalg.cholesky(matrix)
        return lower, np.linalg.inv(lower)
    lower, inverse = np.zeros_like(matrix), np.zeros_like(matrix)
    first, rest = slice(len(matrix) // 2), slice(len(matrix) // 2, None)
    lower[first, first], inverse[first, first] = _factor(matrix[first, first])
    between = matrix[rest, first] @ inverse[first, first].T
    lower[rest, first] = between
    lower[rest, rest], inverse[rest, rest] = _factor(matrix[rest, rest] - between @ between.T)
    inverse[rest, first] = -inverse[rest, rest] @ between @ inverse[first, first]
    return lower, inverse


def nearest(x: np.ndarray) -> np.ndarray:
    """The value of FP8's grid that is nearest to each of `x`, at most 240; both float32.

    As `x.astype(FLOAT8)`, and several times as fast: adding a power of two whose last bit is as
    large as the grid's spacing rounds, ties to even.
    """
    power = (x.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)  # x without its mantissa
    np.maximum(power, np.float32(MIN_NORMAL), out=power)
    power *= np.float32(1.5 * 2.0 ** (23 - MANTISSA_BITS))  # 1.5: negative sums keep the exponent
    near = x + power
    near -= power
    return np.clip(near, -FLOAT8_MAX, FLOAT8_MAX, out=near)


def _scale_of_largest(rows: np.ndarray) -> np.ndarray:
    """What brings each row's largest value to 240; 1 for a row of zeros."""
    scale = np.abs(rows).max(axis=1) / np.float32(FLOAT8_MAX)
    scale[scale == 0] = 1.0
    return scale
