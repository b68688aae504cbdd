"""Caches of more than 2^31 elements: offsets that do not fit in 32 bits, reads and writes.

The cache is a sparse file: only the pages of memory that are touched exist.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.calls import BACKENDS, Call, run, run_as_is
from tests.variants import assert_same
from tkg.testing.case import Case
from tkg.testing.placed import back, on


def sparse(folder: Path, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A zeroed array on a sparse file."""
    count = int(np.prod(shape, dtype=np.int64))
    assert count > 2**31
    itemsize = np.dtype(dtype).itemsize
    raw = np.memmap(folder / name, np.uint8, "w+", shape=(count * itemsize,))
    return np.asarray(raw).view(dtype).reshape(shape)


def in_place(backend: str, call: Call) -> Any:
    """The call without copies of its caches: on the host they stay sparse."""
    return back(run_as_is(backend, on(backend, call)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3"])
def test_pages_far_apart(backend: str, dtype: str, tmp_path: Path) -> None:
    """Page numbers whose offset passes 2^31 and 2^32 elements."""
    block_len = 16
    case = Case(
        name="big-block",
        dtype="bfloat16",
        cache_dtype=dtype,
        d_head=128,
        kv_heads=2,
        lengths=(33, 20),
        capacity=48,
        cache="block",
        block_len=block_len,
        tokens=2,
    )
    small: Call = case.inputs(invalid=0.0)
    pages = small["K_cache"].shape[0]
    elements = block_len * 2 * 128
    num_blocks = 2**32 // elements + 100
    # Page 0 of the small cache stays, the others go around 2^31 and 2^32 elements.
    place = np.array([0, *(2**31 // elements + i for i in (-1, 0, 1)), *range(2**20, 2**20 + 8)])
    place = place[:pages]
    assert place.size == pages
    big = {}
    for name in ("K_cache", "V_cache"):
        cache = sparse(tmp_path, name, (num_blocks, block_len, 2, 128), small[name].dtype)
        cache[place] = small[name]
        big[name] = cache
    table = small["active_blocks_table"].astype(np.int64)
    moved = np.where(table < pages, place[np.minimum(table, pages - 1)], table)
    big["active_blocks_table"] = moved.astype(np.uint32)
    slots = small["kv_cache_update_idx"].astype(np.int64)
    big["kv_cache_update_idx"] = place[slots // block_len] * block_len + slots % block_len
    assert big["kv_cache_update_idx"].max() * 256 > 2**31
    want = run(backend, small)
    out, K, V = in_place(backend, small | big)
    assert_same(backend, out, want[0])
    assert_same(backend, K[place], want[1])
    assert_same(backend, V[place], want[2])


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_far_apart(backend: str, transposed: bool, tmp_path: Path) -> None:
    """Not on the reference, which reads every slot that a row has, valid or not.

    A flat cache of 2^23 + 48 slots: the second row and head begin past 2^31 elements."""
    case = Case(
        name="big-flat",
        dtype="bfloat16",
        d_head=128,
        kv_heads=2,
        lengths=(33, 20),
        capacity=48,
        cache="transposed" if transposed else "flat",
    )
    small: Call = case.inputs(invalid=0.0)
    capacity = 2**23 + 48
    big: Call = {}
    for name in ("K_cache", "V_cache"):
        inner = (128, capacity) if transposed and name == "K_cache" else (capacity, 128)
        cache = sparse(tmp_path, name, (2, 2, *inner), ml_dtypes.bfloat16)
        view = cache[..., :48] if inner[0] == 128 else cache[:, :, :48]
        view[...] = small[name]
        big[name] = cache
    slots = np.array([[capacity - 1], [capacity - 2]], np.int64)
    big["kv_cache_update_idx"] = slots
    want_out, want_K, want_V = run(backend, small)
    out, K, V = in_place(backend, small | big)
    assert_same(backend, out, want_out)
    for row, length in enumerate(case.lengths):
        slot = slots[row, 0]
        assert_same(backend, V[row, :, slot].copy(), want_V[row, :, length].copy())
        if transposed:
            assert_same(backend, K[row, :, :, slot].copy(), want_K[row, :, :, length].copy())
        else:
            assert_same(backend, K[row, :, slot].copy(), want_K[row, :, length].copy())
