"""Values that only the device sees: what is wrong is left out, and told by `check`.

On the host the contract refuses such calls; here they are put into a call that was checked before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tkg
from tests.calls import BACKENDS
from tkg.backends import cuda
from tkg.contract.arrays import as_array
from tkg.contract.block import BlockCall
from tkg.contract.dtypes import SKIP_SLOT
from tkg.testing import placed
from tkg.testing.case import PADDED, Case

pytestmark = pytest.mark.skipif("cuda" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cuda out")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    cuda.check()
    yield
    cuda.check()


def described(**fields: Any) -> BlockCall:
    shapes = {"lengths": (20, 9), "projection": None, "q_heads": 2}
    call = Case(name="checks", **(shapes | fields)).inputs(invalid=0.0)
    found = tkg.describe(tkg.attention_block_tkg, **placed.on("cuda", call))
    assert isinstance(found, BlockCall)
    return found


def given(values: Any, dtype: str) -> Any:
    return as_array(placed.on("cuda", np.array(values, dtype)))


def out_of(call: BlockCall) -> np.ndarray:
    return placed.back(cuda.attention_block(call).out)


def caches(call: BlockCall) -> list[np.ndarray]:
    return [placed.back(array.source).copy() for array in (call.cache.k, call.cache.v)]


@pytest.mark.parametrize(
    ("start", "dtype"), [(64, "int32"), (-2, "int32"), (2**31 + 5, "uint32"), (2**32 + 7, "int64")]
)
def test_a_start_out_of_range_pads_the_row(start: int, dtype: str) -> None:
    call = described()
    before = caches(call)
    wrong = replace(call, pos_ids=given([[20], [start]], dtype))
    out = out_of(wrong)
    assert not out[1].any()
    with pytest.raises(ValueError, match=rf"pos_ids \[b, 0\] must .*; got {start} in row 1"):
        cuda.check()
    for was, now in zip(before, caches(call), strict=True):
        np.testing.assert_array_equal(was[1], now[1])
        assert not np.array_equal(was[0], now[0])
    np.testing.assert_array_equal(out[0], out_of(described())[0])


@pytest.mark.parametrize("none", [(-1, "int32"), (SKIP_SLOT, "uint32"), (SKIP_SLOT, "int64")])
def test_both_spellings_of_none_are_taken(none: tuple[int, str]) -> None:
    value, dtype = none
    call = described()
    ids = given([[20], [value]], dtype)
    out = out_of(replace(call, pos_ids=ids))
    assert not out[1].any()
    before = caches(call)
    out_of(replace(call, slot_ids=ids))
    for was, now in zip(before, caches(call), strict=True):
        np.testing.assert_array_equal(was[1], now[1])


@pytest.mark.parametrize("slot", [64, 4_000_000_000])
@pytest.mark.parametrize("layout", ["flat", "block"])
def test_a_slot_out_of_range_is_not_written(layout: Any, slot: int) -> None:
    call = described(cache=layout)
    geometry = call.cache.geometry
    slot = max(slot, geometry.outer * geometry.length if layout == "block" else 64)
    before = caches(call)
    out = out_of(replace(call, slot_ids=given([[SKIP_SLOT], [slot]], "uint32")))
    with pytest.raises(ValueError, match=rf"kv_cache_update_idx must .*; got {slot} in row 1"):
        cuda.check()
    for was, now in zip(before, caches(call), strict=True):
        np.testing.assert_array_equal(was, now)
    np.testing.assert_array_equal(out, out_of(described(cache=layout)))


def test_a_wrong_slot_of_a_padded_row_is_nobodys_business() -> None:
    call = described(lengths=(20, PADDED))
    out_of(replace(call, slot_ids=given([[3], [4_000_000_000]], "uint32")))


def test_a_block_that_does_not_exist_is_left_out() -> None:
    call = described(cache="block", lengths=(20, 40), update=False)
    table = placed.back(call.cache.block_table.source).astype(np.uint32).copy()
    expected = out_of(call)
    table[1, 1] = 999
    wrong = replace(call, cache=replace(call.cache, block_table=given(table, "uint32")))
    out = out_of(wrong)
    with pytest.raises(ValueError, match="active_blocks_table must .*; got 999 in row 1"):
        cuda.check()
    np.testing.assert_array_equal(out[0], expected[0])
    assert np.isfinite(out[1]).all()
    assert not np.array_equal(out[1], expected[1])


def test_a_check_clears_what_it_tells() -> None:
    out_of(replace(described(), pos_ids=given([[20], [99]], "int32")))
    with pytest.raises(ValueError, match="row 1"):
        cuda.check()
    cuda.check()
