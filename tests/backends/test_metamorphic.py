"""Changes of a call that must not change its answer, and changes that must."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from tests import oracle
from tests.calls import Call, block_checks, failures, run, run_as_is, without
from tests.variants import assert_same, masked, paged, repaged, rows, step, transposed, unpaged
from tkg.testing.budgets import check_block
from tkg.testing.case import PADDED, Case
from tkg.testing.placed import back, on
from tkg.testing.problem import logical, new_slots
from tkg.testing.verify import computes

OTHER_DTYPES = ("float32", "float8_e4m3fn")
DTYPES = (
    *("bfloat16", "float8_e4m3"),
    *(pytest.param(name, marks=pytest.mark.repeats) for name in OTHER_DTYPES),
)


def case(cache_dtype: str, **fields) -> Case:
    dtype = "bfloat16" if cache_dtype == "bfloat16" else "float32"
    shapes = {"q_heads": 6, "kv_heads": 2, "lengths": (41, 0, 17, 30), "capacity": 48}
    return Case(name="metamorphic", dtype=dtype, cache_dtype=cache_dtype, **(shapes | fields))


def written(call: Call, cache: np.ndarray) -> np.ndarray:
    """The new tokens `[B, S, kv, d]` as they lie in a cache; 0 where one was skipped."""
    slots = new_slots(call)
    paged_cache = "active_blocks_table" in call
    view = logical(cache, paged=paged_cache)
    row = np.zeros_like(slots) if paged_cache else np.arange(len(slots))[:, None]
    tokens = view[row, np.maximum(slots, 0)].copy()
    tokens[slots < 0] = 0
    return tokens


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 3])
def test_where_pages_lie_does_not_matter(backend: str, dtype: str, tokens: int) -> None:
    call = case(dtype, cache="block", block_len=8, tokens=tokens, wide=True).inputs()
    expected = run(backend, call)
    other = repaged(call, seed=0)
    got = run(backend, other)
    assert_same(backend, got[0], expected[0])
    for before, after in zip(expected[1:], got[1:], strict=True):
        assert_same(backend, written(other, after), written(call, before))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_len", [1, 3, 16, 48])
def test_flat_and_paged_are_the_same(backend: str, dtype: str, block_len: int) -> None:
    flat = case(dtype, tokens=2).inputs()
    out, K, V = run(backend, flat)
    call = paged(flat, block_len)
    paged_out, *paged_caches = run(backend, call)
    assert_same(backend, paged_out, out)
    for cache, page_cache in zip((K, V), paged_caches, strict=True):
        assert_same(backend, unpaged(call, page_cache), logical(cache, paged=False).copy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_transposing_k_changes_its_layout_only(backend: str, dtype: str) -> None:
    call = case(dtype, tokens=2).inputs()
    _, K, V = run(backend, call)
    other = transposed(call)
    got = run(backend, other)
    assert not failures(check_block(other, got, oracle.attention_block(other), computes(backend)))
    assert_same(backend, got[2], V)
    assert got[1].shape == K.swapaxes(-1, -2).shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_know_its_batch_mates(backend: str, dtype: str) -> None:
    call = case(dtype, lengths=(41, 0, PADDED, 17, 30)).inputs()
    out = run(backend, call)[0]
    for row in range(5):
        assert_same(backend, run(backend, rows(call, [row]))[0][0], out[row])
    order = [3, 1, 0, 2, 4]
    assert_same(backend, run(backend, rows(call, order))[0], out[order])


def test_rows_may_share_pages(backend: str) -> None:
    """A common prefix, stored once."""
    call = case("float32", cache="block", block_len=8, lengths=(41, 30, 25)).inputs()
    shared, copied = dict(call), dict(call)
    table = call["active_blocks_table"].astype(np.int64)
    pages = {name: call[name].copy() for name in ("K_cache", "V_cache")}
    for column in range(3):
        for row in (1, 2):
            for cache in pages.values():
                cache[table[row, column]] = cache[table[0, column]]
    one = table.copy()
    one[1:, :3] = table[0, :3]
    copied |= pages
    shared |= {"active_blocks_table": one.astype(np.uint32)}
    assert_same(backend, run(backend, shared)[0], run(backend, copied)[0])


@pytest.mark.parametrize("window", [None, 5])
def test_a_mask_that_says_what_positions_say(backend: str, window: int | None) -> None:
    by_position = case("float32", tokens=3, window=window).inputs()
    truth = oracle.attention_block(by_position)
    by_mask = masked(by_position)
    checks = check_block(by_mask, run(backend, by_mask), truth, computes(backend))
    assert not failures(checks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("options", "pages"),
    [
        *(({}, False), ({}, True)),
        *(
            pytest.param(options, pages, marks=pytest.mark.repeats)
            for options in ({"window": 6}, {"sink": True})
            for pages in (False, True)
        ),
    ],
    ids=str,
)
def test_many_tokens_are_as_many_steps(
    backend: str, dtype: str, options: dict, pages: bool
) -> None:
    """The new K and V are rounded before they are attended to, so a step is a step."""
    call = case(dtype, tokens=5, lengths=(20, 0, 7), **options).inputs(invalid=0.0)
    call = paged(call, 4) if pages else call
    truth = oracle.attention_block(call)
    caches = (call["K_cache"].copy(), call["V_cache"].copy())
    outs = []
    for s in range(5):
        out, *caches = run(backend, step(call, s, (caches[0], caches[1])))
        outs.append(out)
    together = np.stack(outs, axis=1).reshape(truth.out.shape)
    checks = check_block(call, (together, caches[0], caches[1]), truth, computes(backend))
    assert not failures(checks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("lengths", [(20, 0, 7, 1), (40,)], ids=str)
def test_a_new_token_far_above_the_cached_ones(
    backend: str, dtype: str, sink: bool, lengths: tuple[int, ...]
) -> None:
    """By a factor of e^85 and more; and a sink's by e^60. The answer is its V."""
    some = case(dtype, q_heads=2, kv_heads=1, d_head=64, lengths=lengths, sink=sink)
    call = some.inputs(invalid=0.0)
    query = call["W_qkv"][:, :64]
    call["W_qkv"][:, 64:192] = np.tile(query, 2)  # Q of the second head, and K
    call["K_cache"] = np.zeros_like(call["K_cache"])
    call["softmax_scale"] = 16.0 * call.get("softmax_scale", 64**-0.5)
    if sink:
        call["sink"] = np.full_like(call["sink"], 60.0)
    assert not failures(block_checks(backend, call, oracle.attention_block(call)))


def test_attention_reads_before_the_cache_is_written(backend: str) -> None:
    """The stages' order: a new token that replaces an old one is attended to beside it."""
    call = case("float32", tokens=2).inputs()
    expected = run(backend, call)[0]
    replacing = call | {"kv_cache_update_idx": np.zeros((4, 1), np.uint32)}
    assert_same(backend, run(backend, replacing)[0], expected)


def test_one_row_may_write_where_another_reads(backend: str) -> None:
    call = case("float32", cache="block", block_len=8, lengths=(41, 9)).inputs()
    expected = run(backend, call)[0]
    page = int(call["active_blocks_table"][0, 1])
    crossed = call | {"kv_cache_update_idx": np.array([[2**32 - 1], [page * 8 + 3]], np.uint32)}
    out, K, _ = run(backend, crossed)
    assert_same(backend, out, expected)
    assert not np.array_equal(K[page, 3], call["K_cache"][page, 3])


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32"])
def test_the_dtype_of_indices_does_not_matter(backend: str, dtype: str) -> None:
    call = case("float32", tokens=2, wide=True, lengths=(5, PADDED, 9)).inputs()
    expected = run(backend, call)
    other = dict(call)
    for name in ("pos_ids", "kv_cache_update_idx"):
        values = call[name].astype(np.int64)
        if dtype != "uint32":
            values = np.where(values == 2**32 - 1, -1, values)
        if dtype == "int32":
            values = np.where(values > 2**31 - 1, 2**31 - 1, values)
        other[name] = values.astype(dtype)
    for got, want in zip(run(backend, other), expected, strict=True):
        assert_same(backend, np.nan_to_num(got), np.nan_to_num(want))


@pytest.mark.parametrize("neutral", ["gamma", "bias_qkv", "bias_out", "head weights", "window"])
def test_neutral_values_are_the_defaults(backend: str, neutral: str) -> None:
    """Up to rounding: a multiplication by 1 and an addition of 0 are exact."""
    plain = case("float32", gamma=False, pre_norm=1e-6, head_gamma=False).inputs()
    extra = {
        "gamma": {"rmsnorm_X_gamma": np.ones((1, 128), np.float32)},
        "bias_qkv": {"bias_qkv": np.zeros((1, 320), np.float32)},
        "bias_out": {"bias_out": np.zeros((1, 128), np.float32)},
        "head weights": {
            f"rmsnorm_QK_pre_rope_W_{which}": np.ones((1, 32), np.float32) for which in "QK"
        },
        "window": {"sliding_window": 48},
    }[neutral]
    np.testing.assert_array_equal(run(backend, plain | extra)[0], run(backend, plain)[0])


def test_both_fp8_formats_are_written_with_the_same_bytes(backend: str) -> None:
    """What is written is clipped to +-240, and up to there the formats' bytes are equal."""
    call = case("float8_e4m3").inputs(invalid=0.0)
    twin = call | {
        name: call[name].view(ml_dtypes.float8_e4m3fn) for name in ("K_cache", "V_cache")
    }
    for got, want in zip(run(backend, twin), run(backend, call), strict=True):
        np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))


def test_fp8_scales_are_multipliers_that_the_caller_undoes(backend: str) -> None:
    """Powers of two and values on the FP8 grid: scaling and folding are then exact."""
    call = case("float8_e4m3", projection=None).inputs(invalid=0.0)
    plain = call | {n: np.ones((1, 1), np.float32) for n in ("k_scale", "v_scale")}
    scaled = call | {
        "k_scale": np.full((1, 1), 0.25, np.float32),
        "v_scale": np.full((128, 1), 0.5, np.float32),
        "K_cache": (call["K_cache"].astype(np.float32) * 0.25).astype(call["K_cache"].dtype),
        "V_cache": (call["V_cache"].astype(np.float32) * 0.5).astype(call["V_cache"].dtype),
        "softmax_scale": call["softmax_scale"] * 4,
        "update_cache": False,
    }
    # Only cached values: the new ones would be rounded on another part of the grid.
    for fold in (plain, scaled):
        fold |= {"W_qkv": call["W_qkv"].copy(), "update_cache": False}
        fold["W_qkv"][:, 6 * 32 :] = 0
    for name in ("K_cache", "V_cache"):  # drop what the smaller grid cannot hold
        keep = np.abs(call[name].astype(np.float32)) >= 1
        plain[name] = np.where(keep, plain[name], 0).astype(call[name].dtype)
        scaled[name] = np.where(keep, scaled[name], 0).astype(call[name].dtype)
    assert_same(backend, run(backend, scaled)[0] * 2, run(backend, plain)[0])


@pytest.mark.parametrize(
    "name", ["k_scale", "v_scale", "weight_dequant_scale_qkv", "weight_dequant_scale_out"]
)
@pytest.mark.parametrize("mode", ["STATIC", "ROW"])
def test_every_scale_moves_the_output(backend: str, name: str, mode: str) -> None:
    call = case("float8_e4m3", qkv=mode, out=mode).inputs()
    moved = call | {name: call[name] * np.float32(1.25)}
    assert not np.array_equal(run(backend, moved)[0], run(backend, call)[0])


@pytest.mark.parametrize("weight", ["W_qkv", "W_out"])
def test_strided_inputs_are_taken_as_they_are(backend: str, weight: str) -> None:
    """Rows far apart in memory: a slice of a larger array."""
    call = case("float32").inputs()
    wide = np.full((call[weight].shape[0], 2 * call[weight].shape[1]), np.nan, np.float32)
    wide[:, : call[weight].shape[1]] = call[weight]
    strided = call | {weight: wide[:, : call[weight].shape[1]]}
    x = np.full((4, 3, 256), np.nan, np.float32)
    x[:, :1, ::2] = call["X"]
    strided["X"] = x[:, :1, ::2]
    for table in ("cos", "sin"):
        strided[table] = np.asfortranarray(call[table])
    assert_same(backend, run(backend, strided)[0], run(backend, call)[0])


def test_a_cache_may_be_a_slice_of_a_larger_one(backend: str) -> None:

    call = case("float32").inputs()
    expected = run(backend, call)
    big: Call = {n: np.full((9, 2, 100, 32), np.nan, np.float32) for n in ("K_cache", "V_cache")}
    mine = on(backend, call)
    big = on(backend, big)
    views: Call = {n: array[1::2, :, 7 : 7 + 48] for n, array in big.items()}
    for name, view in views.items():
        view[...] = mine[name]
    out, K, V = run_as_is(backend, mine | views)
    assert K is views["K_cache"]
    assert V is views["V_cache"]
    assert_same(backend, back(out), expected[0])
    for view, want in zip((K, V), expected[1:], strict=True):
        assert_same(backend, np.nan_to_num(back(view).copy()), np.nan_to_num(want))
    for array in map(back, big.values()):
        assert np.isnan(array[::2]).all()
        assert np.isnan(array[:, :, :7]).all()


def test_the_padded_hidden_dimension_does_not_matter(backend: str) -> None:
    narrow = replace(case("float32"), hidden=96).inputs()
    truth = oracle.attention_block(narrow)
    padded = narrow | {
        "X": np.pad(narrow["X"], ((0, 0), (0, 0), (0, 32)), constant_values=np.nan),
        "W_qkv": np.pad(narrow["W_qkv"], ((0, 32), (0, 0)), constant_values=np.nan),
        "rmsnorm_X_gamma": np.pad(narrow["rmsnorm_X_gamma"], ((0, 0), (0, 32))),
        "X_hidden_dim_actual": 96,
    }
    checks = check_block(padded, run(backend, padded), truth, computes(backend))
    assert not failures(checks)


def test_an_old_cache_is_returned_when_it_is_updated_and_new_tokens_when_not(backend: str) -> None:

    call = on(backend, case("bfloat16", tokens=3).inputs(invalid=0.0))
    out, K, V = run_as_is(backend, call)
    assert K is call["K_cache"]
    assert V is call["V_cache"]
    out, K, V = back((out, K, V))
    fresh = case("bfloat16", tokens=3).inputs(invalid=0.0)
    new_out, k, v = run(backend, without(fresh, "update_cache", "kv_cache_update_idx"))
    assert k.shape == (2, 32, 4, 3)
    assert v.shape == (4, 2, 3, 32)
    assert_same(backend, new_out, out)
    np.testing.assert_array_equal(k.transpose(2, 3, 0, 1), written(fresh, K))
    np.testing.assert_array_equal(v.transpose(0, 2, 1, 3), written(fresh, V))
