"""Which records an instruction waits for: what the compiler's semaphores enforce within a core.

A reader waits for the writers of its bytes, a writer also for their readers; the first accesses of
a tensor wait for the last of those whose bytes it took over (`placement`); `depends_on` and
schedules add their own. HBM accesses of a DMA with a run-time index are left out: the compiler
cannot see where they land.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import gcd

from .core import Core
from .errors import NkiValidationError
from .memory import Allocation
from .placement import Placement
from .program import Program
from .record import Record
from .tensor import Access

Box = tuple[int, int, int, int, int, int]
Key = tuple[Box, int, tuple[int, ...]]  # box, offset, strides: the same key touches the same bytes
Entry = tuple[Box, int, Access | None]
Uses = dict[object, Entry]
Schedule = Sequence[tuple[str, Sequence[str]]]
Waits = list[list[list[int]]]  # [core][record] -> records of that core

_MANY = 32  # uses of one tensor above which they are kept by place
_CELLS = 16  # a side of the grid that keeps them


def dependencies(program: Program, placement: Placement, schedule: Schedule = ()) -> Waits:
    """For each core and record, the records of that core that must be complete before it starts."""
    return [_Tracker(core, placement).run(schedule) for core in program.cores]


class _Grid:
    """Many uses of one tensor, by place: each is in all the cells that its box touches."""

    __slots__ = ("cells", "rows", "width")

    def __init__(self, rows: int, width: int, uses: Uses) -> None:
        self.rows = rows
        self.width = width
        self.cells: dict[tuple[int, int], Uses] = defaultdict(dict)
        for key, entry in uses.items():
            self.add(key, entry)

    def add(self, key: object, entry: Entry) -> None:
        for cell in self._of(entry[0]):
            self.cells[cell][key] = entry

    def remove(self, key: object, box: Box) -> None:
        for cell in self._of(box):
            self.cells[cell].pop(key, None)

    def near(self, box: Box, every: Uses) -> Uses:
        """All entries that may meet the box (`every`: all there are)."""
        cells = self._of(box)
        if len(cells) == 1:
            return self.cells[cells[0]]
        if len(cells) > _CELLS:
            return every
        near: Uses = {}
        for cell in cells:
            near.update(self.cells[cell])
        return near

    def _of(self, box: Box) -> list[tuple[int, int]]:
        columns = range(box[4] // self.width, (box[5] - 1) // self.width + 1)
        rows = range(box[2] // self.rows, (box[3] - 1) // self.rows + 1)
        return [(row, column) for row in rows for column in columns]


class _Place:
    """One tensor (or one memory, for tensors with explicit addresses): its writers and readers."""

    __slots__ = ("apart", "former", "grids", "readers", "rows", "width", "writers")

    def __init__(self, rows: int, width: int) -> None:
        self.rows = rows
        self.width = width
        self.writers: Uses = {}
        self.readers: Uses = {}
        self.grids: dict[int, _Grid] = {}  # of writers and readers, by id, once they are many
        self.apart = True  # no two writers meet, so one with the reader's key is the only one
        self.former: list[tuple[Box, int]] = []  # uses of former owners that nobody waited for

    def add(self, uses: Uses, key: object, entry: Entry) -> None:
        uses[key] = entry
        if len(uses) > _MANY:
            grid = self.grids.get(id(uses))
            if grid is None:
                rows, width = -(-self.rows // _CELLS), -(-self.width // _CELLS)
                self.grids[id(uses)] = _Grid(rows, width, uses)
            else:
                grid.add(key, entry)

    def near(self, uses: Uses, box: Box) -> Uses:
        grid = self.grids.get(id(uses)) if self.grids else None
        return uses if grid is None else grid.near(box, uses)

    def remove(self, uses: Uses, keys: list[object]) -> None:
        grid = self.grids.get(id(uses)) if self.grids else None
        for key in keys:
            box = uses.pop(key)[0]
            if grid is not None:
                grid.remove(key, box)


class _Tracker:
    """Walks the records of one core."""

    def __init__(self, core: Core, placement: Placement):
        self.records: list[Record] = core.records or []
        self.core = core
        self.formers = dict(placement.formers)
        self.places: dict[object, _Place] = {}
        # A tensor that this core never writes needs no order (its readers do not wait).
        self.written = {a.allocation.index for record in self.records for a in record.writes}
        self.explicit = {a.index for a in core.program.allocations if a.explicit and a.on_chip}

    def run(self, schedule: Schedule) -> list[list[int]]:
        waits: list[list[int]] = []
        written = self.written
        last_activation = last_meeting = -1
        for record in self.records:
            index, work = record.index, record.work
            need = set(record.after)
            run_time = work.get("indirect", "none") != "none"
            for access in record.reads:
                if access.allocation.index in written:
                    self._read(access, index, need, run_time)
            for access in record.writes:
                self._write(access, index, need, run_time)
            op = record.op
            if op == "activation":
                last_activation = index
            elif op == "activation_read" and last_activation >= 0:
                need.add(last_activation)
            if "meeting" in work:
                # Cores come to their meetings in the same order.
                if last_meeting >= 0:
                    need.add(last_meeting)
                last_meeting = index
            need.discard(index)
            waits.append([*need])
        self._scheduled(schedule, waits)
        return waits

    def _read(self, access: Access, index: int, need: set[int], run_time: bool) -> None:
        found = self._place(access, run_time)
        if found is None:
            return
        place, box = found
        key = (box, access.offset, access.strides)
        writer = place.writers.get(key)
        if writer is not None and place.apart:
            need.add(writer[1])
        else:
            for entry in place.near(place.writers, box).values():
                if _meet(entry, box, access):
                    need.add(entry[1])
        place.add(place.readers, (key, index), (box, index, access))

    def _write(self, access: Access, index: int, need: set[int], run_time: bool) -> None:
        found = self._place(access, run_time)
        if found is None:
            return
        place, box = found
        key = (box, access.offset, access.strides)
        if place.former:
            self._wait_for_former(place, box, access, need)
        writers = place.writers
        if place.readers or writers:
            if place.readers or len(writers) > 1 or key not in writers:
                self._displace(place, key, access, need)
            else:
                need.add(writers[key][1])
        place.add(writers, key, (box, index, access))

    def _wait_for_former(self, place: _Place, box: Box, access: Access, need: set[int]) -> None:
        """Wait for former owners' uses of these bytes; a dense write of all partitions settles
        them."""
        p0, p1, r0, r1, c0, c1 = box
        size = access.nbytes
        whole = size == access.allocation.nbytes or (
            p1 - p0 == 128 and size == 128 * (r1 - r0) * (c1 - c0)
        )
        left = []
        for use in place.former:
            _, _, s0, s1, d0, d1 = use[0]
            if s0 < r1 and r0 < s1 and d0 < c1 and c0 < d1:
                need.add(use[1])
                if whole and r0 <= s0 and s1 <= r1 and c0 <= d0 and d1 <= c1:
                    continue
            left.append(use)
        place.former = left

    def _displace(self, place: _Place, key: Key, access: Access, need: set[int]) -> None:
        """Wait for the readers and writers of these bytes, and forget those overwritten wholly."""
        box = key[0]
        p0, p1, r0, r1, c0, c1 = box
        # Only a write without gaps takes the place of those below it.
        full = access.nbytes == (p1 - p0) * (r1 - r0) * (c1 - c0)
        for uses in (place.readers, place.writers):
            covered: list[object] = []
            for name, entry in place.near(uses, box).items():
                if not _meet(entry, box, access):
                    continue
                need.add(entry[1])
                q0, q1, s0, s1, d0, d1 = entry[0]
                if (
                    full and r0 <= s0 and s1 <= r1 and c0 <= d0 and d1 <= c1
                    and p0 <= q0 and q1 <= p1
                ):  # fmt: skip
                    covered.append(name)
                elif uses is place.writers and name != key:
                    place.apart = False
            place.remove(uses, covered)

    def _place(self, access: Access, run_time: bool) -> tuple[_Place, Box] | None:
        """Where the uses of this access's bytes are kept, and its box there."""
        allocation = access.allocation
        index = allocation.index
        if self.explicit and index in self.explicit:
            return self._explicit_place(access)
        if run_time and not allocation.on_chip:
            return None
        place = self.places.get(index)
        if place is None:
            row = access.row
            place = self.places[index] = _Place(-(-allocation.row_bytes // row), row)
            if index in self.formers:
                for old, low, high in self.formers.pop(index):
                    if low // row == (high - 1) // row:
                        at = low // row * row
                        box = (0, 128, low // row, low // row + 1, low - at, high - at)
                    else:
                        box = (0, 128, low // row, (high - 1) // row + 1, 0, row)
                    self._inherit(place, old, box)
        return place, access.box

    def _explicit_place(self, access: Access) -> tuple[_Place, Box]:
        """Explicit tensors share bytes: one place a memory, with boxes of the whole memory."""
        allocation = access.allocation
        assert allocation.address is not None
        row, start = allocation.address
        first, last = access.span
        p0, p1 = access.box[:2]
        place = self.places.get(allocation.buffer)
        if place is None:
            room = self.core.arenas[allocation.buffer].partition_bytes
            place = self.places[allocation.buffer] = _Place(1, room)
        for old, low, high in self.formers.pop(allocation.index, ()):
            if old.index not in self.explicit:
                self._inherit(place, old, (0, 128, 0, 1, start + low, start + high))
        return place, (p0 + row, p1 + row, 0, 1, first + start, last + start)

    def _inherit(self, place: _Place, old: Allocation, box: Box) -> None:
        """Note the last uses of a former owner of the box."""
        theirs = self.places.get(old.buffer if old.index in self.explicit else old.index)
        if theirs is None:
            return
        former = place.former
        for _, record, _ in theirs.readers.values():
            former.append((box, record))
        read = {key[0] for key in theirs.readers}  # type: ignore[index]
        for key, (_, record, _) in theirs.writers.items():
            # A writer whose bytes were read is waited for by its reader.
            if key not in read:
                former.append((box, record))
        for _, record in theirs.former:
            former.append((box, record))

    def _scheduled(self, schedule: Schedule, waits: list[list[int]]) -> None:
        """Edges by name: an instruction's own, or that of a tensor it writes."""
        if not schedule:
            return
        named: dict[str, list[int]] = defaultdict(list)
        for record in self.records:
            names = {record.name, *(access.allocation.name for access in record.writes)}
            for name in names:
                if name:
                    named[name].append(record.index)
        for consumer, producers in schedule:
            for name in (consumer, *producers):
                if name not in named:
                    raise NkiValidationError(
                        f"with_schedule: no instruction of {self.core.program.name} is named"
                        f" {name!r}, nor writes a tensor of that name; give it name="
                    )
            for producer in producers:
                for index in named[consumer]:
                    waits[index] += named[producer]


def _meet(entry: Entry, box: Box, access: Access) -> bool:
    other, _, theirs = entry
    return (
        other[2] < box[3] and box[2] < other[3] and other[4] < box[5] and box[4] < other[5]
        and other[0] < box[1] and box[0] < other[1]
        and (theirs is access or theirs is None or not _apart(theirs, access))
    )  # fmt: skip


def _apart(a: Access, b: Access) -> bool:
    """Whether two accesses of one allocation whose boxes meet touch no common byte, provably: both
    are combs of the same period and their teeth are disjoint."""
    if a is b or a.allocation is not b.allocation or a.offset == b.offset:
        return False
    skip = 1 if a.allocation.on_chip else 0
    period = 0
    teeth = []
    for access in (a, b):
        width = access.itemsize
        sizes = [
            (step * access.itemsize, size)
            for size, step in zip(access.shape[skip:], access.strides[skip:], strict=True)
            if size > 1 and step
        ]
        for step, size in sorted(sizes):
            if step <= width:
                width = step * (size - 1) + width
            else:
                period = gcd(period, step)
        teeth.append((access.offset * access.itemsize, width))
    if skip:
        row = a.allocation.row_bytes
        teeth = [(start % row, width) for start, width in teeth]
    if period == 0:
        return False
    (first, wide), (second, width) = teeth
    if max(wide, width) > period:
        return False
    distance = (second - first) % period
    return distance >= wide and period - distance >= width
