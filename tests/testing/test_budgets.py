"""The budgets: wide enough for what they are for, and not wider than they need to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests import oracle
from tests.calls import run
from tkg.testing import budgets, pipeline
from tkg.testing.bounds import Bounds
from tkg.testing.budgets import Check, check_block, compare, layout
from tkg.testing.case import Case
from tkg.testing.cases import CASES
from tkg.testing.eager import Eager, joined
from tkg.testing.problem import Problem, Weights, of_call
from tkg.testing.rounding import error_before_rounding, round_to

SOME = [case for case in CASES if "ci" in case.tags and case.hidden < 4096]


def alive(case: Case, x: np.ndarray) -> np.ndarray:
    rows = np.array(case.lengths) >= 0
    return x * rows.reshape(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize("case", SOME, ids=str)
def test_the_staged_run_is_the_oracle(case: Case) -> None:
    """In float64, nothing rounded between stages: the bounds are bounds of the right thing."""
    call = case.inputs()
    problem, want = of_call(call), oracle.attention_block(call)
    for arithmetic in (Eager(None, np.float64), Bounds()):
        stages = pipeline.run(problem, arithmetic)
        values = [getattr(x, "value", x) for x in (stages.out, stages.k_raw, stages.v_raw)]
        out, k_raw, v_raw = (alive(case, x) for x in values)
        np.testing.assert_allclose(layout(call, out), want.out, rtol=0, atol=1e-11)
        np.testing.assert_allclose(k_raw, want.k_raw, rtol=0, atol=1e-11)
        np.testing.assert_allclose(v_raw, want.v_raw, rtol=0, atol=1e-11)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_float32_arithmetic_keeps_to_its_bounds(case: Case) -> None:
    """A float32 run of the same stages, before the final rounding."""
    call = case.inputs()
    problem = of_call(call)
    true, got = pipeline.run(problem, Bounds()), pipeline.run(problem, Eager(None))
    for name in ("out", "k_raw", "v_raw"):
        value, bound = getattr(true, name).value, getattr(true, name).total
        error = alive(case, np.abs(getattr(got, name) - value))
        assert compare(name, error, alive(case, bound)).ok


@pytest.mark.parametrize("case", SOME, ids=str)
def test_the_float32_budget_is_far_below_bfloat16(case: Case) -> None:
    """An intermediate rounded to bfloat16 costs 2^-9 of its size; arithmetic has 1/50 of that.

    Where some K or V lies next to a tie it may jump by a step: the whole budget then stays below
    half of such a rounding. Jumps of FP8 activations are larger: those cases are apart.
    """
    if "STATIC" in (case.qkv, case.out):
        return
    call = case.inputs()
    true = pipeline.run(of_call(call), Bounds()).out
    size = np.sqrt(np.mean(alive(case, true.value) ** 2))
    assert np.median(alive(case, true.error)) <= size * 2**-9 / 50
    assert np.median(alive(case, true.total)) <= size * 2**-9 / 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_same_dtype_budgets_take_eager_code_and_little_more(dtype: str) -> None:
    case = Case(name="same-dtype", dtype=dtype, kv_heads=2, tokens=3, bias_qkv=True)
    call = case.inputs()
    truth = oracle.attention_block(call)
    stages = pipeline.run(of_call(call), Eager(dtype))
    out = layout(call, stages.out)

    def checks(scale: float, computes: budgets.Computes) -> Check:
        got = truth.out + scale * (out - truth.out)
        allowed = budgets._allowed(call, computes)
        error = error_before_rounding(round_to(got, dtype), truth.out, dtype)
        return compare("out", error, layout(call, allowed.out))

    assert checks(1.0, "same dtype").ok
    assert not checks(1.0, "float32").ok
    assert not checks(10.0, "same dtype").ok


PRODUCTS = ("projections", "scores", "values")


class Narrow(Eager):
    """Float64, but what weights, keys or values are multiplied by is rounded to a dtype.

    Args:
        dtype: of the factors.
        products: some of `PRODUCTS`; only these.
    """

    def __init__(self, dtype: str, products: tuple[str, ...]) -> None:
        super().__init__(None, np.float64)
        self._narrow, self._products = dtype, products

    def _factor(self, x: np.ndarray, product: str) -> np.ndarray:
        return round_to(x, self._narrow).astype(np.float64) if product in self._products else x

    def linear(self, x: np.ndarray, weights: Weights) -> np.ndarray:
        return super().linear(self._factor(x, "projections"), weights)

    def attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, problem: Problem) -> np.ndarray:
        group = problem.heads[0] // problem.heads[1]
        keys, values = joined(problem.k_cache, k, group), joined(problem.v_cache, v, group)
        queries = self._factor(q.transpose(0, 2, 1, 3) * problem.scale, "scores")
        scores = np.where(problem.visible, queries @ keys.swapaxes(2, 3), -np.inf)
        weights = self._factor(np.exp(scores - scores.max(-1, keepdims=True)), "values")
        return (weights @ values / weights.sum(-1, keepdims=True)).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("stored", ["bfloat16", "float8_e4m3", "float16"])
def test_budgets_of_rounded_operands_take_these_roundings_of_these_products(
    stored: str, dtype: str, product: str
) -> None:
    """Of products with bfloat16 or FP8, where X is bfloat16; not of others, and no wider ones."""
    case = Case(name="operands", dtype=dtype, cache_dtype=stored, kv_heads=2, tokens=3)
    if stored == "float8_e4m3":
        case = replace(case, qkv="ROW", out="ROW")
    else:
        case = replace(case, weight_dtype=stored, out_dtype=stored)
    call = case.inputs()
    problem = of_call(call)
    true = pipeline.run(problem, Bounds())

    def checks(operands: str, computes: budgets.Computes, *products: str) -> Check:
        got = pipeline.run(problem, Narrow(operands, products))
        allowed = budgets._allowed(call, computes)
        return compare("out", np.abs(got.out - true.out.value), allowed.out)

    assert checks("float32", "float32", *PRODUCTS).ok
    assert not checks("bfloat16", "float32", product).ok
    taken = dtype == "bfloat16" and stored != "float16"
    assert checks("bfloat16", "bfloat16 operands", product).ok == taken
    assert checks("bfloat16", "bfloat16 operands", *PRODUCTS).ok == taken
    assert not checks("float8_e4m3", "bfloat16 operands", *PRODUCTS).ok


def test_a_cached_value_may_differ_only_next_to_a_tie() -> None:
    case = Case(name="ties", dtype="bfloat16", tokens=5, kv_heads=2)
    call = case.inputs()
    out, K, V = run("reference", call)
    truth = oracle.attention_block(call)
    moved = V.copy()
    bits = moved.view(np.uint16)
    bits[0, 0, 37, 3] += 1
    failed = [c.what for c in check_block(call, (out, K, moved), truth) if not c.ok]
    distance = error_before_rounding(moved[0, 0, 37, 3], truth.v_raw[0, 0, 0, 3], "bfloat16")
    assert distance > 1e-5  # this value is not next to a tie
    assert failed == ["V"]


def test_another_shape_or_dtype_is_never_right() -> None:
    """A missing axis would be broadcast, and a wider dtype looks more exact."""
    call = Case(name="shapes", kv_heads=2, tokens=2, update=False).inputs()
    out, K, V = run("reference", call)
    truth = oracle.attention_block(call)
    for wrong in ((out[:1], K, V), (out.astype(np.float64), K, V), (out[None], K, V)):
        assert [c.what for c in check_block(call, wrong, truth) if not c.ok] == ["out"]
    for wrong in ((out, K, V[:, :, :1]), (out, K, V.astype(np.float64))):
        assert [c.what for c in check_block(call, wrong, truth) if not c.ok] == ["V"]


def test_no_budget_means_no_error() -> None:
    check = compare("out", np.array([0.0, 1e-30]), np.array([0.0, 0.0]))
    assert not check.ok
    assert compare("out", np.zeros(2), np.zeros(2)).ok
    assert not compare("out", np.array([np.nan]), np.array([1.0])).ok
