"""Caches, block tables and slots of a case."""

from __future__ import annotations

from typing import Any

import numpy as np

from tkg.contract.dtypes import FP8_MAX, NUMPY, SKIP_SLOT
from tkg.testing.case import Case
from tkg.testing.rounding import round_to

NOT_LOOKED_AT = 4_000_000_000
"""Slot given to padded rows: out of range, but no skip either."""


def cache_inputs(
    case: Case,
    rng: np.random.Generator,
    invalid: float,
    mask: np.ndarray | None,
    sizes: tuple[float, float, float],
) -> dict[str, Any]:
    """`K_cache`, `V_cache`, and what tells where their slots are and which to write.

    `sizes`: standard deviation of K's entries, and the FP8 multipliers of K and V.
    """
    k_size, k_scale, v_scale = sizes
    used = used_slots(case, mask)
    shape = (case.batch, case.kv_heads, case.capacity, case.d_head)
    dtype = case.cache_dtype or case.dtype
    fp8 = dtype.startswith("float8")
    K = _stored(k_size * rng.standard_normal(shape), dtype, k_scale if fp8 else None)
    V = _stored(rng.standard_normal(shape), dtype, v_scale if fp8 else None)
    for cache in (K, V):
        cache[~np.broadcast_to(used[:, None, :], shape[:3])] = invalid
    call: dict[str, Any] = {}
    if case.cache == "block":
        table, K, V = _paged(case, rng, used, invalid, (K, V))
        call["active_blocks_table"] = np.where(table < 0, SKIP_SLOT, table).astype(np.uint32)
        physical = _physical_slots(case, table, K.shape[0])
    else:
        physical = None
        if case.cache == "transposed":
            K = K.swapaxes(2, 3)
            call["K_cache_transposed"] = True
        if not case.head_axis and case.kv_heads == 1:
            K, V = K[:, 0], V[:, 0]
    call["K_cache"] = np.ascontiguousarray(K.astype(NUMPY[dtype]))
    call["V_cache"] = np.ascontiguousarray(V.astype(NUMPY[dtype]))
    if case.update:
        call |= {"update_cache": True, "kv_cache_update_idx": _slots(case, physical)}
    return call


def used_slots(case: Case, mask: np.ndarray | None) -> np.ndarray:
    """`[B, capacity]` bool: the slots that some new token of the row may attend to."""
    slot = np.arange(case.capacity)
    if mask is None:
        lengths = np.array(case.lengths)[:, None]
        lowest = 0 if case.window is None else lengths - case.window + 1
        return (slot < lengths) & (slot >= lowest)
    prior = mask.shape[0] - case.tokens
    used = np.zeros((case.batch, case.capacity), bool)
    used[:, :prior] = mask[:prior].any((2, 3)).T
    return used


def _stored(values: np.ndarray, dtype: str, scale: float | None) -> np.ndarray:
    if scale is not None:
        values = np.clip(values * scale, -FP8_MAX, FP8_MAX)
    return round_to(values, dtype)


def _paged(
    case: Case,
    rng: np.random.Generator,
    used: np.ndarray,
    invalid: float,
    flat: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A table (-1 where no valid slot needs a page) and the two caches, pages in random order."""
    n = case.block_len
    columns = case.capacity // n
    needed = used.reshape(case.batch, columns, n).any(-1)
    mapped = int(needed.sum())
    order = rng.permutation(mapped + case.batch)
    table = np.full((case.batch, columns), -1, np.int64)
    table[needed] = order[:mapped]
    caches = []
    for values in flat:
        pages = values.reshape(case.batch, case.kv_heads, columns, n, case.d_head)
        pages = pages.transpose(0, 2, 3, 1, 4)
        num_pages = order.size + case.batch * _run(case)
        cache = np.full((num_pages, n, case.kv_heads, case.d_head), invalid)
        cache[table[needed]] = pages[needed]
        if not case.head_axis and case.kv_heads == 1:
            cache = cache[:, :, 0]
        caches.append(cache)
    return table, caches[0], caches[1]


def _run(case: Case) -> int:
    """Pages of the run of neighbours, at the end of the cache, that each row may write to."""
    return -(-case.tokens // case.block_len)


def _physical_slots(case: Case, table: np.ndarray, num_pages: int) -> np.ndarray:
    """`[B, S_tkg]`: the row's last mapped page where the new tokens fit in, else its own run."""
    n = case.block_len
    slots = np.full((case.batch, case.tokens), -1, np.int64)
    for row, length in enumerate(case.lengths):
        page = table[row, length // n] if 0 <= length < case.capacity else -1
        first = page * n + length % n
        if page < 0 or length % n + case.tokens > n:
            first = (num_pages - (case.batch - row) * _run(case)) * n
        slots[row] = first + np.arange(case.tokens)
    return slots


def _slots(case: Case, physical: np.ndarray | None) -> np.ndarray:
    """`kv_cache_update_idx`: `[B, 1]`, or `[B, S_tkg]` in reverse order for `wide`."""
    lengths = np.array(case.lengths, np.int64)
    slots = lengths[:, None] + np.arange(case.tokens) if physical is None else physical
    slots = slots[:, ::-1].copy() if case.wide else slots[:, :1].copy()
    if case.wide and case.tokens > 1:
        slots[0, -1] = SKIP_SLOT
    slots[list(case.skipped)] = SKIP_SLOT
    slots[lengths < 0] = NOT_LOOKED_AT
    return slots.astype(np.uint32)
