"""The block as eager code of one dtype runs it: float32 inside a stage, rounded between stages.

Its error against float64 is what a user of that dtype has today, and so the yardstick for backends
that round intermediates to 16 bits. With `dtype=None` nothing is rounded between stages.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tkg.contract.dtypes import FP8, FP8_MAX
from tkg.testing.problem import Problem, Weights
from tkg.testing.rounding import round_to


class Eager:
    """Arithmetic on plain arrays.

    Args:
        dtype: what each stage's result is rounded to, or None.
        work: float32, or float64 for a result without rounding errors to speak of.
    """

    def __init__(self, dtype: str | None, work: Any = np.float32) -> None:
        self.dtype = dtype
        self.work = work

    def _leave(self, x: np.ndarray) -> np.ndarray:
        return (x if self.dtype is None else round_to(x, self.dtype)).astype(self.work)

    def enter(self, x: np.ndarray) -> np.ndarray:
        return x.astype(self.work)

    def norm(self, x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        y = x / np.sqrt(mean + self.work(eps))
        return self._leave(y if weight is None else y * weight.astype(self.work))

    def linear(self, x: np.ndarray, weights: Weights) -> np.ndarray:
        if weights.step is not None:
            x = np.clip(x / self.work(weights.step), -FP8_MAX, FP8_MAX)
            x = round_to(x, "float8_e4m3").astype(self.work)
        y = x @ weights.weight.astype(self.work)
        if weights.columns is not None:
            y = y * weights.columns.astype(self.work)
        if weights.bias is not None:
            y = y + weights.bias.astype(self.work)
        return self._leave(y)

    def rope(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray, half: bool) -> np.ndarray:
        first, second = pairs(x.shape[-1], half)
        c, s = cos.astype(self.work), sin.astype(self.work)
        y = np.empty_like(x)
        y[..., first] = x[..., first] * c - x[..., second] * s
        y[..., second] = x[..., first] * s + x[..., second] * c
        return self._leave(y)

    def scaled(self, x: np.ndarray, scale: float | None) -> np.ndarray:
        return x if scale is None else x * self.work(scale)

    def stored(self, x: np.ndarray, dtype: str) -> np.ndarray:
        return grid(x, dtype).astype(self.work)

    def attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, problem: Problem) -> np.ndarray:
        group = problem.heads[0] // problem.heads[1]
        keys, values = joined(problem.k_cache, k, group), joined(problem.v_cache, v, group)
        scores = q.transpose(0, 2, 1, 3) @ keys.swapaxes(2, 3) * self.work(problem.scale)
        scores = np.where(problem.visible, scores, -np.inf)
        top = shift(scores, problem.sink)
        weights = np.exp(scores - top, dtype=self.work)
        total = weights.sum(-1, keepdims=True)
        if problem.sink is not None:
            total = total + np.exp(problem.sink[:, None, None].astype(self.work) - top)
        weights = self._leave(weights / np.where(total > 0, total, 1))
        return self._leave((weights @ values).transpose(0, 2, 1, 3))

    def reshape(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return x.reshape(shape)

    def heads(self, x: np.ndarray, start: int, stop: int) -> np.ndarray:
        return x[:, :, start:stop]


def grid(x: np.ndarray, dtype: str) -> np.ndarray:
    """`x` as the cache holds it: clipped for FP8, rounded."""
    return round_to(np.clip(x, -FP8_MAX, FP8_MAX) if dtype in FP8 else x, dtype)


def pairs(d: int, half: bool) -> tuple[slice, slice]:
    """The elements that RoPE rotates with one another."""
    return (slice(0, d // 2), slice(d // 2, d)) if half else (slice(0, d, 2), slice(1, d, 2))


def joined(old: np.ndarray, new: np.ndarray, group: int) -> np.ndarray:
    """`[B, q, P + S, d]`: a cache `[B, kv, P, d]`, then new tokens `[B, S, kv, d]`."""
    both = np.concatenate([old.astype(new.dtype), new.transpose(0, 2, 1, 3)], axis=2)
    return both.repeat(group, axis=1)


def shift(scores: np.ndarray, sink: np.ndarray | None) -> np.ndarray:
    """What to subtract before exp: the largest logit, or 0 where there is none."""
    top = scores.max(-1, keepdims=True)
    if sink is not None:
        top = np.maximum(top, sink[:, None, None].astype(scores.dtype))
    return np.where(np.isfinite(top), top, 0).astype(scores.dtype)
