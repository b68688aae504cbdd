"""New K and V into every cache layout; slots that are skipped stay as they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.neuron.on_chip import on_cores, put, rng
from tkg.backends.neuron.cache_update_tkg import (
    NewTokens,
    Slots,
    cache_update_tkg,
    new_outputs,
    rows_of_heads,
)

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3
NOWHERE = (-1, 2**32 - 1)


@dataclass
class Update:
    """One update: what is new [d, kv, B, S], and the caches with 7 in every place."""

    layout: str
    dtype: Any = BF16
    batch: int = 3
    tokens: int = 1
    kv: int = 2
    d: int = 16
    capacity: int = 12
    blocks: int = 6
    block_len: int = 4

    def new(self) -> list[np.ndarray]:
        shape = (self.d, self.kv, self.batch, self.tokens)
        values = [rng(seed).standard_normal(shape) for seed in (0, 1)]
        return [v.astype(self.dtype).astype(np.float32) for v in values]

    def caches(self) -> list[np.ndarray]:
        flat = (self.batch, self.kv, self.capacity, self.d)
        shapes = [flat, flat]
        if self.layout == "transposed":
            shapes[0] = (self.batch, self.kv, self.d, self.capacity)
        elif self.layout == "block":
            shapes = [(self.blocks, self.block_len, self.kv, self.d)] * 2
        return [np.full(shape, self.dtype(7), self.dtype) for shape in shapes]

    def expected(self, slots: np.ndarray) -> list[np.ndarray]:
        """The caches after it, token by token."""
        result = self.caches()
        wide = slots.shape[1] == self.tokens
        for cache, new, what in zip(result, self.new(), "KV", strict=True):
            for b, s in np.ndindex(self.batch, self.tokens):
                slot = int(slots[b, s if wide else 0])
                if slot in NOWHERE:
                    continue
                slot += 0 if wide else s
                value = new[:, :, b, s].T.astype(self.dtype)  # [kv, d]
                if self.layout == "block":
                    cache[slot // self.block_len, slot % self.block_len] = value
                elif self.layout == "transposed" and what == "K":
                    cache[b, :, :, slot] = value
                else:
                    cache[b, :, slot] = value
        return result

    def run(self, slots: np.ndarray, lnc: int) -> list[np.ndarray]:
        caches = self.caches()
        k, v = self.new()

        def body(sbm, K, V, slots):
            new = self.on_chip(sbm, k, v, K.dtype)
            layout = (self.layout == "transposed", self.layout == "block")
            where = Slots(sbm, (K, V), slots, self.tokens, *layout)
            cache_update_tkg(new, where, [])

        on_cores(body, *caches, slots, lnc=lnc)
        return caches

    def on_chip(self, sbm: Any, k: np.ndarray, v: np.ndarray, dtype: Any) -> NewTokens:
        flat = (self.d, self.kv, self.batch * self.tokens)
        tiles = [put(sbm, x.astype(self.dtype), name) for x, name in ((k, "k"), (v, "v"))]
        wide = [put(sbm, x.reshape(flat), name) for x, name in ((k, "kw"), (v, "vw"))]
        k_rows = None
        if self.layout != "transposed":
            k_rows = rows_of_heads(sbm, wide[0], dtype, "k_rows")
        return NewTokens(tiles[0], tiles[1], k_rows, rows_of_heads(sbm, wide[1], dtype, "v_rows"))


def check(update: Update, slots: Any, lnc: int) -> None:
    index = np.array(slots, np.int64).astype(np.uint32).view(np.int32)
    got = update.run(index, lnc)
    for cache, wanted in zip(got, update.expected(index), strict=True):
        if cache.tobytes() != wanted.tobytes():  # sooner than floats, where a cache is large
            np.testing.assert_array_equal(cache.astype(np.float32), wanted.astype(np.float32))


LAYOUTS = ["flat", "transposed", "block"]


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32, FP8])
@pytest.mark.parametrize("kv", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_token_a_row(layout: str, kv: int, dtype: type, lnc: int) -> None:
    check(Update(layout, dtype, kv=kv), [[11], [0], [5]], lnc)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("kv", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_tokens_from_one_slot_on(layout: str, kv: int, lnc: int) -> None:
    """Up to the cache's last slot; in a block cache across the end of a block."""
    last = 24 - 4 if layout == "block" else 12 - 4
    check(Update(layout, tokens=4, kv=kv), [[last], [0], [6]], lnc)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("kv", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_slot_for_each_token(layout: str, kv: int, lnc: int) -> None:
    slots = [[11, 3, 0], [2, -1, 7], [9, 10, 8]]
    check(Update(layout, tokens=3, kv=kv), slots, lnc)


@pytest.mark.parametrize("skip", NOWHERE)
@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("tokens, columns", [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_skipped_slots(layout: str, tokens: int, columns: int, lnc: int, skip: int) -> None:
    """Some, the last of all, and all."""
    update = Update(layout, tokens=tokens)
    for rows in ((0,), (2,), (0, 1, 2)):
        slots = np.array([[0, 1, 2], [4, 5, 6], [8, 9, 10]], np.int64)[:, :columns]
        slots[list(rows)] = skip
        check(update, slots, lnc)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch, d", [(1, 2), (2, 6), (5, 128), (128, 4)])
def test_batches_and_heads_of_any_size(batch: int, d: int, layout: str, lnc: int) -> None:
    blocks = -(-batch // 4)
    update = Update(layout, batch=batch, d=d, blocks=blocks, capacity=3)
    slots = np.arange(batch) % 3 if layout != "block" else rng(2).permutation(blocks * 4)[:batch]
    check(update, slots[:, None], lnc)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("layout", ["flat", "block"])
def test_slots_of_a_large_cache(layout: str, lnc: int) -> None:
    """Slot numbers that float32 could not hold: they are added as integers."""
    far = (1 << 24) + 1
    update = Update(layout, FP8, batch=2, kv=1, d=2, capacity=far + 4, blocks=far // 4 + 1)
    check(update, [[far], [far - 2]], lnc)


@pytest.mark.parametrize("with_heads", [False, True])
@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("layout", ["flat", "transposed"])
def test_outputs_of_their_own(layout: str, lnc: int, with_heads: bool) -> None:
    """Without update: K [d, B, S], V [B, 1, S, d]; with a KV-head axis [kv, d, B, S] and
    [B, kv, S, d]."""
    from nkisim.kernel import run
    from tkg.backends.neuron.sbuf_manager import SbufManager

    update = Update(layout, tokens=2, kv=2 if with_heads else 1)
    k, v = update.new()

    def kernel(like):
        new = update.on_chip(SbufManager(), k, v, like.dtype)
        return new_outputs(new, like.dtype, with_heads)

    K, V = run(kernel, np.zeros(1, BF16), lnc=lnc).result
    wanted = k.transpose(1, 0, 2, 3) if with_heads else k[:, 0]
    np.testing.assert_array_equal(K.astype(np.float32), wanted)
    np.testing.assert_array_equal(V.astype(np.float32), v.transpose(2, 1, 3, 0))


@pytest.mark.parametrize("lnc", [1, 2])
def test_a_value_that_is_not_a_number_stays_in_its_row(lnc: int) -> None:
    update = Update("flat")
    k, v = update.new()
    k[:, :, 1], v[:, :, 1] = np.nan, np.inf
    update.new = lambda: [k, v]  # type: ignore[method-assign]
    check(update, [[3], [4], [5]], lnc)
