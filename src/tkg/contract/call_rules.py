"""The rules for one call of a block (`BlockCall`), checked at every step.

Shapes and dtypes are checked for every call; values (positions, slots, table entries) where they
are on the host, or the call says that they are to be read back from a device.
"""

from __future__ import annotations

import itertools

import numpy as np

from tkg.contract import dtypes
from tkg.contract.arrays import Array
from tkg.contract.block import BlockCall
from tkg.contract.cache import Geometry, check_cache
from tkg.contract.errors import Rules
from tkg.contract.linear_rules import check_dtype, check_one_kind

INDEX_DTYPES = ("int32", "int64", "uint32")
TABLE_DTYPES = ("int32", "uint32")


def checked(rules: Rules, call: BlockCall) -> BlockCall:
    """Check a call whose block is sound; raise all broken rules, or return the call to run."""
    if not call.cache.is_sound:
        check_cache(rules, call.cache)
        _check_x(rules, call)
        rules.raise_broken()
    geometry = call.cache.geometry
    check_one_kind(rules, (*call.own_arrays, ("qkv.weight", call.block.qkv.weight)))
    if _check_x(rules, call) and _check_against_cache(rules, call, geometry):
        _check_rope(rules, call)
        if _check_visibility(rules, call, geometry):
            _check_positions(rules, call)
            _check_table(rules, call, geometry)
        _check_update(rules, call, geometry)
    rules.raise_broken()
    return call


def _check_x(rules: Rules, call: BlockCall) -> bool:
    x, weight = call.x, call.block.qkv.weight
    check_dtype(rules, "x", x, dtypes.FLOATS)
    if x.ndim != 3 or min(x.shape) == 0:
        fix = "X in SBUF exists only inside an NKI kernel" if x.ndim != 3 else ""
        rule = "must be [B, S_tkg, H], all sizes at least 1"
        return rules.broken("x", rule, f"shape {x.shape}", fix)
    if weight.ndim != 2 or x.shape[2] == weight.shape[0]:
        return True
    fix = "A torch.nn.Linear weight is [out, in]: transpose it"
    return rules.broken(
        "x",
        f"must have H = {weight.shape[0]} hidden features, the rows of {rules.name('qkv.weight')}",
        f"shape {x.shape}",
        fix if weight.shape[1] == x.shape[2] else "",
    )


def _check_against_cache(rules: Rules, call: BlockCall, geometry: Geometry) -> bool:
    heads, table, ok = call.block.heads, call.cache.block_table, True
    if geometry.kv_heads != heads.kv or geometry.d_head != heads.d_head:
        rule = f"must have {heads.kv} KV heads of d_head {heads.d_head}"
        got = f"{geometry.kv_heads} of {geometry.d_head} (shape {call.cache.v.shape})"
        ok = rules.broken("cache.v", rule, got)
    if table is None:
        if geometry.outer == call.batch:
            return ok
        rule = f"must have a row for each of the B = {call.batch} rows of {rules.name('x')}"
        return rules.broken("cache.v", rule, f"shape {call.cache.v.shape}")
    check_dtype(rules, "cache.block_table", table, TABLE_DTYPES)
    if not ok or (table.ndim == 2 and table.shape[0] == call.batch and table.shape[1] >= 1):
        return ok
    rule = f"must be [B, S_ctx // block_len] with B = {call.batch}"
    return rules.broken("cache.block_table", rule, f"shape {table.shape}")


def _check_rope(rules: Rules, call: BlockCall) -> None:
    shape = (call.block.heads.d_head // 2, call.batch, call.tokens)
    for field, array in (("cos", call.cos), ("sin", call.sin)):
        if call.block.rope is None:
            if array is not None:
                rules.broken(field, "must be None for a block without RoPE", array)
        elif array is None:
            rules.broken(field, "must be given for a block with RoPE", "None")
        else:
            check_dtype(rules, field, array, dtypes.FLOATS)
            if array.shape != shape:
                rule = f"must have shape (d_head // 2, B, S_tkg) = {shape}"
                rules.broken(field, rule, f"shape {array.shape}")


def _check_visibility(rules: Rules, call: BlockCall, geometry: Geometry) -> bool:
    """Check the mask or positions by shape; returns whether their values can be looked at."""
    if (call.mask is None) == (call.pos_ids is None):
        rule = f"or {rules.name('pos_ids')} must be given, and only one of them"
        return rules.broken("mask", rule, "neither" if call.mask is None else "both")
    if call.mask is None:
        return _check_pos_ids(rules, call)
    return _check_mask(rules, call, call.mask, geometry)


def _check_pos_ids(rules: Rules, call: BlockCall) -> bool:
    pos_ids, shape = call.pos_ids, (call.batch, call.tokens)
    ok = check_dtype(rules, "pos_ids", pos_ids, INDEX_DTYPES)
    if pos_ids.shape != shape:
        rule = f"must have shape (B, S_tkg) = {shape}"
        ok = rules.broken("pos_ids", rule, f"shape {pos_ids.shape}")
    if call.prior < 0:
        rule = f"leaves no room for S_tkg = {call.tokens} new tokens in S_ctx"
        ok = rules.broken("cache.v", rule, call.context)
    return ok


def _check_mask(rules: Rules, call: BlockCall, mask: Array, geometry: Geometry) -> bool:
    ok = check_dtype(rules, "mask", mask, ("uint8", "bool"))
    if call.block.sliding_window is not None:
        rule = f"goes with {rules.name('pos_ids')}, not with a mask"
        rules.broken("sliding_window", rule, call.block.sliding_window)
    tail = (call.batch, call.block.heads.q, call.tokens)
    if mask.ndim != 4 or mask.shape[1:] != tail or mask.shape[0] < call.tokens:
        sizes = f"(S_ctx >= {call.tokens}, {tail[0]}, {tail[1]}, {tail[2]})"
        rule = f"must be [S_ctx, B, q_heads, S_tkg] = {sizes}"
        return rules.broken("mask", rule, f"shape {mask.shape}")
    table = call.cache.block_table
    capacity = geometry.length if table is None else geometry.length * table.shape[1]
    if call.prior > capacity:
        rule = f"must speak of at most {capacity} cache slots (S_ctx - S_tkg)"
        return rules.broken("mask", rule, f"S_ctx - S_tkg = {call.prior}")
    return ok


def _check_positions(rules: Rules, call: BlockCall) -> None:
    positions, start = call.positions, call.start
    if positions is None or start is None:
        return
    starts = start.tolist()  # a number a row: quicker to look at than an array
    if min(starts) < -1 or max(starts) > call.prior:
        outside = (start < -1) | (start > call.prior)
        rules.broken(
            "pos_ids",
            f"[b, 0] must be -1 (a padded row) or from 0 to S_ctx - S_tkg = {call.prior}",
            f"{start[outside][:4].tolist()} in rows {np.flatnonzero(outside)[:4].tolist()}",
        )
    if call.tokens > 1:
        gaps = (start != -1) & (np.diff(positions, axis=1) != 1).any(axis=1)
        if gaps.any():
            got = f"{positions[gaps][:1].tolist()} in rows {np.flatnonzero(gaps)[:4].tolist()}"
            rules.broken("pos_ids", "must be consecutive in each row", got)


def _check_table(rules: Rules, call: BlockCall, geometry: Geometry) -> None:
    """Check the table entries that some valid position needs; the others are never read."""
    table = call.cache.block_table
    values = (table, call.mask, call.pos_ids)
    if table is None or not all(call.readable(array) for array in values if array is not None):
        return
    needed = _needed_blocks(call, geometry)
    entries = table.values().astype(np.int64)
    wrong = needed & ((entries < 0) | (entries >= geometry.outer))
    if not wrong.any():
        return
    row, column = np.argwhere(wrong)[0].tolist()
    rules.broken(
        "cache.block_table",
        f"must hold blocks from 0 to num_blocks - 1 = {geometry.outer - 1} wherever a valid "
        "position needs one",
        f"{entries[row, column]} at [{row}, {column}] ({int(wrong.sum())} wrong in all)",
    )


def _needed_blocks(call: BlockCall, geometry: Geometry) -> np.ndarray:
    """`[B, table columns]`: whether some token may attend to a slot of that logical block."""
    start, columns = call.start, call.cache.block_table.shape[1]
    length = geometry.length
    if call.mask is not None:
        seen = call.mask.values()[: call.prior].any(axis=(2, 3))
        padded = np.zeros((columns * length, call.batch), bool)
        padded[: call.prior] = seen
        blocks = padded.reshape(columns, length, call.batch)
        return np.logical_or.reduce(blocks, axis=1).T
    assert start is not None
    block = np.arange(columns)[None, :] * length
    newest = np.minimum(block + length, start[:, None])
    oldest = block
    if call.block.sliding_window is not None:
        oldest = np.maximum(block, start[:, None] - call.block.sliding_window + 1)
    return np.less(oldest, newest)


def _check_update(rules: Rules, call: BlockCall, geometry: Geometry) -> None:
    """Check that the caches may be written, and where the new tokens go."""
    ids = call.slot_ids
    if ids is None:
        return
    for field, array in (("cache.k", call.cache.k), ("cache.v", call.cache.v)):
        if not array.writable:
            rules.broken(field, "must be writable to be updated", "a read-only array")
    if ids is call.pos_ids and call.cache.block_table is None:
        return  # a token at position p goes to slot p: the positions' own checks cover it
    ok = check_dtype(rules, "slot_ids", ids, INDEX_DTYPES)
    if ids.shape not in ((call.batch, 1), (call.batch, call.tokens)):
        shapes = f"{(call.batch, 1)} or {(call.batch, call.tokens)}"
        rule = f"must have shape (B, 1) or (B, S_tkg) = {shapes}"
        ok = rules.broken("slot_ids", rule, f"shape {ids.shape}")
    if ok and call.slots is not None:
        _check_slots(rules, call, geometry, call.slots)


def _check_slots(rules: Rules, call: BlockCall, geometry: Geometry, slots: np.ndarray) -> None:
    block = call.cache.block_table is not None
    capacity = geometry.outer * geometry.length if block else geometry.length
    listed = slots.ravel().tolist()
    if min(listed) < -1 or max(listed) >= capacity:
        outside = (slots < -1) | (slots >= capacity)
        what = "num_blocks * block_len" if block else "S_max_ctx"
        rules.broken(
            "slot_ids",
            f"must name slots from 0 to {what} - 1 = {capacity - 1} for all S_tkg = "
            f"{call.tokens} tokens, or 2^32-1 to skip",
            f"slot {slots[outside][:4].tolist()} in rows {np.argwhere(outside)[:4, 0].tolist()}",
        )
    if block:
        _check_distinct(rules, listed, "")
    elif call.tokens > 1:
        for row, group in enumerate(slots.tolist()):
            _check_distinct(rules, group, f" in row {row}")


def _check_distinct(rules: Rules, slots: list[int], where: str) -> None:
    taken = [slot for slot in slots if slot >= 0]
    if len(set(taken)) < len(taken):
        taken.sort()
        twice = [slot for slot, following in itertools.pairwise(taken) if slot == following]
        rule = "must not name one slot for two tokens"
        rules.broken("slot_ids", rule, f"slot {twice[:4]} twice{where}")
