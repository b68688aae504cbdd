"""A drop-in call like earlier ones does what the first call of a program does, errors included."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tkg
from tests.calls import BACKENDS, same_bits
from tests.contract import broken_calls
from tests.contract.broken_calls import BLOCK, FLAT, FP8_CACHE, MASKED, ROW, STATIC, Change
from tests.repeated_calls import (
    FULL,
    assert_equal,
    assert_like_a_first_call,
    begin,
    first,
    outcome,
    own,
)
from tkg.contract.dtypes import SKIP_SLOT
from tkg.testing.case import PADDED, Case
from tkg.testing.cases import CASES
from tkg.testing.placed import back

pytestmark = [
    pytest.mark.skipif("cpu" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cpu out"),
    pytest.mark.usefixtures("checks_of_calls"),
]

REPEATED = {
    "flat": FULL,
    "one token": replace(FULL, tokens=1, wide=False),
    "transposed": replace(FULL, cache="transposed", dtype="bfloat16"),
    "block": replace(FULL, cache="block"),
    "FP8 cache": replace(FP8_CACHE, small_dtype="bfloat16"),
    "FP8 weights": replace(
        ROW, static_format="float8_e4m3fn", cache_dtype="float8_e4m3fn", dtype="bfloat16"
    ),
    "bfloat16": replace(FULL, dtype="bfloat16", small_dtype="bfloat16"),
    "padded X": replace(FULL, hidden_actual=100, dtype="float16"),
    "interleaved": replace(FULL, rope="interleaved", projection=None, sink=False),
    "bare": replace(FULL, rope=None, eps=None, pre_norm=None, post_norm=None, bias_qkv=False),
}


# torch has no dtype for the cache of "FP8 cache".
KINDS = [(name, kind) for name in REPEATED for kind in ("numpy", "torch")]
KINDS.remove(("FP8 cache", "torch"))


@pytest.mark.parametrize(("name", "library"), KINDS)
def test_later_calls_are_checked_by_the_core_alone(
    name: str, library: str, checks_of_calls: list[Any]
) -> None:
    case = REPEATED[name]
    begin(case, library)
    for seed in range(3):
        call = case.inputs(seed)
        want = first(call)
        checks_of_calls.clear()
        assert_equal(back(tkg.attention_block_tkg(**own(call, library))), want)
        assert not checks_of_calls


def test_a_padded_row_whose_slots_are_skipped(checks_of_calls: list[Any]) -> None:
    begin(FULL)
    call = replace(FULL, lengths=(37, PADDED)).inputs()
    call["kv_cache_update_idx"][1] = SKIP_SLOT
    want = first(call)
    checks_of_calls.clear()
    assert_equal(outcome(call), want)
    assert not checks_of_calls


@pytest.mark.parametrize("case", [case for case in CASES if "ci" in case.tags], ids=str)
def test_every_case_again(case: Case) -> None:
    """Repeated or not."""
    for seed in range(3):
        assert_like_a_first_call(case.inputs(seed))


GROUPS = (
    *((FLAT, table) for table in (broken_calls.SHAPES, broken_calls.DTYPES, broken_calls.VALUES)),
    (replace(FLAT, wide=True), broken_calls.VALUES),
    (MASKED, broken_calls.MASKS),
    (BLOCK, broken_calls.BLOCKS),
    (replace(BLOCK, wide=True), broken_calls.BLOCKS),
)
BROKEN = [
    *((case, name, change) for case, table in GROUPS for name, (change, _) in table.items()),
    *((case, name, change) for name, (case, change, _) in broken_calls.QUANTISED.items()),
]


@pytest.mark.parametrize(
    ("case", "name", "change"),
    [pytest.param(*one, id=f"{one[0]}{'-wide' * one[0].wide}: {one[1]}") for one in BROKEN],
)
def test_broken_rules(case: Case, name: str, change: Change) -> None:
    """The same words each time; between legal calls, which are not affected."""
    begin(case)
    for _ in range(2):
        call = case.inputs(invalid=0.0)
        call |= change(call) if callable(change) else change
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            error, _ = assert_like_a_first_call(call)
        assert issubclass(error, Exception), name
        assert_like_a_first_call(case.inputs(seed=2))


SMALL = {
    "rmsnorm_X_gamma": FULL,
    "bias_qkv": FULL,
    "bias_out": FULL,
    "cos": FULL,
    "sin": FULL,
    "sink": FULL,
    "rmsnorm_QK_pre_rope_W_Q": FULL,
    "rmsnorm_QK_pre_rope_W_K": FULL,
    "rmsnorm_QK_post_rope_W_Q": FULL,
    "rmsnorm_QK_post_rope_W_K": FULL,
    "X": FULL,
    "W_qkv": FULL,
    "W_out": FULL,
    "weight_dequant_scale_qkv": ROW,
    "weight_dequant_scale_out": ROW,
    "k_scale": FP8_CACHE,
    "v_scale": FP8_CACHE,
}


@pytest.mark.parametrize("small_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SMALL)
def test_arrays_are_read_at_each_call(
    name: str, small_dtype: str, checks_of_calls: list[Any]
) -> None:
    """An array that is written to in place has its new values at the next call."""
    case = replace(SMALL[name], small_dtype=small_dtype)
    begin(case)
    call = case.inputs()
    before = first(call)
    call[name][...] = (call[name].astype(np.float32) * 1.5).astype(call[name].dtype)
    want = first(call)
    assert not all(map(same_bits, before, want))
    checks_of_calls.clear()
    assert_equal(outcome(call), want)
    assert not checks_of_calls


def test_positions_slots_and_tables_are_read_at_each_call() -> None:
    for case in (replace(FULL, tokens=1), replace(BLOCK, tokens=1, wide=True)):
        begin(case)
        call = case.inputs(invalid=0.0)
        for position in (-1, 0, 30, 2, 1000, -2, 31):
            call["pos_ids"][1, 0] = position
            assert_like_a_first_call(call)
        for slot in (0, 7, 2**20, 2**32 - 1, 9):
            call["kv_cache_update_idx"][0, 0] = slot
            assert_like_a_first_call(call)
        for entry in (1, 10**6, 2**31 - 1, 0) if "active_blocks_table" in call else ():
            call["active_blocks_table"][0, 1] = entry
            assert_like_a_first_call(call)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_scales_of_the_cache_are_checked_at_each_call(value: float) -> None:
    begin(FP8_CACHE)
    call = FP8_CACHE.inputs()
    call["v_scale"][...] = value
    error, _ = assert_like_a_first_call(call)
    assert error is ValueError


@pytest.mark.parametrize("case", [ROW, FP8_CACHE], ids=str)
def test_rows_of_scales_are_compared_at_each_call(case: Case) -> None:
    case = replace(case, scale_rows=128)
    begin(case)
    call = case.inputs()
    for name in ("weight_dequant_scale_out", "k_scale"):
        if name in call:
            call[name][5] *= 2
    error, text = assert_like_a_first_call(call)
    assert error is ValueError
    assert "equal rows" in text


def test_first_slots_are_counted_on() -> None:
    """`[B, 1]` slots: what lies behind them in memory is not a slot."""
    case = replace(FLAT, lengths=(9,))
    for seed in range(4):
        slots = np.array([[9, 30, 40]], np.uint32)
        assert_like_a_first_call(case.inputs(seed) | {"kv_cache_update_idx": slots[:, :1]})


def test_static_scales_are_left_to_the_checks(checks_of_calls: list[Any]) -> None:
    for seed in range(5):
        assert_like_a_first_call(STATIC.inputs(seed))
    assert len(checks_of_calls) == 10
