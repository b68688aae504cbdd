"""Accesses that nothing orders, found after the run from its records.

Within a core, program order is kept wherever the compiler can see it: the engines wait for each
other's results by tensor and by address. It cannot see where a DMA with a run-time index lands, so
such a DMA and another access to the same HBM tensor need a chain of dependencies, or `depends_on`.
Between the cores of a launch nothing is ordered but by `core_barrier`, `sendrecv` and collectives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .program import Program
from .record import Record
from .regions import touch
from .tensor import Access

Predecessors = Sequence[Sequence[Sequence[int]]]  # [core][record] -> earlier records of that core


class _Use(NamedTuple):
    record: Record
    access: Access
    writes: bool


def find_hazards(program: Program, dependencies: Callable[[], Predecessors]) -> None:
    """Add to the program's findings. `dependencies` gives what the hardware enforces; it is called
    only if some pair of accesses is in doubt."""
    divergence(program)
    order: Order | None = None
    for uses in _by_allocation(program):
        for first, second in _conflicts(uses):
            order = order or Order(program, dependencies())
            if order.known(first.record, second.record):
                continue
            if first.record.core == second.record.core:
                program.doubt("order unknown", second.record.site, _text(first, second))
            else:
                program.find("race", second.record.site, _text(first, second))


def divergence(program: Program) -> None:
    """The programs of one launch must execute the same instructions in the same order. They may
    stand on different lines: nki.isa.core_barrier's own example branches on the core."""
    for rank in {core.rank for core in program.cores}:
        cores = [core for core in program.cores if core.rank == rank]
        for other in cores[1:]:
            first, second = cores[0].records or [], other.records or []
            at = _first_difference(first, second)
            if at is not None:
                here = _step(first, at)
                there = _step(second, at)
                site = (second if at < len(second) else first)[at].site
                program.find(
                    "divergent control flow", site,
                    f"instruction {at}: program 0 {here}, program {other.program_id} {there}; only"
                    " data and addresses may depend on program_id",
                )  # fmt: skip


def _first_difference(first: list[Record], second: list[Record]) -> int | None:
    for at, (a, b) in enumerate(zip(first, second, strict=False)):
        if (a.op, a.engine) != (b.op, b.engine):
            return at
    return min(len(first), len(second)) if len(first) != len(second) else None


def _step(records: list[Record], at: int) -> str:
    return f"runs {records[at].op} at {records[at].site}" if at < len(records) else "has ended"


def _by_allocation(program: Program) -> Iterator[list[_Use]]:
    """The uses of each HBM tensor that is written, and used by a run-time index or several
    cores."""
    table: dict[int, list[_Use]] = defaultdict(list)
    for core in program.cores:
        for record in core.records or ():
            for accesses, writes in ((record.reads, False), (record.writes, True)):
                for access in accesses:
                    if not access.allocation.on_chip:
                        table[access.allocation.index].append(_Use(record, access, writes))
    several = len(program.cores) > 1
    for uses in table.values():
        if any(use.writes for use in uses) and (several or any(_indirect(use) for use in uses)):
            yield uses


def _indirect(use: _Use) -> bool:
    return use.record.work.get("indirect", "none") != "none"


def _conflicts(uses: list[_Use]) -> Iterator[tuple[_Use, _Use]]:
    """Pairs (earlier, later) that share a byte, one of them writing, and that neither a core's own
    static order nor a meeting settles."""
    boxes = np.array([use.access.box for use in uses])
    cores = np.array([use.record.core for use in uses])
    places = np.array([use.record.index for use in uses])
    indirect = np.array([_indirect(use) for use in uses])
    meets = np.array(["meeting" in use.record.work for use in uses])
    writes = np.array([use.writes for use in uses])
    low, high = boxes[:, 0::2], boxes[:, 1::2]
    for at in np.flatnonzero(writes & ~meets):
        doubt = (cores != cores[at]) | indirect | indirect[at]
        # AWS's own example of nl.fori_loop zeroes a tensor, then stores to it at run-time indices.
        doubt &= (cores != cores[at]) | ~writes | (indirect & indirect[at])
        doubt &= ~meets & ((places != places[at]) | (cores != cores[at]))
        # Two writes meet in both loops: keep one.
        doubt &= ~writes | (np.arange(len(uses)) > at)
        doubt &= ((low < high[at]) & (low[at] < high)).all(axis=1)
        for other in np.flatnonzero(doubt):
            first, second = uses[at], uses[other]
            if touch(first.access, second.access):
                if second.record.index < first.record.index:
                    first, second = second, first
                yield first, second


class Order:
    """Happens-before: dependencies within a core, and meetings between cores."""

    def __init__(self, program: Program, before: Predecessors):
        self.before = before
        meetings: dict[object, list[tuple[int, int]]] = defaultdict(list)
        for core in program.cores:
            for record in core.records or ():
                if "meeting" in record.work:
                    meetings[record.work["meeting"]].append((core.index, record.index))
        self.met = {place: places for places in meetings.values() for place in places}
        self.cache: dict[tuple[int, int], set[tuple[int, int]]] = {}

    def known(self, first: Record, second: Record) -> bool:
        """Whether one is complete before the other starts, whichever."""
        a, b = (first.core, first.index), (second.core, second.index)
        return a in self.ancestors(b) or (a[0] != b[0] and b in self.ancestors(a))

    def ancestors(self, start: tuple[int, int]) -> set[tuple[int, int]]:
        """Everything that is complete before `start` begins."""
        if start not in self.cache:
            seen: set[tuple[int, int]] = set()
            stack = [start]
            while stack:
                here = stack.pop()
                # Who met here has waited for all that the others had waited for.
                for core, index in self.met.get(here, (here,)):
                    for earlier in self.before[core][index]:
                        place = (core, earlier)
                        if place not in seen:
                            seen.add(place)
                            stack.append(place)
            self.cache[start] = seen
        return self.cache[start]


def _text(first: _Use, second: _Use) -> str:
    def one(use: _Use) -> str:
        verb = "writes" if use.writes else "reads"
        how = " at a run-time index" if _indirect(use) else ""
        return f"{use.record.op} on core {use.record.core} {verb} it{how} at {use.record.site}"

    same = first.record.core == second.record.core
    fix = "depends_on" if same else "core_barrier on the tensor between them"
    return (
        f"{first.access.allocation} (allocated at {first.access.allocation.site}): {one(first)},"
        f" {one(second)}, and nothing orders the two; use {fix}"
    )
