"""Every backend on every named case, against the reference and against the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from tests import oracle
from tests.calls import block_checks, checksums, failures, projection_check, run
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.cases import CASES, PROJECTION_CASES, select
from tkg.testing.verify import block_truth, projection_truth

BLOCK = [case for case in CASES if "ci" in case.tags]
LARGE = ("smollm2-135m-prompt", "llama3-70b-tp8", "tokens-128")
"""Smaller cases have all their options, and a sweep has 128 tokens."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.repeats] if c.name in LARGE else []) for c in BLOCK],
    ids=str,
)
def test_block_is_right(backend: str, case: Case) -> None:
    call = case.inputs()
    assert not failures(block_checks(backend, call, block_truth(call)))


@pytest.mark.repeats
@pytest.mark.parametrize("case", BLOCK, ids=str)
def test_block_agrees_with_the_oracle(backend: str, case: Case) -> None:
    call = case.inputs(seed=1)
    assert not failures(block_checks(backend, call, oracle.attention_block(call)))


@pytest.mark.parametrize("case", BLOCK, ids=str)
def test_reference_is_the_oracle_in_float64(case: Case) -> None:
    call = case.inputs(seed=2)
    truth, second = block_truth(call), oracle.attention_block(call)
    np.testing.assert_allclose(truth.out, second.out, rtol=0, atol=1e-12)
    for name in ("k_new", "v_new"):
        ours, theirs = getattr(truth, name).astype(np.float64), getattr(second, name)
        # A float32 cache rounds the last bits of two float64 runs; others hide them.
        np.testing.assert_allclose(ours, theirs, rtol=2**-23, atol=0)


@pytest.mark.parametrize("case", PROJECTION_CASES, ids=str)
def test_projection_is_right(backend: str, case: ProjectionCase) -> None:
    call = case.inputs()
    assert projection_check(backend, call, projection_truth(call)).ok
    call = case.inputs(seed=1)
    assert projection_check(backend, call, oracle.output_projection(call)).ok


@pytest.mark.repeats
@pytest.mark.parametrize("case", BLOCK, ids=str)
def test_only_the_caches_are_written(backend: str, case: Case) -> None:
    call = case.inputs()
    before = checksums(call)
    run(backend, call)  # works on copies of the caches
    assert checksums(call) == before


@pytest.mark.repeats
@pytest.mark.parametrize("case", select("smoke"), ids=str)
def test_no_case_depends_on_its_seed(backend: str, case: Case | ProjectionCase) -> None:
    for seed in range(3, 6):
        call = case.inputs(seed)
        if isinstance(case, ProjectionCase):
            assert projection_check(backend, call, projection_truth(call)).ok
        else:
            assert not failures(block_checks(backend, call, block_truth(call)))
