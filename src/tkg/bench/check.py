"""Whether an answer is right: against float64, within the budget of its arithmetic.

tkg computes in float32 and gets the error bound of float32 arithmetic, and where its core rounds
operands to bfloat16 that of these roundings. A peer that
works in a dtype gets what eager code of that dtype needs: twice its largest error in the same
token, plus the float32 bound. Both are `tkg.testing.budgets`' rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tkg.bench.inputs import Call
from tkg.testing import pipeline
from tkg.testing.bounds import Bounded, Bounds
from tkg.testing.budgets import EAGER_MARGIN, Check, Computes, compare, rounded_operands
from tkg.testing.eager import Eager
from tkg.testing.problem import Problem, logical, new_slots, of_call
from tkg.testing.rounding import error_before_rounding
from tkg.testing.verify import block_truth


@dataclass(frozen=True)
class Answer:
    """What a contestant returned, NumPy arrays in the dtype that it computes in.

    Attributes:
        out: `[B * S_tkg, H]`.
        k, v: `[B, S_tkg, kv_heads, d_head]`, the new tokens as they stand in the cache.
        strays: elements of the caches that changed and should not have; 0 where not known.
    """

    out: np.ndarray
    k: np.ndarray
    v: np.ndarray
    strays: int = 0


class Expected:
    """The right answer to a call, and how far an answer may be from it.

    Args:
        call: of the distinct rows.
        computes: what it rounds on the way, as in `tkg.testing.budgets`.
    """

    def __init__(self, call: Call, computes: Computes) -> None:
        self.truth = block_truth(call)
        self.dtype = call["X"].dtype.name
        problem = of_call(call)
        bounds = _BoundsByHead(rounded_operands(computes, problem.dtype))
        true = pipeline.run(problem, bounds)
        out, k, v = true.out, true.k_raw, true.v_raw
        if computes == "same dtype":
            eager = pipeline.run(problem, _EagerByHead(problem.dtype))
            pairs = ((eager.out, out), (eager.k_raw, k), (eager.v_raw, v))
            out, k, v = (_widened(code, value) for code, value in pairs)
        stored = (bounds.stored(value, problem.cache_dtype).total for value in (k, v))
        self.out_budget = out.total.reshape(-1, out.total.shape[-1])
        self.k_budget, self.v_budget = stored

    def judge(self, answer: Answer) -> list[Check]:
        """Compare an answer, for these rows or for several copies of them; each copy must do."""
        truth = self.truth
        out = _furthest(answer.out, truth.out)
        checks = [_compared("out", out, error_before_rounding(out, truth.out, self.dtype), self)]
        for what, got, true in (("K", answer.k, truth.k_new), ("V", answer.v, truth.v_new)):
            far = _furthest(got, true)
            checks.append(_compared(what, far, np.abs(far - true.astype(np.float64)), self))
        strays = float(answer.strays)
        return [*checks, Check("caches", strays, 0.0, np.inf if strays else 0.0)]


def _compared(what: str, got: np.ndarray, error: np.ndarray, expected: Expected) -> Check:
    budget = getattr(expected, f"{what.lower()}_budget")
    return compare(what, np.where(np.isfinite(got), error, np.inf), budget)


def _furthest(got: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of each element's copies in the batch, the one that is furthest from the truth; float64."""
    copies = got.astype(np.float64).reshape(-1, *truth.shape)
    distance = np.abs(copies - truth.astype(np.float64))
    worst = np.argmax(np.where(np.isnan(distance), np.inf, distance), axis=0)
    return np.take_along_axis(copies, worst[None], axis=0)[0]


def answer_of(before: Call, out: np.ndarray, K: np.ndarray, V: np.ndarray) -> Answer:
    """The answer of code that updates the contract's caches in place.

    Args:
        before: the call with its caches as they were.
        out: `[B * S_tkg, H]`.
        K, V: the caches after the call.
    """
    new: list[np.ndarray] = []
    strays = 0
    paged = before.get("active_blocks_table") is not None
    slots = new_slots(before)
    rows = np.zeros_like(slots) if paged else np.arange(len(slots))[:, None]
    for name, cache in (("K_cache", K), ("V_cache", V)):
        untouched = before[name].copy()
        after = logical(cache, paged=paged)
        new.append(after[rows, slots])
        logical(untouched, paged=paged)[rows, slots] = new[-1]
        strays += int((_bits(untouched) != _bits(cache)).sum())
    return Answer(out, new[0], new[1], strays)


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def _widened(eager: np.ndarray, true: Bounded) -> Bounded:
    """The bound plus what eager code of a dtype may add, by `budgets`' rule: per token."""
    axes = tuple(range(2, true.value.ndim))
    largest = np.abs(eager - true.value).max(axis=axes, keepdims=True)
    return true._replace(error=true.error + EAGER_MARGIN * largest)


class _ByHead:
    """Attention one KV head at a time: a long context of many heads would not fit in memory."""

    def attend(self, q: Any, k: Any, v: Any, problem: Problem) -> Any:
        group = problem.heads[0] // problem.heads[1]
        arithmetic: Any = super()
        parts = [
            arithmetic.attend(
                arithmetic.heads(q, head * group, (head + 1) * group),
                arithmetic.heads(k, head, head + 1),
                arithmetic.heads(v, head, head + 1),
                _one_head(problem, head, group),
            )
            for head in range(problem.heads[1])
        ]
        if isinstance(parts[0], Bounded):
            return Bounded(*(np.concatenate(same, axis=2) for same in zip(*parts, strict=True)))
        return np.concatenate(parts, axis=2)


def _one_head(problem: Problem, head: int, group: int) -> Problem:
    queries = slice(head * group, (head + 1) * group)
    return replace(
        problem,
        heads=(group, 1, problem.heads[2]),
        k_cache=problem.k_cache[:, head : head + 1],
        v_cache=problem.v_cache[:, head : head + 1],
        visible=problem.visible[:, queries],
        sink=None if problem.sink is None else problem.sink[queries],
    )


class _BoundsByHead(_ByHead, Bounds):
    pass


class _EagerByHead(_ByHead, Eager):
    pass
