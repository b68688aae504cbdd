"""The numbers of a row: a few distinct rows of the batch, repeated to its full size.

Repeated rows have repeated answers, so a check of a few rows against float64 is a check of all.
Each has memory of its own: what a call must read is that of a batch of different rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tkg.bench.workloads import Row
from tkg.contract.dtypes import NUMPY, SKIP_SLOT
from tkg.testing.problem import Problem, of_call

Call = dict[str, Any]
"""Keyword arguments of `tkg.attention_block_tkg`, NumPy arrays."""

DISTINCT_ELEMENTS = 2**22
"""Elements of a cache that are drawn and checked in float64; at least one row of the batch."""

BIG = ("W_qkv", "W_out", "K_cache", "V_cache")
"""The arguments that a rotation has many copies of; the others are small."""


def distinct_rows(row: Row) -> int:
    """How many different rows the batch has: a divisor of it, at most 4."""
    case = row.case(1)
    fit = DISTINCT_ELEMENTS // (case.kv_heads * case.d_head * row.context)
    return max(n for n in (1, 2, 3, 4) if row.batch % n == 0 and (n <= fit or n == 1))


def distinct(row: Row, seed: int = 0) -> Call:
    """The call for the different rows alone. Slots that nobody may read hold NaN."""
    return row.case(distinct_rows(row)).inputs(seed)


def repeated(call: Call, times: int) -> Call:
    """The call for a batch in which the rows of `call` stand `times` times, one after another."""
    if times == 1:
        return dict(call)
    result = dict(call)
    for name, axis in (("X", 0), ("pos_ids", 0), ("K_cache", 0), ("V_cache", 0)):
        result[name] = _repeat(call[name], times, axis)
    for name in ("cos", "sin"):
        if name in call:
            result[name] = _repeat(call[name], times, 1)
    slots = _repeat(call["kv_cache_update_idx"], times, 0)
    table = call.get("active_blocks_table")
    if table is not None:
        pages, length = call["V_cache"].shape[:2]
        copy = np.repeat(np.arange(times, dtype=np.int64), len(table))[:, None]
        wide = _repeat(table, times, 0).astype(np.int64)
        moved = np.where(wide == SKIP_SLOT, SKIP_SLOT, wide + copy * pages)
        result["active_blocks_table"] = moved.astype(table.dtype)
        slots = (slots.astype(np.int64) + copy * pages * length).astype(slots.dtype)
    result["kv_cache_update_idx"] = slots
    return result


def _repeat(array: np.ndarray, times: int, axis: int) -> np.ndarray:
    counts = [1] * array.ndim
    counts[axis] = times
    return np.tile(array, counts)


def plain(call: Call, dtype: str) -> Call:
    """The same layer as a library without FP8 and without pages runs it, all of it in `dtype`.

    FP8 weights become their values in `dtype`, STATIC activations are not rounded, an FP8 cache
    becomes the values that it stands for, a block cache becomes a flat one with the new tokens
    after the old ones.
    """
    problem = of_call(call)
    number = NUMPY[dtype]
    length = int(call["pos_ids"][0, 0])  # all rows have the same one
    result = {
        name: value.astype(number) if isinstance(value, np.ndarray) else value
        for name, value in call.items()
        if name in _KEPT or name.startswith("rmsnorm")
    }
    out_size = 1.0 if problem.v_scale is None else problem.v_scale
    result["W_qkv"] = _values(problem, "qkv").astype(number)
    result["W_out"] = (_values(problem, "out") * out_size).astype(number)
    for name, cache, scale in (
        ("K_cache", problem.k_cache, problem.k_scale),
        ("V_cache", problem.v_cache, problem.v_scale),
    ):
        slots = length + problem.x.shape[1]
        flat = np.zeros((*cache.shape[:2], slots, cache.shape[3]), number)
        flat[:, :, :length] = cache[:, :, :length] / (scale or 1.0)
        result[name] = flat
    result["softmax_scale"] = problem.scale * (problem.k_scale or 1.0)
    result["pos_ids"] = call["pos_ids"]
    result["update_cache"] = True
    result["kv_cache_update_idx"] = call["pos_ids"][:, :1].astype(np.uint32)
    return result


_KEPT = ("X", "bias_qkv", "bias_out", "cos", "sin", "sink", "rope_contiguous_layout")


def _values(problem: Problem, which: str) -> np.ndarray:
    weights = problem.qkv if which == "qkv" else problem.out
    assert weights is not None
    if weights.columns is None:
        return weights.weight
    return weights.weight * weights.columns / (weights.step or 1.0)  # STATIC's has both factors


def one_of_many(weight: np.ndarray, index: int) -> np.ndarray:
    """Copy number `index`: copy 0 has the same numbers, each other one differs in two of them.

    Libraries that take a graph keep equal constants once; then nothing would be rotated.
    """
    own = weight.copy()
    if index:
        own[0, :2] = np.array(divmod(index, 128)) / 128  # exact in every dtype
    return own


def big_bytes(call: Call) -> int:
    """Bytes of the weights and caches of a call."""
    return sum(call[name].nbytes for name in BIG)
