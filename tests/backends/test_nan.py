"""NaN and Inf: from where nobody may look they never arrive, from where somebody looks they do.

`Case.inputs` already fills every place that is invalid for a whole row; here a place is invalid for
one head or token, and valid for the next.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.calls import Call, run
from tkg.testing.case import Case

BAD = (float("nan"), float("inf"), -float("inf"))
DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3")


def case(**fields) -> Case:
    shapes = {"q_heads": 4, "kv_heads": 2, "lengths": (40, 9), "projection": None}
    return Case(name="nan", **(shapes | fields))


def bad_slot(call: Call, name: str, row: int, head: int, slot: int, bad: float) -> Call:
    cache = call[name].copy()
    cache[row, head, slot] = bad
    return call | {name: cache}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["K_cache", "V_cache"])
def test_a_slot_that_one_head_masks_stays_out_of_it(
    backend: str, name: str, dtype: str, bad: float
) -> None:
    """Heads 0 and 1 share KV head 0; only head 0 may see slot 3."""
    call = case(visible="causal", cache_dtype=dtype).inputs()
    mask = call["attention_mask"].copy()
    mask[3, 0, 1:] = False
    call |= {"attention_mask": mask}
    expected = run(backend, call)[0]
    with np.errstate(all="ignore"):
        got = run(backend, bad_slot(call, name, 0, 0, 3, bad))[0]
    np.testing.assert_array_equal(got[0, 1:], expected[0, 1:])
    np.testing.assert_array_equal(got[1], expected[1])
    assert not np.array_equal(got[0, 0], expected[0, 0])


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["K_cache", "V_cache"])
def test_a_slot_that_one_token_masks_stays_out_of_it(backend: str, name: str, bad: float) -> None:
    call = case(visible="causal", tokens=3).inputs()
    mask = call["attention_mask"].copy()
    mask[5, 0, :, 1:] = False
    call |= {"attention_mask": mask}
    expected = run(backend, call)[0]
    with np.errstate(all="ignore"):
        got = run(backend, bad_slot(call, name, 0, 1, 5, bad))[0]
    np.testing.assert_array_equal(got[0, :, :, 1:], expected[0, :, :, 1:])
    assert not np.array_equal(got[0, 2:, :, 0], expected[0, 2:, :, 0])


@pytest.mark.parametrize("bad", BAD)
def test_a_slot_that_left_one_tokens_window_stays_out_of_it(backend: str, bad: float) -> None:
    """Window 5, positions 40 to 42: slot 36 is seen by the first token only."""
    call = case(window=5, tokens=3, lengths=(40,)).inputs()
    expected = run(backend, call)[0]
    with np.errstate(all="ignore"):
        got = run(backend, bad_slot(call, "V_cache", 0, 0, 36, bad))[0]
    np.testing.assert_array_equal(got[..., 1:], expected[..., 1:])
    assert not np.isfinite(got[0, :2, :, 0]).any()
    assert np.isfinite(got[0, 2:]).all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("visible", ["positions", "causal"])
def test_a_later_token_stays_out_of_earlier_ones(backend: str, visible: str, bad: float) -> None:
    call = case(visible=visible, tokens=3).inputs()
    expected = run(backend, call)[0]
    X = call["X"].copy()
    X[0, 1] = bad
    with np.errstate(all="ignore"):
        got = run(backend, call | {"X": X})[0]
    np.testing.assert_array_equal(got[0, :, :, 0], expected[0, :, :, 0])
    np.testing.assert_array_equal(got[1], expected[1])
    assert np.isnan(got[0, :, :, 1:]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["K_cache", "V_cache"])
def test_a_valid_nan_is_not_swallowed(backend: str, name: str, dtype: str) -> None:
    call = case(cache_dtype=dtype).inputs()
    with np.errstate(all="ignore"):
        got = run(backend, bad_slot(call, name, 0, 0, 7, float("nan")))[0]
    assert np.isnan(got[0, :2]).all()
    assert np.isfinite(got[0, 2:]).all()
    assert np.isfinite(got[1]).all()


def test_a_row_of_nothing_is_zero_and_its_bias(backend: str) -> None:
    call = case(visible="nothing", projection="rows", bias_out=True).inputs()
    out = run(backend, call)[0]
    np.testing.assert_array_equal(out[1], call["bias_out"][0])


@pytest.mark.parametrize("sink", [1e4, -1e30])
def test_extreme_sinks(backend: str, sink: float) -> None:
    call = case(sink=True).inputs() | {"sink": np.full((4, 1), sink, np.float32)}
    out = run(backend, call)[0]
    assert np.isfinite(out).all()
    if sink > 0:
        assert not out.any()
    else:
        del call["sink"]
        np.testing.assert_allclose(out, run(backend, call)[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1e3, -1e3])
def test_scores_of_any_size_do_not_overflow(backend: str, scale: float) -> None:
    """exp(1000) is Inf in float32: the largest score has to be subtracted first."""
    call = case().inputs() | {"softmax_scale": scale}
    out = run(backend, call)[0]
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, run("reference", call)[0], rtol=0, atol=5e-2)


def test_zeros_are_a_legal_input(backend: str) -> None:
    """RMSNorm of 0 divides by sqrt(eps)."""
    call = case(tokens=2, pre_norm=1e-6).inputs()
    out, K, _ = run(backend, call | {"X": np.zeros_like(call["X"])})
    assert np.isfinite(out).all()
    assert not K[0, :, 40].any()
