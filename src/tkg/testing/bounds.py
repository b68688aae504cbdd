"""How far float32 arithmetic may be from the true result: a running error bound.

Each stage computes its value in float64 and, beside it, a bound on the error that the same stage
has in float32, given the bound on its input. The model is the probabilistic one of Higham and Mary,
"A new approach to probabilistic rounding error analysis" (SIAM J. Sci. Comput. 41, 2019): rounding
errors are independent, with mean zero and at most u = 2^-24 in relative size, so they add in
quadrature; a sum of n terms has an error whose standard deviation is near u * sqrt(n) / 3 times the
size of its partial sums. Bounds are six standard deviations. They do not depend on the order of
summation or on fused multiply-adds, so they fit every backend that accumulates in float32.

Rounding to a grid (the cache's dtype, FP8 activations) hides errors, or turns a tiny one into a
whole step where the true value lies next to a tie. `stored` tells the two apart by rounding both
ends of the error interval.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tkg.testing.eager import grid, joined, pairs, shift
from tkg.testing.problem import Problem, Weights
from tkg.testing.rounding import unit_roundoff

U = unit_roundoff("float32")

FEW = 4 * U
"""Relative error of a handful of float32 operations, or of one exp, division or square root."""


class Bounded(NamedTuple):
    """A true value and a bound on a float32 computation's error in it."""

    value: np.ndarray
    error: np.ndarray


def sum_error(length: int, total: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Error of a float32 sum: 6 * (u * sqrt(n) / 3) * size of the partial sums.

    `terms` is the root of the sum of squares; partial sums of terms of either sign walk that far
    from the straight line to `total`.
    """
    return 2.0 * U * np.sqrt(length) * (np.abs(total) + terms)


def _quadrature(*errors: np.ndarray) -> np.ndarray:
    return np.sqrt(sum(np.square(e) for e in errors))


class Bounds:
    """Arithmetic on `Bounded` values."""

    def enter(self, x: np.ndarray) -> Bounded:
        return Bounded(x, np.zeros_like(x))

    def norm(self, x: Bounded, weight: np.ndarray | None, eps: float) -> Bounded:
        n = x.value.shape[-1]
        squares = x.value**2
        mean = squares.mean(-1, keepdims=True)
        terms = np.sqrt((squares**2).sum(-1, keepdims=True)) / n
        root = np.sqrt(mean + eps)
        root = np.where(root > 0, root, 1.0)
        gain = (1.0 if weight is None else weight) / root
        y = x.value * gain
        through = np.sqrt((squares * x.error**2).sum(-1, keepdims=True)) / n
        relative = (_quadrature(sum_error(n, mean, terms) / 2, through)) / root**2
        return Bounded(y, _quadrature(x.error * gain, y * relative, FEW * y))

    def linear(self, x: Bounded, weights: Weights) -> Bounded:
        if weights.step is not None:
            z = Bounded(x.value / weights.step, x.error / weights.step)
            z = Bounded(z.value, _quadrature(z.error, FEW * z.value))
            x = self.stored(z, "float8_e4m3")
        squares = weights.weight**2
        y = x.value @ weights.weight
        terms = np.sqrt(x.value**2 @ squares)
        error = _quadrature(
            sum_error(weights.weight.shape[0], y, terms), np.sqrt(x.error**2 @ squares)
        )
        if weights.columns is not None:
            y, error = y * weights.columns, error * np.abs(weights.columns)
            error = _quadrature(error, FEW * y)
        if weights.bias is not None:
            y = y + weights.bias
            error = _quadrature(error, U * y)
        return Bounded(y, error)

    def rope(self, x: Bounded, cos: np.ndarray, sin: np.ndarray, half: bool) -> Bounded:
        first, second = pairs(x.value.shape[-1], half)
        y, error = np.empty_like(x.value), np.empty_like(x.value)
        for here, other, sign in ((first, second, -1.0), (second, first, 1.0)):
            a, b = x.value[..., here] * cos, x.value[..., other] * sin
            y[..., here] = a + sign * b
            error[..., here] = _quadrature(
                x.error[..., here] * cos, x.error[..., other] * sin, FEW * a, FEW * b
            )
        return Bounded(y, error)

    def scaled(self, x: Bounded, scale: float | None) -> Bounded:
        if scale is None:
            return x
        y = x.value * scale
        return Bounded(y, _quadrature(x.error * abs(scale), FEW * y))

    def stored(self, x: Bounded, dtype: str) -> Bounded:
        low, high = grid(x.value - x.error, dtype), grid(x.value + x.error, dtype)
        return Bounded(grid(x.value, dtype), high - low)

    def attend(self, q: Bounded, k: Bounded, v: Bounded, problem: Problem) -> Bounded:
        group = problem.heads[0] // problem.heads[1]
        query, query_error = (t.transpose(0, 2, 1, 3) for t in q)
        nothing = np.zeros_like(problem.k_cache)
        keys, values = (
            joined(old, new.value, group)
            for old, new in ((problem.k_cache, k), (problem.v_cache, v))
        )
        key_error, value_error = (joined(nothing, new.error, group) for new in (k, v))
        scores, score_error = self._scores(query, query_error, keys, key_error, problem.scale)
        scores = np.where(problem.visible, scores, -np.inf)
        top = shift(scores, problem.sink)
        p = np.exp(scores - top)
        total = p.sum(-1, keepdims=True)
        if problem.sink is not None:
            total = total + np.exp(problem.sink[:, None, None] - top)
        p = p / np.where(total > 0, total, 1)
        # exp's own error, and that of its argument's rounding
        size = np.where(problem.visible, 1 + np.abs(scores) + np.abs(top), 0.0)
        spread = np.square(p) * (np.square(score_error) + np.square(FEW * size))
        y = p @ values
        # d(out) = sum p_i ds_i (v_i - out); the square is expanded so as to stay a matrix product
        moved = spread @ values**2 - 2 * y * (spread @ values) + y**2 * spread.sum(-1)[..., None]
        error = _quadrature(
            np.sqrt(np.maximum(moved, 0)),
            np.sqrt(p**2 @ value_error**2),
            sum_error(p.shape[-1], y, np.sqrt(p**2 @ values**2)),
            FEW * y,
        )
        return Bounded(y.transpose(0, 2, 1, 3), error.transpose(0, 2, 1, 3))

    def _scores(
        self, q: np.ndarray, q_error: np.ndarray, k: np.ndarray, k_error: np.ndarray, scale: float
    ) -> Bounded:
        scores = q @ k.swapaxes(2, 3)
        squares = (k**2).swapaxes(2, 3)
        error = _quadrature(
            sum_error(q.shape[-1], scores, np.sqrt(q**2 @ squares)),
            np.sqrt(q_error**2 @ squares),
            np.sqrt(q**2 @ (k_error**2).swapaxes(2, 3)),
        )
        return Bounded(scores * scale, error * abs(scale))

    def reshape(self, x: Bounded, shape: tuple[int, ...]) -> Bounded:
        return Bounded(x.value.reshape(shape), x.error.reshape(shape))

    def heads(self, x: Bounded, start: int, stop: int) -> Bounded:
        return Bounded(x.value[:, :, start:stop], x.error[:, :, start:stop])
