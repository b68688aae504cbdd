"""Memory for what every step reads from end to end: the object API's weights and caches.

It begins at a cache line and lies in huge pages where the system has them (Linux, transparent huge
pages): the processor looks up fewer addresses, and its prefetching, which stops at the end of a
page, runs on (docs/performance.md). NumPy's own large arrays begin 16 bytes after a cache line, so
that a row of 64 bytes lies in two lines.
"""

from __future__ import annotations

import contextlib
import mmap
import threading

import numpy as np

CACHE_LINE = 64
HUGE_PAGE = 2 * 2**20
"""Bytes."""


def zeroed(size: int) -> np.ndarray:
    """`size` zero bytes in memory of their own, from a cache line on.

    Huge pages are asked for as far as they are filled, the last one at least to the half. So no
    more memory is wasted than is asked for.
    """
    huge = (size + HUGE_PAGE // 2) // HUGE_PAGE * HUGE_PAGE
    if huge == 0 or not hasattr(mmap, "MADV_HUGEPAGE"):
        memory = np.zeros(size + CACHE_LINE - 1, np.uint8)
        skipped = -memory.ctypes.data % CACHE_LINE
        return memory[skipped : skipped + size]
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        mapping = mmap.mmap(-1, max(size, huge) + HUGE_PAGE - mmap.PAGESIZE, flags=private)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{size} bytes cannot be had: {error}") from error
    memory = np.frombuffer(mapping, np.uint8)  # keeps the mapping
    skipped = -memory.ctypes.data % HUGE_PAGE
    # A kernel without huge pages refuses; the memory then has ordinary ones.
    with contextlib.suppress(OSError):
        mapping.madvise(mmap.MADV_HUGEPAGE, skipped, huge)
    return memory[skipped : skipped + size]


class Pool:
    """Pieces that live long, one after another in regions of huge pages.

    A region is freed when none of its pieces is in use any more.
    """

    REGION = 16 * HUGE_PAGE
    """Bytes. A piece of half a region or more is a region by itself."""

    def __init__(self) -> None:
        self._rest = np.empty(0, np.uint8)
        self._lock = threading.Lock()

    def zeroed(self, size: int) -> np.ndarray:
        """`size` zero bytes from a cache line on."""
        taken = -(-size // CACHE_LINE) * CACHE_LINE
        if taken >= self.REGION // 2:
            return zeroed(size)
        with self._lock:
            if taken > self._rest.size:
                self._rest = zeroed(self.REGION)
            piece, self._rest = self._rest[:size], self._rest[taken:]
        return piece
