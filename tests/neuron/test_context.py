"""Where the positions of a context lie, and which of them count, against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.neuron.on_chip import on_cores, rng, values_of
from tkg.backends.neuron.attention_block_tkg import share_work
from tkg.backends.neuron.cache_reads import block_rows
from tkg.backends.neuron.context import (
    Context,
    plan_context,
    positions,
    visible_from_mask,
    visible_from_positions,
)

LENGTHS = st.integers(1, 3000) | st.sampled_from([4096, 8192, 8191, 32768, 131072])


def places(context: Context) -> list[int]:
    """Every position that (group, partition, l) stand for, in any order."""
    found = []
    for group in range(context.groups):
        first = context.first_run(group) * context.run
        found += range(first, first + context.height(group) * context.run)
    return found


@settings(max_examples=80)
@given(LENGTHS, st.integers(1, 5), st.sampled_from([1, 2]))
def test_every_position_has_one_place(length: int, batch: int, lnc: int) -> None:
    """On one core; on two, each core has half of the rows, half of the places, or all of both."""

    def body(sbm: Any) -> tuple[Any, ...]:
        context = plan_context(length, length - 1, 0, batch)
        assert length % context.run == 0
        assert places(context) == list(range(length))
        rows, here = share_work(batch, context)
        return rows, places(here), all(0 < here.height(g) <= 128 for g in range(here.groups))

    results = on_cores(body, lnc=lnc)
    assert all(sound for _, _, sound in results)
    rows = [set(range(first, first + count)) for (first, count), _, _ in results]
    assert set().union(*rows) == set(range(batch))
    if lnc == 2 and batch % 2 == 0:
        assert not rows[0] & rows[1]
    if len(results[0][1]) < length:
        assert results[0][1] + results[1][1] == list(range(length))
    else:
        assert all(found == list(range(length)) for _, found, _ in results)


@settings(max_examples=80)
@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from([1, 3, 4]), st.sampled_from([1, 2]))
def test_runs_of_a_block_cache_fill_blocks(
    block_len: int, columns: int, batch: int, lnc: int
) -> None:
    """A block is 1, 2, 4 .. 128 runs, so that none of them straddles two groups of partitions."""

    def body(sbm: Any) -> tuple[int, int]:
        context = plan_context(block_len * columns, 0, block_len, batch)
        assert places(context) == list(range(block_len * columns))
        return context.run, context.groups

    run, groups = on_cores(body, lnc=lnc)[0]
    pieces, rest = divmod(block_len, run)
    assert rest == 0
    assert 128 % pieces == 0


@pytest.mark.parametrize("block_len", [0, 16, 32])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1024, 8192, 32768, 131072])
def test_two_cores_share_a_long_context_of_an_odd_batch(
    length: int, batch: int, block_len: int
) -> None:
    def body(sbm: Any) -> tuple[int, int]:
        context = plan_context(length, length, block_len, batch)
        return context.groups, share_work(batch, context)[1].groups

    for groups, here in on_cores(body, lnc=2):
        assert here * 2 == groups


@pytest.mark.parametrize("length", [1, 127, 128, 130, 300, 521])
@pytest.mark.parametrize("lnc", [1, 2])
def test_positions_on_the_chip(length: int, lnc: int) -> None:
    def body(sbm: Any) -> tuple[Any, ...]:
        context = share_work(1, plan_context(length, length, 0, 1))[1]
        return values_of(positions(sbm, context)), places(context), shape_of(context)

    for got, wanted, shape in on_cores(body, lnc=lnc):
        assert in_order(got, shape).tolist() == wanted


def shape_of(context: Context) -> tuple[int, list[int]]:
    """(run, partitions that hold a run in each group)."""
    return context.run, [context.height(g) for g in range(context.groups)]


def in_order(tile: np.ndarray, shape: tuple[int, list[int]]) -> np.ndarray:
    """[128, tiles, ...] of a tile as [positions, ...], positions counting up."""
    run, heights = shape
    parts = [
        tile[:height, g * run : (g + 1) * run].reshape(-1, *tile.shape[2:])
        for g, height in enumerate(heights)
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("window", [0, 1, 3, 50, 10**6])
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("lnc", [1, 2])
def test_visible_from_positions(lnc: int, tokens: int, window: int) -> None:
    """Also that V is used exactly where the tokens may look, if all look the same way."""
    length = 300
    start = np.array([0, 1, 296, 150, 77])
    pos_ids = (start[:, None] + np.arange(tokens)).astype(np.int32)

    def body(sbm: Any, pos_ids: Any) -> tuple[Any, ...]:
        context = share_work(5, plan_context(length, length, 0, 5))[1]
        seen = visible_from_positions(sbm, context, pos_ids, tokens, window)
        three = (seen.scores, seen.slots, seen.factors)
        tiles = [None if tile is None else values_of(tile) for tile in three]
        return *tiles, places(context), shape_of(context)

    for scores, slots, factors, here, shape in on_cores(body, pos_ids, lnc=lnc):
        at = np.array(here)[:, None, None]
        token = np.arange(tokens if window else 1)
        wanted = (at < start[:, None]) & np.ones(len(token), bool)
        if window:
            wanted = (at < start[:, None]) & (at > start[:, None] + token - window)
        got = in_order(scores.transpose(0, 2, 1, 3, 4), shape)
        np.testing.assert_array_equal(got[:, :, 0] != 0, wanted)
        assert (slots is None) == (len(token) > 1)
        if slots is not None:
            used = in_order(slots.transpose(0, 3, 1, 2), shape)
            np.testing.assert_array_equal(used != 0, wanted)
            np.testing.assert_array_equal(factors[:, :, 0, :], (slots[:, :, 0, :] != 0) * 1)


@pytest.mark.parametrize("kv", [2, 4])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("length", [5, 130, 384])
def test_visible_from_a_mask(length: int, lnc: int, tokens: int, kv: int) -> None:
    """Any byte but 0 allows. Slots of V are known where a KV head has one query."""
    batch, q = 3, 4
    shape = (length, batch, q, tokens)
    mask = rng().integers(0, 256, shape, np.uint8) * (rng(1).random(shape) < 0.3)

    def body(sbm: Any, mask: Any) -> tuple[Any, ...]:
        plan = plan_context(length, length - tokens, 0, batch)
        context = share_work(batch, plan)[1]
        seen = visible_from_mask(sbm, context, mask, kv)
        slots = None if seen.slots is None else values_of(seen.slots)
        tiles = values_of(seen.scores), slots, values_of(seen.new)
        return *tiles, places(context), shape_of(context)

    for scores, slots, new, here, shape in on_cores(body, mask.astype(np.uint8), lnc=lnc):
        old = mask.copy()
        old[length - tokens :] = 0  # those entries speak of the new tokens
        got = in_order(scores.transpose(0, 2, 1, 3, 4), shape)
        np.testing.assert_array_equal(got != 0, old[here] != 0)
        assert (slots is None) == (q // kv * tokens > 1)
        if slots is not None:
            used = in_order(slots.transpose(0, 3, 1, 2), shape)
            np.testing.assert_array_equal(used != 0, old[here][..., 0] != 0)
        for partition in (0, 77, 127):
            np.testing.assert_array_equal(new[partition] != 0, mask[length - tokens :] != 0)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("block_len, columns", [(1, 130), (2, 200), (16, 24), (96, 3), (3, 50)])
def test_runs_of_a_block_table(block_len: int, columns: int, lnc: int) -> None:
    """The run's number in the cache; 0 for entries outside of it."""
    batch, blocks = 3, 1000
    table = rng().integers(0, blocks, (batch, columns))
    table[1, ::3] = rng(1).choice([-1, blocks, 2**31 - 1, -(2**31)], len(table[1, ::3]))

    def body(sbm: Any, table: Any) -> tuple[Any, ...]:
        plan = plan_context(block_len * columns, 0, block_len, batch)
        context = share_work(batch, plan)[1]
        runs = values_of(block_rows(sbm, table, context, blocks, block_len).runs)
        heights = [context.height(g) for g in range(context.groups)]
        return runs, context.run, context.first_run(0), heights

    for runs, run, first, heights in on_cores(body, table.astype(np.int32), lnc=lnc):
        got = np.concatenate([runs[:height, g] for g, height in enumerate(heights)])
        pieces = block_len // run
        number = first + np.arange(len(got))
        entry = table[:, number // pieces].T
        inside = (entry >= 0) & (entry < blocks)
        wanted = entry * pieces + (number % pieces)[:, None]
        np.testing.assert_array_equal(got[inside], wanted[inside])
        assert (got[~inside] < blocks * pieces).all()
