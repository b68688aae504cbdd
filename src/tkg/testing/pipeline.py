"""The order of the stages, for any arithmetic that can run each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tkg.testing.problem import HeadNorm, Problem, Weights


class Arithmetic(Protocol):
    """How a stage is computed. Values are whatever the arithmetic works on; shapes are theirs."""

    def enter(self, x: np.ndarray) -> Any: ...
    def norm(self, x: Any, weight: np.ndarray | None, eps: float) -> Any: ...
    def linear(self, x: Any, weights: Weights) -> Any: ...
    def rope(self, x: Any, cos: np.ndarray, sin: np.ndarray, half: bool) -> Any: ...
    def scaled(self, x: Any, scale: float | None) -> Any: ...
    def stored(self, x: Any, dtype: str) -> Any: ...
    def attend(self, q: Any, k: Any, v: Any, problem: Problem) -> Any: ...
    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any: ...
    def heads(self, x: Any, start: int, stop: int) -> Any: ...


@dataclass(frozen=True)
class Stages:
    """What a run leaves behind: `k_raw` and `v_raw` are the values that the cache rounds.

    `out` is `[B, S, H]`, or `[B, S, q, d]` where there is no output projection; the others are
    `[B, S, kv, d]`.
    """

    k_raw: Any
    v_raw: Any
    out: Any


def run(problem: Problem, arithmetic: Arithmetic) -> Stages:
    """All stages of the attention block."""
    q_heads, kv, d = problem.heads
    batch, tokens, _ = problem.x.shape
    x = arithmetic.enter(problem.x)
    if problem.norm is not None:
        x = arithmetic.norm(x, *problem.norm)
    y = arithmetic.linear(x, problem.qkv)
    y = arithmetic.reshape(y, (batch, tokens, q_heads + 2 * kv, d))
    q = arithmetic.heads(y, 0, q_heads)
    k = arithmetic.heads(y, q_heads, q_heads + kv)
    v = arithmetic.heads(y, q_heads + kv, q_heads + 2 * kv)
    for norm, rope in ((problem.pre, True), (problem.post, False)):
        q, k = _head_norm(arithmetic, q, k, norm)
        if rope and problem.cos is not None and problem.sin is not None:
            q, k = (arithmetic.rope(t, problem.cos, problem.sin, problem.half) for t in (q, k))
    k_raw, v_raw = arithmetic.scaled(k, problem.k_scale), arithmetic.scaled(v, problem.v_scale)
    k_new, v_new = (arithmetic.stored(t, problem.cache_dtype) for t in (k_raw, v_raw))
    out = q if problem.skip_attention else arithmetic.attend(q, k_new, v_new, problem)
    if problem.out is not None:
        out = arithmetic.reshape(out, (batch, tokens, q_heads * d))
        out = arithmetic.linear(out, problem.out)
    return Stages(k_raw, v_raw, out)


def _head_norm(arithmetic: Arithmetic, q: Any, k: Any, norm: HeadNorm | None) -> tuple[Any, Any]:
    if norm is None:
        return q, k
    return arithmetic.norm(q, norm.q, norm.eps), arithmetic.norm(k, norm.k, norm.eps)
