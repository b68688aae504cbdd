"""Drop-in calls like earlier ones, and what the first call of a program does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import tkg
from tests.calls import Call, checksums, same_bits
from tests.contract.broken_calls import FLAT
from tkg import api
from tkg.contract.repeats import Calls
from tkg.testing.case import Case
from tkg.testing.placed import back, own_caches, tensor

FULL = replace(FLAT, wide=True, sink=True, window=9, pre_norm=1e-6, post_norm=1e-5)


def own(call: Call, library: str) -> Call:
    """The call's arrays, in the library's kind of array."""
    if library == "numpy":
        return call
    return {n: tensor(v, "cpu") if isinstance(v, np.ndarray) else v for n, v in call.items()}


def outcome(call: Call) -> Any:
    """What a call returns, or its error."""
    try:
        return back(tkg.attention_block_tkg(**call))
    except (TypeError, ValueError, NotImplementedError) as error:
        return type(error), str(error)


def first(call: Call) -> Any:
    """The same, of the first call of a program, on copies of the caches."""
    known, api._CALLS = api._CALLS, Calls()
    try:
        if all(isinstance(call.get(name), np.ndarray) for name in ("K_cache", "V_cache")):
            writable = [call[name].flags.writeable for name in ("K_cache", "V_cache")]
            alone = call["K_cache"] is not call["V_cache"]
            call = own_caches(call) if alone else call
            for name, flag in zip(("K_cache", "V_cache"), writable, strict=True):
                call[name].flags.writeable = flag
        return outcome(call)
    finally:
        api._CALLS = known


def assert_equal(got: Any, want: Any) -> None:
    if isinstance(want[0], type):
        assert got == want
    else:
        assert all(map(same_bits, got, want))


def assert_like_a_first_call(call: Call, library: str = "numpy") -> Any:
    want = first(call)
    before = checksums(call)
    got = outcome(own(call, library))
    assert_equal(got, want)
    if isinstance(want[0], type):
        assert checksums(call) == before
    return got


def begin(case: Case, library: str = "numpy") -> None:
    """Make calls of the case until there is a repeat, if there ever is."""
    for seed in (100, 101):
        tkg.attention_block_tkg(**own(case.inputs(seed, invalid=0.0), library))
