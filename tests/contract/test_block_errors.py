"""Every rule of the block's contract: who is told what, and that nothing has changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tkg
from tests.calls import Call, checksums
from tests.contract.broken_calls import (
    BLOCK,
    BLOCKS,
    DTYPES,
    FLAT,
    MASKED,
    MASKS,
    QUANTISED,
    SHAPES,
    VALUES,
    B,
    Change,
    H,
    Q,
    S,
    zeros,
)
from tkg.testing.case import PADDED, Case


def refused(case: Case, change: Change) -> pytest.ExceptionInfo:
    """The error of a changed call, after checking that every array is as it was."""
    call = case.inputs(invalid=0.0)
    call |= change(call) if callable(change) else change
    before = checksums(call)
    with pytest.raises((ValueError, TypeError)) as caught:
        tkg.attention_block_tkg(**call)
    assert checksums(call) == before
    assert str(caught.value).startswith("attention_block_tkg: ")
    return caught


def _table_of(*groups: tuple[Case, dict[str, Any]]) -> list[Any]:
    return [
        pytest.param(case, change, texts, id=f"{case}: {name}")
        for case, entries in groups
        for name, (change, texts) in entries.items()
    ]


@pytest.mark.parametrize(
    ("case", "change", "texts"),
    _table_of((FLAT, SHAPES), (FLAT, DTYPES), (FLAT, VALUES), (MASKED, MASKS), (BLOCK, BLOCKS)),
)
def test_a_broken_rule_names_argument_rule_and_value(
    case: Case, change: Change, texts: list[str]
) -> None:
    message = str(refused(case, change).value)
    for text in texts:
        assert text in message


@pytest.mark.parametrize(
    ("case", "change", "texts"), [pytest.param(*v, id=k) for k, v in QUANTISED.items()]
)
def test_a_broken_rule_of_quantisation(case: Case, change: Change, texts: list[str]) -> None:
    message = str(refused(case, change).value)
    for text in texts:
        assert text in message


@pytest.mark.parametrize("name", [n for n in DTYPES if n != "W_qkv fp8, not quantised"])
def test_only_types_wrong_is_a_type_error(name: str) -> None:
    assert refused(FLAT, DTYPES[name][0]).type is TypeError


@pytest.mark.parametrize("name", SHAPES)
def test_a_wrong_shape_is_a_value_error(name: str) -> None:
    assert refused(FLAT, SHAPES[name][0]).type is ValueError


def test_all_broken_rules_are_in_one_message() -> None:
    change = {
        "X": zeros(B, S, H).astype(np.float64),
        "bias_qkv": zeros(1, 7),
        "sink": zeros(Q),
        "cos": zeros(1, B, S),
        "W_out": zeros(3, H),
        "pos_ids": np.array([[37, 38, 39], [62, 63, 64]], np.int32),
        "kv_cache_update_idx": np.array([[0], [64]], np.uint32),
        "sliding_window": -1,
        "out_in_sb": True,
    }
    caught = refused(FLAT, change)
    assert caught.type is ValueError  # not all of them are about a type
    for name in change:
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["K_cache", "V_cache"])
def test_a_read_only_cache_is_refused_before_anything_is_written(name: str) -> None:
    call = FLAT.inputs()
    call[name].flags.writeable = False
    before = checksums(call)
    with pytest.raises(ValueError, match=f"{name}.*read-only"):
        tkg.attention_block_tkg(**call)
    assert checksums(call) == before


def test_a_read_only_cache_is_fine_if_it_is_not_written() -> None:
    call = Case(name="read", update=False).inputs()
    for name in ("K_cache", "V_cache"):
        call[name].flags.writeable = False
    tkg.attention_block_tkg(**call, backend="reference")


def test_one_array_as_both_caches_is_refused() -> None:
    def alias(call: Call) -> Call:
        return {"V_cache": call["K_cache"]}

    assert "same array" in str(refused(FLAT, alias).value)


@pytest.mark.parametrize("place", ["X", "QK_pre_rope", "QK_post_rope"])
def test_no_eps_means_the_seeds_with_a_warning(place: str) -> None:
    call: Call = FLAT.inputs() | {f"rmsnorm_{place}_enabled": True}
    silent: Call = call | {f"rmsnorm_{place}_eps": 1e-3}
    expected = tkg.attention_block_tkg(**silent, backend="reference")[0]
    call |= {f"rmsnorm_{place}_eps": None} | {n: FLAT.inputs()[n] for n in ("K_cache", "V_cache")}
    with pytest.warns(UserWarning, match=f"rmsnorm_{place}_eps.*1e-5") as caught:
        got = tkg.attention_block_tkg(**call, backend="reference")[0]
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(got, expected)


def test_arguments_are_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        tkg.attention_block_tkg(FLAT.inputs()["X"])  # pyright: ignore


def test_a_padded_row_is_not_looked_at() -> None:
    """Its slot may be anything, its X and its angles NaN."""
    call = Case(name="padded", lengths=(PADDED, 4)).inputs()
    assert call["kv_cache_update_idx"][0, 0] == 4_000_000_000
    assert np.isnan(call["X"][0]).all()
    out, *_ = tkg.attention_block_tkg(**call, backend="reference")
    assert not out[0].any()
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", ["cuda"])
def test_a_backend_that_cannot_run_says_why_and_who_can(name: str) -> None:
    with pytest.raises(tkg.Unsupported) as caught:
        tkg.attention_block_tkg(**FLAT.inputs(), backend=name)
    assert isinstance(caught.value, NotImplementedError)
    assert caught.value.reasons[name]
    assert "reference" in caught.value.alternatives
    assert name in str(caught.value)
