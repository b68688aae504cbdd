"""Memory of weights and caches: zero, from a cache line on, nobody else's, and freed."""

from __future__ import annotations

import gc
import mmap
import sys
import threading
import weakref

import numpy as np
import pytest

from tkg.contract import memory
from tkg.contract.memory import CACHE_LINE, HUGE_PAGE, Pool, zeroed

SIZES = (1, 63, 4096, HUGE_PAGE // 2 - 1, HUGE_PAGE // 2, HUGE_PAGE, 3 * HUGE_PAGE + 5)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_zero_writable_and_begins_at_a_cache_line(size: int) -> None:
    piece = zeroed(size)
    assert piece.shape == (size,)
    assert piece.dtype == np.uint8
    assert piece.ctypes.data % CACHE_LINE == 0
    assert not piece.any()
    piece[:] = 255
    assert piece.all()


@pytest.mark.skipif(sys.platform != "linux", reason="transparent huge pages are Linux's")
@pytest.mark.parametrize(
    ("size", "huge"),
    [
        (HUGE_PAGE // 2, HUGE_PAGE),
        (HUGE_PAGE, HUGE_PAGE),
        (HUGE_PAGE + 4096, HUGE_PAGE),
        (2 * HUGE_PAGE - 4096, 2 * HUGE_PAGE),
    ],
)
def test_whole_huge_pages_are_asked_for(
    size: int, huge: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []

    class Recorded(mmap.mmap):
        def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
            asked.append((option, start, length))

    monkeypatch.setattr(mmap, "mmap", Recorded)
    piece = zeroed(size)
    assert piece.ctypes.data % HUGE_PAGE == 0
    assert [(option, length) for option, _, length in asked] == [(mmap.MADV_HUGEPAGE, huge)]


@pytest.mark.skipif(sys.platform != "linux", reason="transparent huge pages are Linux's")
def test_a_kernel_without_huge_pages_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    assert not zeroed(HUGE_PAGE).any()
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert zeroed(HUGE_PAGE + 1).ctypes.data % CACHE_LINE == 0


def test_pieces_of_a_pool_are_apart() -> None:
    pool = Pool()
    pieces = [pool.zeroed(size) for size in (100, 1, 64, 5000, pool.REGION, 7, pool.REGION // 3)]
    for number, piece in enumerate(pieces):
        assert piece.ctypes.data % CACHE_LINE == 0
        assert not piece.any()
        piece[:] = number + 1
    for number, piece in enumerate(pieces):
        assert (piece == number + 1).all()


def test_threads_share_a_pool() -> None:
    pool, ranges = Pool(), []

    def take() -> None:
        pieces = [pool.zeroed(1000) for _ in range(300)]
        ranges.extend((piece.ctypes.data, piece) for piece in pieces)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    addresses = sorted(address for address, _ in ranges)
    assert len(addresses) == 1200
    assert all(b - a >= 1000 for a, b in zip(addresses, addresses[1:], strict=False))


def test_a_region_is_freed_with_its_last_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    regions: list[weakref.ref[np.ndarray]] = []
    original = memory.zeroed

    def recorded(size: int) -> np.ndarray:
        region = original(size)
        assert isinstance(region.base, np.ndarray)
        regions.append(weakref.ref(region.base))
        return region

    monkeypatch.setattr(memory, "zeroed", recorded)
    pool = Pool()
    first, second = pool.zeroed(pool.REGION // 3), pool.zeroed(pool.REGION // 3)
    later = [pool.zeroed(pool.REGION // 3) for _ in range(3)]  # the pool moves on to other regions
    del first
    gc.collect()
    assert regions[0]() is not None
    del second, later[0]
    gc.collect()
    assert regions[0]() is None
