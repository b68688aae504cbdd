"""Whether a backend's answer is right: error against float64, and how much there may be.

Truth is a float64 run. What a backend may add to it depends on how it computes:

- "float32": the error bound of float32 arithmetic (see `bounds`), and nothing for the final
  rounding: the returned value must be what some number within the bound rounds to.
- "bfloat16 operands": float32, but where X is bfloat16 both factors of a product with bfloat16 or
  FP8 weights, keys or values are bfloat16: the normalised X, the queries, the softmax weights and
  the attention output are rounded to it. These are random errors like those of float32, and larger.
- "same dtype": intermediates may be rounded to X's dtype. The budget of a token is then the largest
  error that eager code of that dtype has in the same token, twice, plus the float32 bound.

Cached values follow the same rule: a stored K or V differs from the true one only where the true
one, before rounding, lies within the bound of a rounding boundary; then by the one step between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from tkg.testing import pipeline
from tkg.testing.bounds import Bounded, Bounds, exact
from tkg.testing.eager import Eager
from tkg.testing.problem import Call, Weights, logical, new_slots, of_call
from tkg.testing.rounding import error_before_rounding

Computes = Literal["float32", "bfloat16 operands", "same dtype"]

EAGER_MARGIN = 2.0
"""Eager's own error is one draw of a random quantity; a token's largest is allowed twice."""


class Truth(Protocol):
    """`out` in the call's layout, unrounded; `k_new`, `v_new` `[B, S, kv, d]`, rounded."""

    @property
    def out(self) -> Any: ...
    @property
    def k_new(self) -> Any: ...
    @property
    def v_new(self) -> Any: ...


@dataclass(frozen=True)
class Check:
    """One compared array.

    Attributes:
        what: "out", "K" or "V" (the new tokens), or "caches" (everything else in them).
        error: error before rounding of the element that used most of its budget.
        budget: what was allowed there.
        used: error / budget; above 1 is a failure.
    """

    what: str
    error: float
    budget: float
    used: float

    @property
    def ok(self) -> bool:
        return self.used <= 1.0


def rounded_operands(computes: Computes, dtype: str) -> str | None:
    """What `Bounds` has to know of how a backend computes where X has a dtype."""
    return dtype if computes == "bfloat16 operands" and dtype == "bfloat16" else None


def check_block(
    call: Call, result: tuple[Any, Any, Any], truth: Truth, computes: Computes = "float32"
) -> list[Check]:
    """Compare what `attention_block_tkg(**call)` returned with the truth.

    Args:
        call: the arguments as they were before the call (the caches were updated since).
        result: `(out, K_out, V_out)`, NumPy arrays.
        truth: of the same call.
        computes: see the module's text.
    """
    out, K_out, V_out = result
    allowed = _allowed(call, computes)
    checks = [_check_out(out, truth.out, layout(call, allowed.out), call["X"].dtype)]
    wrong_elsewhere = 0
    for name, got, true, budget in (
        ("K", K_out, truth.k_new, allowed.k_raw),
        ("V", V_out, truth.v_new, allowed.v_raw),
    ):
        new, written, changed = _new_tokens(call, name, got)
        if new.shape == true.shape and got.dtype == call["V_cache"].dtype:
            error = np.where(written, np.abs(new - true.astype(np.float64)), 0.0)
            checks.append(compare(name, error, budget))
        else:
            checks.append(Check(name, np.inf, 0.0, np.inf))
        wrong_elsewhere += changed
    checks.append(Check("caches", float(wrong_elsewhere), 0.0, np.inf if wrong_elsewhere else 0.0))
    return checks


def check_projection(
    call: Call, result: np.ndarray, truth: np.ndarray, computes: Computes = "float32"
) -> Check:
    """Compare what `output_projection_tkg(**call)` returned with the float64 truth."""
    attention = np.asarray(call["attention"]).astype(np.float64)
    x = attention.transpose(1, 3, 2, 0).reshape(-1, call["weight"].shape[0])
    weights = _projection_weights(call)
    dtype = call["attention"].dtype.name
    allowed = Bounds(rounded_operands(computes, dtype)).linear(exact(x), weights)
    budget = allowed.total
    if computes == "same dtype":
        budget = budget + _eager_error(Eager(dtype).linear(x.astype(np.float32), weights), allowed)
    if call.get("TRANSPOSE_OUT"):
        budget = _transposed(budget, call.get("lnc", 1))
    return _check_out(result, truth, budget, call["attention"].dtype)


def _check_out(out: np.ndarray, truth: np.ndarray, budget: np.ndarray, dtype: np.dtype) -> Check:
    """Compare outputs; another shape or dtype than the contract's is over any budget."""
    if out.shape != truth.shape or out.dtype != dtype:
        return Check("out", np.inf, 0.0, np.inf)
    error = error_before_rounding(out.astype(np.float64), truth, dtype.name)
    return compare("out", error, budget)


def compare(what: str, error: np.ndarray, budget: np.ndarray) -> Check:
    """The element that used most of its budget. NaN is over any budget."""
    error = np.where(np.isnan(error), np.inf, error)
    used = np.divide(error, budget, out=np.where(error > 0, np.inf, 0.0), where=budget > 0)
    if not used.size:
        return Check(what, 0.0, 0.0, 0.0)
    worst = np.unravel_index(np.argmax(used), used.shape)
    return Check(what, float(error[worst]), float(budget[worst]), float(used[worst]))


def layout(call: Call, x: np.ndarray) -> np.ndarray:
    """`[B, S, H]` or `[B, S, q, d]` in the layout of the call's `out`."""
    if call.get("W_out") is None:
        return x.transpose(0, 2, 3, 1)
    rows = x.reshape(-1, x.shape[-1])
    return _transposed(rows, call.get("lnc", 1)) if call.get("transposed_out") else rows


def _transposed(rows: np.ndarray, lnc: int) -> np.ndarray:
    """h = h0 * (H / lnc) + h1 * (H / lnc / 128) + h2, to `[h1, h0, h2, row]`."""
    return rows.reshape(len(rows), lnc, 128, -1).transpose(2, 1, 3, 0)


def _allowed(call: Call, computes: Computes) -> pipeline.Stages:
    """Budgets of each array: of `out` before rounding, of K and V after it. Padded rows: 0."""
    problem = of_call(call)
    bounds = Bounds(rounded_operands(computes, problem.dtype))
    true = pipeline.run(problem, bounds)
    budgets = [true.out.total]
    budgets += [bounds.stored(t, problem.cache_dtype).total for t in (true.k_raw, true.v_raw)]
    if computes == "same dtype":
        eager = pipeline.run(problem, Eager(problem.dtype))
        budgets[0] = budgets[0] + _eager_error(eager.out, true.out)
        for i, name in ((1, "k_raw"), (2, "v_raw")):
            raw = getattr(true, name)
            wider = raw._replace(error=raw.error + _eager_error(getattr(eager, name), raw))
            budgets[i] = bounds.stored(wider, problem.cache_dtype).total
    out, k, v = (b * problem.alive.reshape(-1, *[1] * (b.ndim - 1)) for b in budgets)
    return pipeline.Stages(k, v, out)


def _eager_error(eager: np.ndarray, true: Bounded) -> np.ndarray:
    axes = tuple(range(min(2, true.value.ndim - 1), true.value.ndim))
    largest = np.abs(eager - true.value).max(axis=axes, keepdims=True)
    return np.broadcast_to(EAGER_MARGIN * largest, true.value.shape)


def _new_tokens(call: Call, name: str, got: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """New tokens `[B, S, kv, d]`, which of them were to be written, and changes anywhere else."""
    if not call.get("update_cache"):
        if name == "K":
            new = (got if got.ndim == 4 else got[None]).transpose(2, 3, 0, 1)
        else:
            new = got.transpose(0, 2, 1, 3)
        return new.astype(np.float64), np.ones((*new.shape[:2], 1, 1), bool), 0
    paged = call.get("active_blocks_table") is not None
    transposed = name == "K" and call.get("K_cache_transposed", False)
    after = logical(got, paged=paged, transposed=transposed)
    expected = logical(call[f"{name}_cache"].copy(), paged=paged, transposed=transposed)
    slots = new_slots(call)
    row, token = np.nonzero(slots >= 0)
    place = (np.zeros_like(row) if paged else row, slots[row, token])
    new = np.zeros((*slots.shape, *after.shape[2:]))
    new[row, token] = after[place].astype(np.float64)
    expected[place] = after[place]
    changed = _bits(expected) != _bits(after)
    return new, (slots >= 0)[:, :, None, None], int(changed.sum())


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


def _projection_weights(call: Call) -> Weights:
    mode = getattr(call.get("quantization_type"), "name", "NONE")
    bias = call.get("bias")
    step = columns = None
    if mode != "NONE":
        columns = np.asarray(call["weight_scale"]).astype(np.float64)[0]
        if mode == "STATIC":
            step = float(np.asarray(call["input_scale"])[0, 0])
            columns = columns * step
    stored = np.asarray(call["weight"])
    weight = stored.astype(np.float64)
    return Weights(
        stored.dtype.name,
        weight,
        None if bias is None else np.asarray(bias, np.float64)[0],
        columns,
        step,
    )
