"""The whole option space: random combinations of options against the float64 oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests import oracle
from tests.calls import (
    block_checks,
    failures,
    projection_check,
    run,
    same_bits,
    unless_documented,
)
from tests.strategies import cases
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.verify import computes

SEEDS = st.integers(0, 10**6)


def certain(backend: str, dtype: str) -> str:
    """A dtype of X whose budget is a bound. Where a backend rounds to X's dtype between stages the
    budget is twice eager's error, and with as few features as here that is a matter of luck."""
    return "float32" if computes(backend) == "same dtype" else dtype


@given(case=cases(), seed=SEEDS)
def test_every_combination_of_options_is_right(backend: str, case: Case, seed: int) -> None:
    call = replace(case, dtype=certain(backend, case.dtype)).inputs(seed)
    with unless_documented():
        assert not failures(block_checks(backend, call, oracle.attention_block(call)))


@given(
    d_head=st.integers(1, 40),
    batch=st.integers(1, 5),
    heads=st.integers(1, 5),
    tokens=st.integers(1, 4),
    hidden=st.integers(1, 70),
    dtype=st.sampled_from(("float32", "bfloat16", "float16")),
    weight_dtype=st.sampled_from((None, "float32", "bfloat16", "float16")),
    quantization=st.sampled_from(("NONE", "STATIC", "ROW")),
    static_format=st.sampled_from(("float8_e4m3", "float8_e4m3fn")),
    scale_rows=st.sampled_from((1, 128)),
    bias=st.booleans(),
    transposed=st.booleans(),
    lnc=st.sampled_from((1, 2)),
    seed=SEEDS,
)
def test_every_projection_is_right(backend: str, seed: int, **fields) -> None:
    if fields["transposed"]:
        fields["hidden"] = 256 * (1 + fields["hidden"] % 2)
    fields["dtype"] = certain(backend, fields["dtype"])
    call = ProjectionCase(name="random", **fields).inputs(seed)
    with unless_documented():
        assert projection_check(backend, call, oracle.output_projection(call)).ok


@given(case=cases(), seed=SEEDS)
def test_the_output_is_finite_whatever_lies_in_unread_places(
    backend: str, case: Case, seed: int
) -> None:
    """`Case.inputs` fills them with its argument; Inf behaves unlike NaN in max and in min."""
    results = []
    for invalid in (0.0, np.nan, np.inf):
        with np.errstate(over="ignore", invalid="ignore"):  # Inf has no place in e4m3fn
            call = case.inputs(seed, invalid=invalid)
        with unless_documented():
            results.append(run(backend, call)[0])
    for result in results:
        assert np.isfinite(result.astype(np.float64)).all()
        assert same_bits(result, results[0])
