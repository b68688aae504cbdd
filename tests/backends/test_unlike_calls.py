"""Drop-in calls that differ from earlier ones of the same shapes, that share or take turns."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import tkg
from tests.calls import BACKENDS, Call
from tests.contract.broken_calls import FLAT
from tests.repeated_calls import (
    FULL,
    assert_equal,
    assert_like_a_first_call,
    begin,
    first,
    outcome,
    own,
)
from tkg import api
from tkg.contract.repeats import Calls
from tkg.testing.placed import back, own_caches

pytestmark = [
    pytest.mark.skipif("cpu" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cpu out"),
    pytest.mark.usefixtures("checks_of_calls"),
]


def _strided(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, -1)[..., ::2]


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


class Own(np.ndarray):
    """A subclass, whose attributes may mean anything."""


OTHERS: dict[str, Callable[[Call], Call]] = {
    "eps": lambda call: {"rmsnorm_X_eps": 1e-2},
    "eps of a type of its own": lambda call: {"rmsnorm_X_eps": np.float64(1e-2)},
    "eps a bool": lambda call: {"rmsnorm_X_eps": True},
    "softmax_scale": lambda call: {"softmax_scale": 0.5},
    "window": lambda call: {"sliding_window": 3},
    "no window": lambda call: {"sliding_window": None},
    "window a bool": lambda call: {"sliding_window": True},
    "lnc a bool": lambda call: {"lnc": True},
    "lnc": lambda call: {"lnc": 2},
    "lnc no number": lambda call: {"lnc": [1]},
    "other pairs": lambda call: {"rope_contiguous_layout": False},
    "pairs by an array": lambda call: {"rope_contiguous_layout": np.array(0.0, np.float32)},
    "no attention": lambda call: {"skip_attention": True},
    "no update": lambda call: {"update_cache": False},
    "truthy update": lambda call: {"update_cache": 1},
    "validate": lambda call: {"validate": True},
    "transposed out": lambda call: {"transposed_out": True},
    "another backend": lambda call: {"backend": "reference"},
    "no backend": lambda call: {"backend": "mps"},
    "on chip": lambda call: {"out_in_sb": True},
    "hidden_dim_actual": lambda call: {"X_hidden_dim_actual": 100},
    "quantised": lambda call: {"quantization_type_qkv": tkg.QuantizationType.ROW},
    "no gamma": lambda call: {"rmsnorm_X_gamma": None},
    "no bias": lambda call: {"bias_out": None},
    "no rope": lambda call: {"cos": None, "sin": None},
    "sine alone": lambda call: {"cos": None},
    "no W_qkv": lambda call: {"W_qkv": None},
    "X a list": lambda call: {"X": call["X"].tolist()},
    "X in half": lambda call: {"X": call["X"].astype(np.float16)},
    "X strided": lambda call: {"X": _strided(call["X"])},
    "X a subclass": lambda call: {"X": call["X"].view(Own)},
    "X in torch": lambda call: {"X": torch.from_numpy(call["X"])},
    "gamma in torch": lambda call: {"rmsnorm_X_gamma": torch.from_numpy(call["rmsnorm_X_gamma"])},
    "gamma in half": lambda call: {"rmsnorm_X_gamma": call["rmsnorm_X_gamma"].astype(np.float16)},
    "gamma in bfloat16": lambda call: {
        "rmsnorm_X_gamma": call["rmsnorm_X_gamma"].astype(ml_dtypes.bfloat16)
    },
    "gamma strided": lambda call: {"rmsnorm_X_gamma": _strided(call["rmsnorm_X_gamma"])},
    "weight strided": lambda call: {"W_out": np.repeat(call["W_out"], 2, 0)[::2]},
    "weight's columns apart": lambda call: {"W_out": _strided(call["W_out"])},
    "weight in half": lambda call: {"W_out": call["W_out"].astype(np.float16)},
    "K's rows apart": lambda call: {"K_cache": np.repeat(call["K_cache"], 2, 2)[:, :, ::2]},
    "K for V": lambda call: {"V_cache": call["K_cache"]},
    "K's memory for V": lambda call: {"V_cache": call["K_cache"][:]},
    "a read-only K": lambda call: {"K_cache": _read_only(call["K_cache"])},
    "a read-only V": lambda call: {"V_cache": _read_only(call["V_cache"])},
    "wide positions": lambda call: {"pos_ids": call["pos_ids"].astype(np.int64)},
    "first slots": lambda call: {"kv_cache_update_idx": call["kv_cache_update_idx"][:, :1]},
    "no slots": lambda call: {"kv_cache_update_idx": None},
    "a mask too": lambda call: {"attention_mask": np.ones((64, 2, 4, 3), np.uint8)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_call_unlike_those_before(name: str) -> None:
    """Each is refused, or run, as by a new program, between calls that are like the others."""
    begin(FULL)
    for seed in range(3):
        call = FULL.inputs(seed, invalid=0.0)
        if name == "K's memory for V":  # one array is written after the other: not to be copied
            call |= OTHERS[name](call)
            tkg.attention_block_tkg(**call)
        else:
            assert_like_a_first_call(call | OTHERS[name](call))
        assert_like_a_first_call(FULL.inputs(seed))


def test_what_the_changes_cover() -> None:
    """Some are refused and some are legal, or the test above would say little."""
    call = FULL.inputs(invalid=0.0)
    refused = [isinstance(first(call | change(call))[0], type) for change in OTHERS.values()]
    assert len(OTHERS) / 4 < sum(refused) < len(OTHERS) * 3 / 4


def test_a_switch_that_changes_its_mind(checks_of_calls: list[Any]) -> None:
    """An object that is no plain value may mean something else at the next call."""
    switch = [1]
    for _ in range(4):
        assert_like_a_first_call(FULL.inputs() | {"rope_contiguous_layout": switch})
    switch.clear()
    assert_like_a_first_call(FULL.inputs() | {"rope_contiguous_layout": switch})


def test_equal_values_need_not_be_one_object(checks_of_calls: list[Any]) -> None:
    for scale in (float, np.float64):
        api._CALLS = Calls()
        for _ in range(4):
            checks_of_calls.clear()
            call: Call = FULL.inputs() | {"softmax_scale": scale("0.125")}
            tkg.attention_block_tkg(**call)
        assert not checks_of_calls


def test_arrays_that_were_pickled(checks_of_calls: list[Any]) -> None:
    """Their dtypes are objects of their own."""
    begin(FULL)
    call = FULL.inputs()
    want = first(call)
    checks_of_calls.clear()
    got = outcome({n: pickle.loads(pickle.dumps(value)) for n, value in call.items()})
    assert_equal(got, want)
    assert not checks_of_calls


def test_a_missing_eps_is_warned_of_each_time() -> None:
    call: Call = FULL.inputs() | {"rmsnorm_X_eps": None}
    for _ in range(4):
        with pytest.warns(UserWarning, match="rmsnorm_X_eps") as caught:
            tkg.attention_block_tkg(**call)
        assert [warning.filename for warning in caught] == [__file__]


def test_no_array_is_kept_alive() -> None:
    begin(FULL)
    calls = [FULL.inputs(seed) for seed in range(2)]
    for call in calls:
        tkg.attention_block_tkg(**call)
    alive = [weakref.ref(v) for c in calls for v in c.values() if isinstance(v, np.ndarray)]
    del calls, call
    gc.collect()
    assert not any(reference() is not None for reference in alive)


def test_a_cache_that_grows(checks_of_calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of another length at each call: all are checked, nothing is made or kept for them."""
    monkeypatch.setattr(Calls, "LIMIT", 5)
    made: list[Any] = []
    monkeypatch.setattr(api, "_repeat", lambda *given: made.append(given))
    call = FULL.inputs()
    whole = {name: call[name] for name in ("K_cache", "V_cache")}
    for length in range(40, 64):
        part = {name: np.ascontiguousarray(cache[:, :, :length]) for name, cache in whole.items()}
        assert_like_a_first_call(call | part)
    assert not made
    assert len(api._CALLS._alike) <= 5


def test_layers_that_take_turns(checks_of_calls: list[Any]) -> None:
    """Of other shapes, or other windows: each has its repeat. Otherwise one of them has."""
    windows = [replace(FULL, window=window) for window in (None, 5, 9)]
    for _ in range(2):
        for case in windows:
            tkg.attention_block_tkg(**case.inputs())
    checks_of_calls.clear()
    for case in windows:
        tkg.attention_block_tkg(**case.inputs())
    assert not checks_of_calls
    plain, other = FULL, replace(FULL, bias_out=False)
    for _ in range(20):
        for case in (plain, other):
            assert_like_a_first_call(case.inputs())


def test_after_many_calls_that_have_no_repeat(checks_of_calls: list[Any]) -> None:
    """Of the same shapes, but by a mask: those by positions have theirs soon, all the same."""
    by_positions = replace(FLAT, wide=True)
    masked = replace(by_positions, visible="causal").inputs()
    for _ in range(300):
        tkg.attention_block_tkg(**masked)
    checks_of_calls.clear()
    for _ in range(100):
        tkg.attention_block_tkg(**by_positions.inputs())
    assert len(checks_of_calls) <= 64


def test_threads() -> None:
    """Each with arrays of its own, all of one form, from the first call on."""

    def decode(seed: int) -> list[bytes]:
        call = own_caches(FULL.inputs(seed))
        rng, found = np.random.default_rng(seed), []
        for _ in range(100):
            call["X"][...] = rng.standard_normal(call["X"].shape)
            found += [array.tobytes() for array in tkg.attention_block_tkg(**call)]
        return found

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(decode, range(4)))
    assert got == [decode(seed) for seed in range(4)]


STRANGE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "negated when read": torch._neg_view,  # pyright: ignore[reportPrivateImportUsage]
    "on no device": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "a parameter": torch.nn.Parameter,
    "with a gradient": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("argument", ["X", "rmsnorm_X_gamma", "W_out"])
def test_strange_tensors(argument: str, name: str) -> None:
    """Tensors whose memory does not hold their values are treated as in a first call."""

    def tried(call: Call) -> Any:
        try:
            return back(tkg.attention_block_tkg(**call))
        except (RuntimeError, TypeError, ValueError) as error:
            return type(error), str(error)

    def strange() -> Call:
        call = own(own_caches(FULL.inputs()), "torch")
        return call | {argument: STRANGE[name](call[argument])}

    want = tried(strange())
    api._CALLS = Calls()
    begin(FULL, "torch")
    for _ in range(2):
        assert_equal(tried(strange()), want)
