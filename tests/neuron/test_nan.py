"""What nobody may look at never reaches a result, and what must not be written is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tkg
from tests.calls import Call, run, same_bits
from tkg.contract.dtypes import SKIP_SLOT
from tkg.testing.case import PADDED, Case
from tkg.testing.problem import new_slots

BAD = (float("nan"), float("inf"), -float("inf"))


def case(**fields: Any) -> Case:
    shapes = {"lengths": (40, 9, 63), "dtype": "bfloat16", "kv_heads": 2, "bias_out": True}
    return Case(name="bad values", **(shapes | fields))


UNREAD: dict[str, dict[str, Any]] = {
    "slots beyond pos_ids": {},
    "slots beyond pos_ids, K transposed": {"cache": "transposed"},
    "slots out of the window": {"window": 7, "tokens": 2, "lengths": (40, 9)},
    "slots that a mask hides": {"visible": "holes", "tokens": 2, "lengths": (40, 9)},
    "slots under the mask's new tokens": {"visible": "causal", "context": 64, "tokens": 4,
                                          "lengths": (60, 9)},
    "unused blocks": {"cache": "block"},
    "unused blocks of two bytes a row": {"cache": "block", "d_head": 2},
    "padded columns": {"hidden": 256, "hidden_actual": 130},
    "padded rows": {"lengths": (PADDED, 40, PADDED), "bias_qkv": True},
    "padded rows of a block cache": {"lengths": (PADDED, 40), "cache": "block"},
    "padded rows, transposed output": {"lengths": (PADDED, 40), "projection": "transposed",
                                       "hidden": 512},
    "padded rows, no projection": {"lengths": (PADDED, 40, 3), "projection": None, "tokens": 3},
    "padded rows, no update": {"lengths": (40, PADDED, 3), "update": False},
    "several groups": {"lengths": (300,), "capacity": 384},
}  # fmt: skip
DTYPES = ["bfloat16", "float32", "float16", "float8_e4m3", "float8_e4m3fn"]
ON_CORES = [*((dtype, 1) for dtype in DTYPES), ("bfloat16", 2), ("float8_e4m3fn", 2)]
"""A core takes rows and groups of the context as they are, whatever their dtype."""


@pytest.mark.parametrize("cache_dtype, lnc", ON_CORES)
@pytest.mark.parametrize("fields", UNREAD.values(), ids=UNREAD)
def test_unread_places(fields: dict[str, Any], cache_dtype: str, lnc: int) -> None:
    """The same bits whether such places hold zeros, NaN or infinities."""
    named = case(cache_dtype=cache_dtype, lnc=lnc, **fields)
    clean = run("neuron", named.inputs(invalid=0.0) | {"lnc": lnc})
    for bad in BAD[:2] if "float8" not in cache_dtype else BAD[:1]:
        with np.errstate(invalid="ignore"):  # cos and sin of a padded row's angles
            call = named.inputs(invalid=bad) | {"lnc": lnc}
        got = run("neuron", call)
        assert same_bits(got[0], clean[0])
        assert np.isfinite(got[0].astype(np.float64)).all()
        if named.update:
            new_tokens_agree(call, got, clean)
        else:
            assert all(same_bits(a, b) for a, b in zip(got[1:], clean[1:], strict=True))


def new_tokens_agree(call: Call, got: Any, clean: Any) -> None:
    """What was written is the same, and everything else is as it was, to the bit."""
    for name, after, other in (("K_cache", got[1], clean[1]), ("V_cache", got[2], clean[2])):
        size = f"u{after.itemsize}"
        changed = after.view(size) != call[name].view(size)
        assert int(changed.sum()) <= int((new_slots(call) >= 0).sum()) * elements(call)
        assert (after.view(size)[changed] == other.view(size)[changed]).all()


def elements(call: Call) -> int:
    """Of one token in one cache."""
    shape = call["V_cache"].shape
    paged = call.get("active_blocks_table") is not None
    return shape[3] * (shape[2] if paged else shape[1])


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("visible", ["positions", "causal"])
def test_a_later_token_stays_out_of_earlier_ones(visible: Any, bad: float, lnc: int) -> None:
    fields = {"tokens": 3, "lengths": (40, 9), "projection": None, "bias_out": False}
    call: Call = case(visible=visible, **fields).inputs() | {"lnc": lnc}
    expected = run("neuron", call)[0]
    X = call["X"].copy()
    X[0, 1] = bad
    with np.errstate(all="ignore"):
        got = run("neuron", call | {"X": X})[0]
    np.testing.assert_array_equal(got[0, :, :, 0], expected[0, :, :, 0])
    np.testing.assert_array_equal(got[1:], expected[1:])
    assert np.isnan(got[0, :, :, 1:].astype(np.float64)).all()


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["K_cache", "V_cache"])
def test_a_slot_that_one_head_masks_stays_out_of_it(name: str, bad: float, lnc: int) -> None:
    """Heads 0 and 1 share KV head 0; only head 0 may see slot 3."""
    call: Call = case(visible="causal", projection=None, bias_out=False).inputs() | {"lnc": lnc}
    mask = call["attention_mask"].copy()
    mask[3, 0, 1:] = False
    call |= {"attention_mask": mask}
    expected = run("neuron", call)[0]
    call[name][0, 0, 3] = bad
    with np.errstate(all="ignore"):
        got = run("neuron", call)[0]
    np.testing.assert_array_equal(got[0, 1:], expected[0, 1:])
    np.testing.assert_array_equal(got[1:], expected[1:])
    assert not np.array_equal(got[0, 0], expected[0, 0])


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["K_cache", "V_cache"])
def test_a_valid_nan_is_not_swallowed(name: str, dtype: str, lnc: int) -> None:
    call: Call = case(cache_dtype=dtype, projection=None, bias_out=False).inputs() | {"lnc": lnc}
    call[name][0, 0, 7] = np.nan
    with np.errstate(all="ignore"):
        got = run("neuron", call)[0].astype(np.float64)
    assert np.isnan(got[0, :2]).all()
    assert np.isfinite(got[0, 2:]).all()
    assert np.isfinite(got[1:]).all()


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("name", ["K_cache", "V_cache"])
@pytest.mark.parametrize("layout", ["flat", "transposed", "block"])
def test_a_read_only_cache_is_refused_before_anything_is_written(
    layout: Any, name: str, lnc: int
) -> None:
    call: Call = case(cache=layout).inputs() | {"lnc": lnc}
    before = {key: call[key].copy() for key in ("K_cache", "V_cache")}
    call[name].flags.writeable = False
    with pytest.raises(ValueError, match=f"{name}.*writable"):
        tkg.attention_block_tkg(**call, backend="neuron")
    assert all(same_bits(call[key], old) for key, old in before.items())
    call |= {"update_cache": False}
    tkg.attention_block_tkg(**call, backend="neuron")
    assert all(same_bits(call[key], old) for key, old in before.items())


SKIPS = [(np.uint32, SKIP_SLOT), (np.int32, -1), (np.int64, -1), (np.int64, SKIP_SLOT)]
WRITES = [(1, False), (3, False), (3, True)]
UPDATES = [
    *((layout, *w, *SKIPS[0]) for layout in ("flat", "transposed", "block") for w in WRITES),
    *(("flat", *WRITES[0], *skip) for skip in SKIPS[1:]),  # the host makes them all int32
]


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("layout, tokens, wide, dtype, skip", UPDATES)
def test_skipped_slots_write_nothing(
    layout: Any, tokens: int, wide: bool, dtype: type, skip: int, lnc: int
) -> None:
    """All of them; then all but the last row's."""
    call: Call = case(cache=layout, tokens=tokens, wide=wide, lengths=(40, 9)).inputs() | {
        "lnc": lnc
    }
    slots = np.where(call["kv_cache_update_idx"] == SKIP_SLOT, skip, call["kv_cache_update_idx"])
    all_skipped = np.full_like(slots.astype(dtype), skip)
    _, K, V = run("neuron", call | {"kv_cache_update_idx": all_skipped})
    assert same_bits(K, call["K_cache"]) and same_bits(V, call["V_cache"])
    one = slots.astype(dtype)
    one[0] = skip
    _, K, V = run("neuron", call | {"kv_cache_update_idx": one})
    for name, cache in (("K_cache", K), ("V_cache", V)):
        changed = cache.view("u2") != call[name].view("u2")
        assert 0 < int(changed.sum()) <= tokens * elements(call)
        if layout != "block":
            assert not changed[0].any()
