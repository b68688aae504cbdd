"""The same call, said in another way: other pages, other layouts, other batch-mates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.calls import Call
from tkg.contract.dtypes import SKIP_SLOT
from tkg.testing.problem import logical, new_slots, of_call
from tkg.testing.rounding import unit_roundoff

BITWISE = ("cpu", "cuda")
"""Backends that promise the same bits however a call is said."""

ROW_AXIS = {"X": 0, "pos_ids": 0, "cos": 1, "sin": 1, "attention_mask": 1}
ROW_AXIS |= {"active_blocks_table": 0, "kv_cache_update_idx": 0}


def assert_same(backend: str, a: np.ndarray, b: np.ndarray) -> None:
    """Equal bits where the backend promises them; otherwise within two units in the last place."""
    assert a.dtype == b.dtype
    if backend in BITWISE:
        np.testing.assert_array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}"))
    else:
        rtol = 4 * unit_roundoff(a.dtype.name)
        a, b = a.astype(np.float64), b.astype(np.float64)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6 * np.nanmax(np.abs(b), initial=0))


def rows(call: Call, order: Sequence[int]) -> Call:
    """Some rows of the batch, in that order. A block cache stays whole."""
    index = list(order)
    result = call | {
        name: np.ascontiguousarray(np.take(call[name], index, axis))
        for name, axis in ROW_AXIS.items()
        if call.get(name) is not None
    }
    if call.get("active_blocks_table") is None:
        result |= {name: call[name][index] for name in ("K_cache", "V_cache")}
    return result


def paged(call: Call, block_len: int, seed: int = 0, spare: int = 3) -> Call:
    """A flat call as one on a block cache: pages in random order, `spare` pages of NaN among them.

    Every logical page is mapped. The slots become wide, physical ones.
    """
    transposed = call.get("K_cache_transposed", False)
    K = logical(call["K_cache"], paged=False, transposed=transposed)
    V = logical(call["V_cache"], paged=False)
    batch, capacity, kv, d = V.shape
    columns = capacity // block_len
    assert columns * block_len == capacity
    order = np.random.default_rng(seed).permutation(batch * columns + spare)
    table = order[: batch * columns].reshape(batch, columns)
    result = {k: v for k, v in call.items() if k != "K_cache_transposed"}
    for name, view in (("K_cache", K), ("V_cache", V)):
        pages = np.full((order.size, block_len, kv, d), np.nan).astype(view.dtype)
        pages[table] = view.reshape(batch, columns, block_len, kv, d)
        result[name] = pages if call["V_cache"].ndim == 4 else pages[:, :, 0]
    result["active_blocks_table"] = table.astype(np.uint32)
    if call.get("update_cache"):
        slots = new_slots(call)
        page = np.take_along_axis(table, np.maximum(slots, 0) // block_len, axis=1)
        physical = page * block_len + slots % block_len
        result["kv_cache_update_idx"] = np.where(slots < 0, SKIP_SLOT, physical).astype(np.uint32)
    return result


def unpaged(call: Call, cache: np.ndarray) -> np.ndarray:
    """A block cache after a `paged` call, as `[B, S_max_ctx, kv, d]`."""
    table = call["active_blocks_table"].astype(np.int64)
    pages = cache if cache.ndim == 4 else cache[:, :, None]
    batch, columns = table.shape
    return pages[table].reshape(batch, columns * pages.shape[1], *pages.shape[2:])


def repaged(call: Call, seed: int) -> Call:
    """A block call whose physical pages lie in another order."""
    pages = call["K_cache"].shape[0]
    block_len = call["K_cache"].shape[1]
    place = np.random.default_rng(seed).permutation(pages)  # page i goes to place[i]
    table = call["active_blocks_table"].astype(np.int64)
    valid = table < pages
    moved = np.where(valid, place[np.where(valid, table, 0)], table)
    result = call | {"active_blocks_table": moved.astype(np.uint32)}
    for name in ("K_cache", "V_cache"):
        result[name] = np.empty_like(call[name])
        result[name][place] = call[name]
    if call.get("update_cache"):
        slots = new_slots(call)
        physical = place[np.maximum(slots, 0) // block_len] * block_len + slots % block_len
        result["kv_cache_update_idx"] = np.where(slots < 0, SKIP_SLOT, physical).astype(np.uint32)
    return result


def transposed(call: Call) -> Call:
    """A flat call whose K cache is transposed."""
    K = np.ascontiguousarray(call["K_cache"].swapaxes(-1, -2))
    return call | {"K_cache": K, "K_cache_transposed": True}


def masked(call: Call) -> Call:
    """A call by positions as one with a mask that says the same. Not for padded rows."""
    visible = of_call(call).visible
    mask = np.ascontiguousarray(visible.transpose(3, 0, 1, 2)).astype(np.uint8)
    return {k: v for k, v in call.items() if k not in ("pos_ids", "sliding_window")} | {
        "attention_mask": mask
    }


def step(call: Call, s: int, caches: tuple[Any, Any]) -> Call:
    """Token s of a call by positions as a step of its own."""
    one = slice(s, s + 1)
    result = call | {"X": call["X"][:, one], "K_cache": caches[0], "V_cache": caches[1]}
    result["pos_ids"] = call["pos_ids"][:, one]
    result["kv_cache_update_idx"] = new_slots(call)[:, one].copy()
    for name in ("cos", "sin"):
        if name in call:
            result[name] = np.ascontiguousarray(call[name][:, :, one])
    return result
