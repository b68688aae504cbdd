"""Calls at odd places of the contract, and random ones over all of its options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

import tkg
from tests.calls import block_checks, failures, run
from tests.strategies import cases
from tkg.testing.case import Case
from tkg.testing.verify import block_truth

BF16 = {"dtype": "bfloat16"}
BLOCK = {"cache": "block", "lengths": (20, 9)} | BF16
WHOLE = {"visible": "holes", "tokens": 2, "lengths": (64, 9), "context": 66, "update": False}

ODD: dict[str, dict[str, Any]] = {
    "a mask of fewer slots than the blocks have": {"visible": "holes", "context": 30} | BLOCK,
    "a mask of no slots of a block cache": BLOCK
    | {"visible": "causal", "context": 4, "tokens": 4, "lengths": (0, 0)},
    "a mask that ends with a block": {"visible": "holes", "context": 33} | BLOCK,
    "a mask of all slots of a block cache": {"cache": "block"} | BF16 | WHOLE,
    "a mask of all slots": BF16 | WHOLE,
    "a mask of all slots, K transposed": {"cache": "transposed"} | WHOLE,
    "rows of two bytes": {"d_head": 2, "cache_dtype": "float8_e4m3"} | BF16,
    "rows of six bytes in blocks": {"d_head": 6, "cache_dtype": "float8_e4m3", "cache": "block"}
    | BF16,
    "a mask on a context of a full and a short group": {"visible": "causal", "lengths": (149,),
                                                        "capacity": 160, "context": 160} | BF16,
    "a last pass of fewer rows": {"lengths": (9, 13, 15), "tokens": 16, "q_heads": 3,
                                  "capacity": 32, "cache_dtype": "bfloat16"},
    "a prime context": {"lengths": (250,), "capacity": 257} | BF16,
    "H twice a prime": {"hidden": 2 * 131} | BF16,
    "H less than a head": {"hidden": 2, "d_head": 128} | BF16,
    "H_out unlike a bank": {"hidden": 1026, "lengths": (3,) * 70, "capacity": 8} | BF16,
    "eight KV heads with a slot for each token": {"kv_heads": 8, "q_heads": 8, "tokens": 3,
                                                  "wide": True} | BF16,
    "skip attention, K transposed": {"skip_attention": True, "cache": "transposed",
                                     "projection": None} | BF16,
}  # fmt: skip


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("fields", ODD.values(), ids=ODD)
def test_odd(fields: dict[str, Any], lnc: int) -> None:
    call = Case(name="odd", **fields).inputs() | {"lnc": lnc}
    assert not failures(block_checks("neuron", call, block_truth(call)))


@settings(max_examples=60)
@given(cases())
def test_random_calls(case: Case) -> None:
    """Right, or refused as `explain` says. A float32 X, so that no budget is a matter of luck: with
    16 bits between stages an FP8 value may fall to the other side of a tie."""
    case = replace(case, dtype="float32")
    call = case.inputs() | {"lnc": case.lnc}
    reasons = tkg.explain(**call).backends["neuron"]
    if reasons:
        with pytest.raises(tkg.Unsupported):
            run("neuron", call)
    else:
        assert not failures(block_checks("neuron", call, block_truth(call)))
