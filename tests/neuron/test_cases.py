"""Every named case on one core and on two: right within the budgets of its dtypes, or refused, and
refused is exactly what is listed here."""

from __future__ import annotations

import pytest

import tkg
from tests.calls import block_checks, failures, projection_check
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.cases import CASES, PROJECTION_CASES
from tkg.testing.verify import block_truth, projection_truth

BLOCK = [case for case in CASES if "ci" in case.tags]

REFUSED = {
    "gemma3-1b": "d_head",
    "gemma3-1b-global": "d_head",
    "d-head-512": "d_head",
    "smollm2-135m-prompt": "q_heads",
    "tokens-128": "q_heads",
    "static-fn": "float8_e4m3fn",
    "row-fn": "float8_e4m3fn",
    "fp8-cache-fn": "float8_e4m3fn",
    "fp8-cache-block": "float8_e4m3fn",
    "projection-many-rows": "B \\* S",
    "projection-static-fn": "float8_e4m3fn",
    "projection-row-fn-transposed-lnc2": "float8_e4m3fn",
}
REFUSED_ON_TWO = REFUSED | {"hidden-1": "lnc", "projection-tiny": "lnc"}


def on(case: Case | ProjectionCase, cores: int) -> dict:
    """The case's call on so many cores; a transposed output has its own number of them."""
    call = case.inputs()
    if not (call.get("transposed_out") or call.get("TRANSPOSE_OUT")):
        call["lnc"] = cores
    return call


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("case", BLOCK, ids=str)
def test_block(case: Case, cores: int) -> None:
    call = on(case, cores)
    reason = (REFUSED if cores == 1 else REFUSED_ON_TWO).get(case.name)
    if reason is None:
        assert not failures(block_checks("neuron", call, block_truth(call)))
        return
    with pytest.raises(tkg.Unsupported, match=reason):
        block_checks("neuron", call, None)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("case", PROJECTION_CASES, ids=str)
def test_projection(case: ProjectionCase, cores: int) -> None:
    call = on(case, cores)
    reason = (REFUSED if cores == 1 else REFUSED_ON_TWO).get(case.name)
    if reason is None:
        assert projection_check("neuron", call, projection_truth(call)).ok
        return
    with pytest.raises(tkg.Unsupported, match=reason):
        projection_check("neuron", call, projection_truth(call))
