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
ends of the error interval. Such a step is no small random error but a jump of known size that
happens or not, so jumps are carried apart and added up at their full size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tkg.contract.dtypes import FP8
from tkg.testing.eager import grid, joined, pairs, shift
from tkg.testing.problem import Problem, Weights
from tkg.testing.rounding import unit_roundoff

U = unit_roundoff("float32")

FEW = 4 * U
"""Relative error of a handful of float32 operations, or of one exp, division or square root."""


class Bounded(NamedTuple):
    """A true value, a bound on a float32 computation's error in it, and how far it may jump."""

    value: np.ndarray
    error: np.ndarray
    jump: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """What a result may be off by."""
        return self.error + self.jump


def exact(x: np.ndarray) -> Bounded:
    """A value that is given."""
    return Bounded(x, np.zeros_like(x), np.zeros_like(x))


def gathered(jump: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Jumps through `x @ factors`: all of them, but at most six times their root sum of squares.

    The second holds since their signs are not all alike; it is the smaller one from 36 jumps on.
    """
    return np.minimum(jump @ np.abs(factors), 6 * np.sqrt(jump**2 @ factors**2))


def sum_error(length: int, total: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Error of a float32 sum: 6 * (u * sqrt(n) / 3) * size of the partial sums.

    `terms` is the root of the sum of squares; partial sums of terms of either sign walk that far
    from the straight line to `total`.
    """
    return 2.0 * U * np.sqrt(length) * (np.abs(total) + terms)


def _quadrature(*errors: np.ndarray | float) -> np.ndarray:
    return np.sqrt(sum(np.square(e) for e in errors))


class Bounds:
    """Arithmetic on `Bounded` values.

    Args:
        operands: in products with values of this dtype, or of FP8, the other factor is rounded to
            it; `None`: never.
    """

    def __init__(self, operands: str | None = None) -> None:
        self._operands = operands

    def _rounding(self, dtype: str) -> float:
        """Relative error of what is multiplied by values of a dtype.

        Six standard deviations of a number that is uniform in +-u.
        """
        if self._operands is None or dtype not in (self._operands, *FP8):
            return 0.0
        return 6 / np.sqrt(3) * unit_roundoff(self._operands)

    def _operand(self, x: Bounded, dtype: str) -> Bounded:
        """x as it is multiplied by values of a dtype."""
        rounding = self._rounding(dtype) * (np.abs(x.value) + x.total)
        return x._replace(error=_quadrature(x.error, rounding))

    def enter(self, x: np.ndarray) -> Bounded:
        return exact(x)

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
        jump = (
            np.abs(x.jump * gain)
            + np.abs(y) * (np.abs(x.value) * x.jump).mean(-1, keepdims=True) / root**2
        )
        return Bounded(y, _quadrature(x.error * gain, y * relative, FEW * y), jump)

    def linear(self, x: Bounded, weights: Weights) -> Bounded:
        if weights.step is not None:
            z, error, jump = (t / weights.step for t in x)
            x = self.stored(Bounded(z, _quadrature(error, FEW * z), jump), "float8_e4m3")
        else:
            x = self._operand(x, weights.dtype)
        squares = weights.weight**2
        y = x.value @ weights.weight
        terms = np.sqrt(x.value**2 @ squares)
        error = _quadrature(
            sum_error(weights.weight.shape[0], y, terms), np.sqrt(x.error**2 @ squares)
        )
        jump = gathered(x.jump, weights.weight)
        if weights.columns is not None:
            y, error, jump = (t * np.abs(weights.columns) for t in (y, error, jump))
            error = _quadrature(error, FEW * y)
        if weights.bias is not None:
            y = y + weights.bias
            error = _quadrature(error, U * y)
        return Bounded(y, error, jump)

    def rope(self, x: Bounded, cos: np.ndarray, sin: np.ndarray, half: bool) -> Bounded:
        first, second = pairs(x.value.shape[-1], half)
        y, error, jump = (np.empty_like(x.value) for _ in range(3))
        for here, other, sign in ((first, second, -1.0), (second, first, 1.0)):
            a, b = x.value[..., here] * cos, x.value[..., other] * sin
            y[..., here] = a + sign * b
            error[..., here] = _quadrature(
                x.error[..., here] * cos, x.error[..., other] * sin, FEW * a, FEW * b
            )
            jump[..., here] = np.abs(x.jump[..., here] * cos) + np.abs(x.jump[..., other] * sin)
        return Bounded(y, error, jump)

    def scaled(self, x: Bounded, scale: float | None) -> Bounded:
        if scale is None:
            return x
        y = x.value * scale
        return Bounded(y, _quadrature(x.error * abs(scale), FEW * y), x.jump * abs(scale))

    def stored(self, x: Bounded, dtype: str) -> Bounded:
        low, high = grid(x.value - x.total, dtype), grid(x.value + x.total, dtype)
        value, nothing = grid(x.value, dtype), np.zeros_like(x.value)
        if dtype == "float32":  # steps are no larger than the errors: random like them
            return Bounded(value, high - low, nothing)
        return Bounded(value, nothing, high - low)

    def attend(self, q: Bounded, k: Bounded, v: Bounded, problem: Problem) -> Bounded:
        group = problem.heads[0] // problem.heads[1]
        query = self._operand(Bounded(*(t.transpose(0, 2, 1, 3) for t in q)), problem.cache_dtype)
        nothing = np.zeros_like(problem.k_cache)
        keys, values = (
            Bounded(*map(joined, (old, nothing, nothing), new, (group,) * 3))
            for old, new in ((problem.k_cache, k), (problem.v_cache, v))
        )
        scores = _scores(query, keys, problem.scale)
        visible = np.where(problem.visible, scores.value, -np.inf)
        top = shift(visible, problem.sink)
        p = np.exp(visible - top)
        total = p.sum(-1, keepdims=True)
        if problem.sink is not None:
            total = total + np.exp(problem.sink[:, None, None] - top)
        p = p / np.where(total > 0, total, 1)
        # exp's own error, and that of its argument's rounding; what rounds p moves y as ds does
        size = np.where(problem.visible, 1 + np.abs(scores.value) + np.abs(top), 0.0)
        of_p = self._rounding(problem.cache_dtype)
        y = p @ values.value
        error = _quadrature(
            _moved(p * _quadrature(scores.error, FEW * size, of_p), values.value, y),
            np.sqrt(p**2 @ values.error**2),
            sum_error(p.shape[-1], y, np.sqrt(p**2 @ values.value**2)),
            FEW * y,
        )
        # n scores that jump, all at once: at most sqrt(n) times their root sum of squares
        several = np.sqrt(np.count_nonzero(p * scores.jump, axis=-1)[..., None])
        jump = p @ values.jump + np.minimum(several, 6) * _moved(p * scores.jump, values.value, y)
        return Bounded(*(t.transpose(0, 2, 1, 3) for t in (y, error, jump)))

    def reshape(self, x: Bounded, shape: tuple[int, ...]) -> Bounded:
        return Bounded(*(t.reshape(shape) for t in x))

    def heads(self, x: Bounded, start: int, stop: int) -> Bounded:
        return Bounded(*(t[:, :, start:stop] for t in x))


def _scores(q: Bounded, k: Bounded, scale: float) -> Bounded:
    """`q k^T * scale`."""
    turned = Bounded(*(t.swapaxes(2, 3) for t in k))
    scores = q.value @ turned.value
    squares = turned.value**2
    error = _quadrature(
        sum_error(q.value.shape[-1], scores, np.sqrt(q.value**2 @ squares)),
        np.sqrt(q.error**2 @ squares),
        np.sqrt(q.value**2 @ turned.error**2),
    )
    jump = gathered(q.jump, turned.value) + np.abs(q.value) @ turned.jump
    return Bounded(scores * scale, error * abs(scale), jump * abs(scale))


def _moved(spread: np.ndarray, v: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`sum p_i ds_i (v_i - y)` in quadrature, for `spread = p ds`, as matrix products."""
    s = np.square(spread)
    moved = s @ v**2 - 2 * y * (s @ v) + y**2 * s.sum(-1)[..., None]
    return np.sqrt(np.maximum(moved, 0))
