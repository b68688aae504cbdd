"""The calls of a row: repeated for the batch, and in the form that libraries can run."""

from __future__ import annotations

import numpy as np
import pytest

from tkg.bench import inputs
from tkg.bench.workloads import Row
from tkg.testing.verify import block_truth


@pytest.mark.parametrize("cache", ["flat", "block"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_repeated_rows_have_repeated_answers(cache: str, tokens: int) -> None:
    row = Row("tiny", "fp32", batch=6, context=37, tokens=tokens, cache=cache)
    few = inputs.distinct(row)
    assert len(few["X"]) == 3
    many = inputs.repeated(few, 2)
    true, again = block_truth(few), block_truth(many)
    # The reference promises no bits: a matrix product's sums may depend on its number of rows.
    twice = (np.concatenate([part] * 2) for part in (true.out, true.k_new))
    for got, want, rounding in zip((again.out, again.k_new), twice, (1e-12, 2**-23), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=rounding * np.abs(want).max())
    assert len(np.unique(true.out, axis=0)) == len(true.out)


def test_repeated_rows_share_no_page_and_no_slot() -> None:
    few = inputs.distinct(Row("tiny", batch=4, context=40, cache="block"))
    many = inputs.repeated(few, 2)
    table = many["active_blocks_table"].astype(np.int64)
    pages = table[table < 2**32 - 1]
    assert len(set(pages)) == len(pages)
    assert pages.max() < len(many["V_cache"])
    slots = many["kv_cache_update_idx"]
    assert len(np.unique(slots)) == slots.size


def test_the_distinct_rows_divide_the_batch_and_stay_few() -> None:
    for batch, rows in ((1, 1), (2, 2), (5, 1), (6, 3), (16, 4), (64, 4)):
        assert inputs.distinct_rows(Row("tiny", batch=batch, context=64)) == rows
    assert inputs.distinct_rows(Row("llama3-8b", batch=16, context=32768)) == 1


@pytest.mark.parametrize("cache", ["flat", "block"])
@pytest.mark.parametrize("workload", ["tiny", "tiny-norm", "tiny-sink"])
def test_the_plain_call_means_the_same(workload: str, cache: str) -> None:
    """FP8 weights with a scale a column and pages, against float32 weights and a flat cache."""
    row = Row(workload, "fp8-row", batch=2, context=45, tokens=2, cache=cache)
    call = inputs.distinct(row)
    plain = inputs.plain(call, "float32")
    assert plain["W_qkv"].dtype == plain["V_cache"].dtype == np.float32
    assert "active_blocks_table" not in plain and "quantization_type_qkv" not in plain
    got, true = block_truth(plain).out, block_truth(call).out
    assert np.abs(got - true).max() < 2e-2 * np.abs(true).max()  # the new K and V are not rounded
    old = call | {"V_cache": call["V_cache"] * 2}
    assert np.abs(got - block_truth(old).out).max() > 0.2 * np.abs(true).max()


def test_the_plain_call_takes_the_scales_of_an_fp8_cache_out() -> None:
    """The cache's numbers stand for themselves, within FP8's rounding of the new token."""
    call = inputs.distinct(Row("tiny", "fp8-static-kv8", batch=2, context=300))
    got, true = block_truth(inputs.plain(call, "float32")).out, block_truth(call).out
    assert np.abs(got - true).max() < 0.15 * np.abs(true).max()  # activations and K, V in FP8


def test_no_two_copies_of_a_weight_are_equal() -> None:
    weight = np.ones((3, 4), np.float16)
    copies = [inputs.one_of_many(weight, index).tobytes() for index in range(400)]
    assert len(set(copies)) == 400
    assert copies[0] == weight.tobytes()
