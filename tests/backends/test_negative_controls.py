"""Each check fails when it should: a wrong implementation is a right one of another call."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

import tkg
from tests.calls import Call, run
from tests.controls import CONTROLS, Control
from tkg.testing.budgets import Truth, check_block, check_projection
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.cases import CASES, PROJECTION_CASES
from tkg.testing.verify import block_truth, projection_truth

PAIRS = [
    pytest.param(control, case, id=f"{control}-{case}")
    for case in CASES  # all of a case together, so that its truth is made once
    for control in CONTROLS
    if "ci" in case.tags and case.hidden < 3000 and control.applies(case)
]


@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_each_control_has_a_case(control: Control) -> None:
    assert any(pair.values[0] is control for pair in PAIRS)


@lru_cache(1)
def right(case: Case) -> tuple[Call, Truth]:
    call = case.inputs()
    return call, block_truth(call)


@pytest.mark.parametrize(("control", "case"), PAIRS)
def test_a_wrong_call_fails_the_check(control: Control, case: Case) -> None:
    call, truth = right(case)
    with np.errstate(all="ignore"):  # some mistakes make Inf or NaN
        wrong = run("reference", control.wrong(case, call))
    failed = {c.what for c in check_block(call, wrong, truth) if not c.ok}
    assert failed & control.fails, f"{control} went unnoticed; failed: {failed}"


def _nudged(array: np.ndarray, steps: int) -> np.ndarray:
    """The element of largest size moved by some steps of its dtype."""
    bits = array.copy().view(f"i{array.itemsize}")
    bits.ravel()[np.argmax(np.abs(array.astype(np.float64)))] += steps
    return bits.view(array.dtype)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("group-5", "tokens-5-bf16")], ids=str
)
def test_one_wrong_element_is_enough(case: Case) -> None:
    call = case.inputs()
    out, K, V = run("reference", call)
    truth = block_truth(call)
    steps = 1 if case.dtype == "bfloat16" else 100
    failed = [c.what for c in check_block(call, (_nudged(out, steps), K, V), truth) if not c.ok]
    assert failed == ["out"]
    V = V.copy()
    V[0, 0, -1] = 7.0  # a slot that nobody writes
    assert [c.what for c in check_block(call, (out, K, V), truth) if not c.ok] == ["caches"]


def test_a_nan_fails_the_check() -> None:
    call = CASES[-1].inputs()
    out, K, V = run("reference", call)
    out = out.copy()
    out.flat[3] = np.nan
    assert [c.what for c in check_block(call, (out, K, V), block_truth(call)) if not c.ok] == [
        "out"
    ]


@pytest.mark.parametrize("case", [c for c in PROJECTION_CASES if "edge" in c.tags], ids=str)
def test_a_wrong_projection_fails_the_check(case: ProjectionCase) -> None:
    call = case.inputs()
    truth = projection_truth(call)
    wrong = [call | {"attention": np.roll(call["attention"], 1, 0)}] if case.d_head > 2 else []
    if case.bias:
        wrong.append({name: value for name, value in call.items() if name != "bias"})
    for scale in ("weight_scale", "input_scale"):
        if scale in call:
            wrong.append(call | {scale: call[scale] * np.float32(1.01)})
    if case.transposed and case.hidden % 256 == 0:
        wrong.append(call | {"lnc": 3 - case.lnc})
    for other in wrong:
        out = tkg.output_projection_tkg(**other, backend="reference")
        if out.shape == truth.shape:
            assert not check_projection(call, out, truth).ok
