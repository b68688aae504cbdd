"""How many copies of the weights and caches it takes that none is in a processor cache again.

A decode step of a model passes over all its layers before it returns to the first one, so a layer's
weights come from memory. One layer called over and over would come from the processor's cache.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE_BYTES = 64 * 2**20
"""Assumed where the system does not tell."""

MARGIN = 8
"""The copies together are so many times the last-level cache. It does not replace strictly the
oldest line, and a virtual machine's processors may have one each where the system tells of one: on
two processors with 32 MiB each, 64 MiB are read at the speed of the cache, 128 MiB a fifth faster
than memory, 256 MiB as fast as memory."""


def last_level_cache(folder: Path = CACHES) -> int | None:
    """Bytes of the largest processor cache, or `None` where the system does not tell."""
    sizes = [_bytes(file.read_text()) for file in folder.glob("index*/size")]
    return max(sizes, default=None)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    assert match is not None, text
    return int(match[1]) * 2 ** {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def copies(call_bytes: int, cache_bytes: int | None, margin: int = MARGIN) -> int:
    """The least number of copies of `call_bytes` that together exceed `margin` such caches."""
    limit = margin * (UNKNOWN_CACHE_BYTES if cache_bytes is None else cache_bytes)
    return max(1, -(-(limit + 1) // call_bytes))


def free_memory() -> int:
    """Bytes of main memory that can be had without swapping."""
    try:
        text = Path("/proc/meminfo").read_text()
    except FileNotFoundError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024
