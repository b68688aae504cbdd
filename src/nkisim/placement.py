"""Where on-chip tensors without an explicit address live: chosen after the run by lifetime.

A tensor lives from its first to its last access in program order, and holds the same bytes of
every partition (whole banks in PSUM). Explicit tensors keep their places for the whole program.
Addresses rotate (next fit), so that the next tile does not wait for the one before it; if that
leaves the memory in pieces, the best-fitting hole is taken; last, tensors are placed by size.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from .chips import Chip
from .core import Core
from .enums import PSUM, SBUF, MemoryRegion
from .errors import NkiValidationError
from .memory import Allocation
from .program import Program

_ALIGN = 4  # bytes; sbuf_min_align is not published: assumed


class Life(NamedTuple):
    """A tensor's lifetime: indices of the first and last record that touch it, in its core."""

    allocation: Allocation
    first: int
    last: int


class Former(NamedTuple):
    """A tensor that held bytes low..high (of the new one's partition) before it."""

    allocation: Allocation
    low: int
    high: int


@dataclass
class Memory:
    """One on-chip memory of one core after placement. Bytes are of one partition.

    `peak` is the most that lives at one time, at record `peak_at`. `fits` is False if the
    automatic tensors got no address.
    """

    core: int
    region: MemoryRegion
    capacity: int
    lives: list[Life] = field(default_factory=list)
    peak: int = 0
    peak_at: int = 0
    fits: bool = True


@dataclass
class Placement:
    """All memories, and for each tensor (by index) those whose bytes it takes over."""

    memories: list[Memory]
    formers: dict[int, list[Former]]


def place(program: Program, strict: bool) -> Placement:
    """Set the address of every on-chip tensor that was used. NkiValidationError with the table of
    live tensors if they do not fit; if not `strict`, they stay without an address."""
    memories: list[Memory] = []
    formers: dict[int, list[Former]] = {}
    for core in program.cores:
        lives = _lifetimes(core)
        for region in (SBUF, PSUM):
            memory = _memory(core, region, program.chip, lives)
            _fill(memory, program.chip.psum_bank_bytes if region is PSUM else _ALIGN)
            if strict and not memory.fits:
                raise NkiValidationError(_overflow(memory, core))
            _takeovers(memory, formers)
            memories.append(memory)
    return Placement(memories, formers)


def _lifetimes(core: Core) -> list[Life]:
    """By first use."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for record in core.records or ():
        index = record.index
        for access in record.reads:
            number = access.allocation.index
            last[number] = index
            if number not in first:
                first[number] = index
        for access in record.writes:
            number = access.allocation.index
            last[number] = index
            if number not in first:
                first[number] = index
    allocations = core.program.allocations
    return [Life(allocations[number], at, last[number]) for number, at in first.items()]


def _memory(core: Core, region: MemoryRegion, chip: Chip, lives: list[Life]) -> Memory:
    size = chip.sbuf_partition_bytes if region is SBUF else chip.psum_partition_bytes
    # A tensor of another core (`sendrecv`) is placed by its owner.
    chosen = [
        life
        for life in lives
        if life.allocation.buffer is region and life.allocation.core == core.index
    ]
    return Memory(core.index, region, size, chosen)


def _fill(memory: Memory, unit: int) -> None:
    """Choose addresses, by the first of three ways that works; note the peak."""
    automatic = [life for life in memory.lives if not life.allocation.explicit]
    fixed = [life for life in memory.lives if life.allocation.explicit]
    reserved = _union([life.allocation for life in fixed], unit)
    sizes = [-(-life.allocation.row_bytes // unit) * unit for life in automatic]
    _note_peak(memory, automatic, sizes, sum(high - low for low, high in reserved))
    holes = _complement(reserved, memory.capacity)
    for rotate in (True, False):
        places = _sweep(automatic, sizes, _Holes(holes, rotate))
        if places is not None:
            break
    else:
        places = _by_size(automatic, sizes, fixed, memory.capacity)
    memory.fits = places is not None
    for life, at in zip(automatic, places or [None] * len(automatic), strict=True):
        life.allocation.address = None if at is None else (0, at)


def _union(allocations: list[Allocation], unit: int) -> list[tuple[int, int]]:
    """The bytes of explicit tensors, as sorted disjoint ranges of whole units."""
    ranges: list[tuple[int, int]] = []
    for start, end in sorted(
        (a.address[1], a.address[1] + a.row_bytes) for a in allocations if a.address
    ):
        start, end = start // unit * unit, -(-end // unit) * unit
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((start, end))
    return ranges


def _complement(ranges: list[tuple[int, int]], capacity: int) -> list[tuple[int, int]]:
    edges = [0, *(edge for pair in ranges for edge in pair), capacity]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def _note_peak(memory: Memory, lives: list[Life], sizes: list[int], reserved: int) -> None:
    """The most bytes alive at one record; explicit tensors count from start to end."""
    memory.peak = reserved
    if not lives:
        return
    change = np.zeros(max(life.last for life in lives) + 2, np.int64)
    weights = np.array(sizes, np.int64)
    np.add.at(change, np.array([life.first for life in lives]), weights)
    np.add.at(change, np.array([life.last for life in lives]) + 1, -weights)
    alive = np.cumsum(change)
    memory.peak_at = int(alive.argmax())
    memory.peak += int(alive[memory.peak_at])


class _Holes:
    """The free ranges of a memory, sorted; `take` chooses one."""

    def __init__(self, holes: list[tuple[int, int]], rotate: bool):
        self.starts = [start for start, _ in holes]
        self.ends = [end for _, end in holes]
        self.rotate = rotate
        self.pointer = 0

    def take(self, size: int) -> int | None:
        """The start of `size` free bytes, now taken; None if no hole is long enough."""
        starts, ends = self.starts, self.ends
        at = self._next(size) if self.rotate else self._best(size)
        if at is None:
            return None
        hole, start = at
        end = start + size
        self.pointer = end
        low, high = starts[hole], ends[hole]
        if start == low:
            if end == high:
                del starts[hole], ends[hole]
            else:
                starts[hole] = end
        else:
            ends[hole] = start
            if end < high:
                starts.insert(hole + 1, end)
                ends.insert(hole + 1, high)
        return start

    def _next(self, size: int) -> tuple[int, int] | None:
        starts, ends, pointer = self.starts, self.ends, self.pointer
        first = bisect_right(starts, pointer) - 1
        if first >= 0 and pointer + size <= ends[first]:
            return first, pointer
        for hole in range(first + 1, len(starts)):
            if ends[hole] - starts[hole] >= size:
                return hole, starts[hole]
        for hole in range(first + 1):
            if ends[hole] - starts[hole] >= size:
                return hole, starts[hole]
        return None

    def _best(self, size: int) -> tuple[int, int] | None:
        best = None
        for hole, start in enumerate(self.starts):
            length = self.ends[hole] - start
            if length >= size and (best is None or length < best[0]):
                best = (length, hole, start)
        return None if best is None else best[1:]

    def give(self, start: int, end: int) -> None:
        """Free a range again, joined with its neighbours."""
        starts, ends = self.starts, self.ends
        at = bisect_left(starts, start)
        before = at > 0 and ends[at - 1] == start
        after = at < len(starts) and starts[at] == end
        if before and after:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif before:
            ends[at - 1] = end
        elif after:
            starts[at] = start
        else:
            starts.insert(at, start)
            ends.insert(at, end)


def _sweep(lives: list[Life], sizes: list[int], holes: _Holes) -> list[int] | None:
    """Addresses in order of first use, or None if some tensor finds no hole."""
    ending: list[tuple[int, int, int]] = []
    places: list[int] = []
    for (_, first, last), size in zip(lives, sizes, strict=True):
        # What the instruction that first writes this tensor reads for the last time still lives.
        while ending and ending[0][0] < first:
            _, start, end = heappop(ending)
            holes.give(start, end)
        start = holes.take(size)
        if start is None:
            return None
        heappush(ending, (last, start, start + size))
        places.append(start)
    return places


def _by_size(
    lives: list[Life], sizes: list[int], fixed: list[Life], capacity: int
) -> Sequence[int | None] | None:
    """The largest tensors first, each at the lowest address that is free for its whole life."""
    count = len(fixed)
    table = np.zeros((count + len(lives), 4), np.int64)  # first, last, start, end
    for row, life in enumerate(fixed):
        assert life.allocation.address is not None
        start = life.allocation.address[1]
        table[row] = life.first, life.last, start, start + life.allocation.row_bytes
    places: list[int | None] = [None] * len(lives)
    for number in sorted(range(len(lives)), key=lambda n: -sizes[n]):
        _, first, last = lives[number]
        placed = table[:count]
        meets = placed[(placed[:, 0] <= last) & (placed[:, 1] >= first)]
        at = 0
        for _, _, start, end in meets[np.argsort(meets[:, 2], kind="stable")].tolist():
            if start - at >= sizes[number]:
                break
            at = max(at, end)
        if at + sizes[number] > capacity:
            return None
        table[count] = first, last, at, at + sizes[number]
        places[number] = at
        count += 1
    return places


def _takeovers(memory: Memory, formers: dict[int, list[Former]]) -> None:
    """Walk the tensors by first use; each takes its bytes from whoever had them last."""
    # The memory as pieces: piece k is bytes starts[k] up to starts[k + 1], owned by owners[k].
    starts: list[int] = [0, 1 << 60]
    owners: list[Allocation | None] = [None, None]
    for allocation, _, _ in memory.lives:
        if allocation.address is None:
            continue
        low = allocation.address[1]
        high = low + allocation.row_bytes
        first = bisect_right(starts, low) - 1
        after = bisect_left(starts, high, first)
        lost = []
        for piece in range(first, after):
            owner = owners[piece]
            if owner is not None:
                start, end = starts[piece] - low, starts[piece + 1] - low
                size = high - low
                lost.append(Former(owner, start if start > 0 else 0, end if end < size else size))
        if lost:
            formers[allocation.index] = lost
        # Cut the pieces at both ends, then put one piece in place of those between.
        if starts[after] > high:
            starts.insert(after, high)
            owners.insert(after, owners[after - 1])
        if starts[first] < low:
            first += 1
            if first == after:
                starts.insert(first, low)
                owners.insert(first, allocation)
                continue
        starts[first] = low
        owners[first] = allocation
        if after - first > 1:
            del starts[first + 1 : after], owners[first + 1 : after]


def _overflow(memory: Memory, core: Core) -> str:
    """The tensors alive where most live, largest first."""
    records = core.records or []
    at = memory.peak_at
    alive = [life for life in memory.lives if life.first <= at <= life.last]
    alive.sort(key=lambda life: -life.allocation.row_bytes)
    site = records[at].site
    name = memory.region.value
    need = f"{memory.peak} bytes of each partition live at {site}; {name} has {memory.capacity}"
    if memory.peak <= memory.capacity:
        need = f"{need}, but lifetimes leave it in pieces that fit no order of placement"
    lines = [
        f"{site}: {name} of core {core.index} overflows: {need}; make tiles smaller, use them"
        f" sooner, or give them addresses. Live there ({len(alive)} tensors):",
        f"  {'tensor':24} {'bytes/partition':>15}  {'allocated at':32} last use",
    ]
    for allocation, _, last in alive[:40]:
        where = f"{_short(str(allocation.site))}"
        lines.append(
            f"  {allocation.name or 'tensor':24.24} {allocation.row_bytes:15}  {where:32}"
            f" {_short(str(records[last].site))}"
        )
    if len(alive) > 40:
        rest = sum(life.allocation.row_bytes for life in alive[40:])
        lines.append(f"  and {len(alive) - 40} more, {rest} bytes")
    lines.append(f"  high-water mark: {memory.peak} of {memory.capacity} bytes a partition")
    return "\n".join(lines)


def _short(site: str) -> str:
    return site.rpartition("/")[2]
