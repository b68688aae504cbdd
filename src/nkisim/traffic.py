"""What a program moves between HBM and the chip, tensor by tensor, beside the least possible."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from .enums import engine as Engine
from .memory import Allocation
from .program import Program
from .record import Record
from .regions import runs
from .tensor import Access

_MOST_RUNS = 4_000_000  # of one tensor; above, boxes stand for the exact bytes


@dataclass
class TensorTraffic:
    """Bytes of one HBM tensor: `least` counts each byte that was read or written once, for inputs,
    constants and outputs; a temporary in HBM need not have been there."""

    allocation: Allocation
    read_bytes: int = 0
    written_bytes: int = 0
    least_read_bytes: int = 0
    least_written_bytes: int = 0


def moved_elements(record: Record) -> int:
    """The elements that a DMA moves; an operand with an index vector shows all its rows."""
    operands = [record.writes[0], *record.reads[: 2 if record.op == "dma_compute" else 1]]
    return min(prod(access.shape) for access in operands)


def traffic(program: Program) -> list[TensorTraffic]:
    """For every HBM tensor that a DMA touched, most bytes first."""
    table: dict[int, TensorTraffic] = {}
    touched: dict[tuple[int, bool], dict[object, Access]] = {}
    gathered: dict[tuple[int, bool], int] = {}
    for core in program.cores:
        for record in core.records or ():
            if record.engine is not Engine.dma or not record.writes or not record.reads:
                continue
            elements = -1
            for accesses, writes in ((record.reads, False), (record.writes, True)):
                for access in accesses:
                    allocation = access.allocation
                    if allocation.on_chip:
                        continue
                    if elements < 0:
                        elements = moved_elements(record)
                    entry = table.get(allocation.index)
                    if entry is None:
                        entry = table[allocation.index] = TensorTraffic(allocation)
                    nbytes = min(elements, prod(access.shape)) * access.itemsize
                    if writes:
                        entry.written_bytes += nbytes
                    else:
                        entry.read_bytes += nbytes
                    key = (allocation.index, writes)
                    if record.work.get("indirect") == "vector":
                        gathered[key] = gathered.get(key, 0) + nbytes
                    else:
                        shape = (access.offset, access.shape, access.strides, access.itemsize)
                        touched.setdefault(key, {})[shape] = access
    for entry in table.values():
        kind = entry.allocation.kind
        if kind != "temporary":
            _least(entry, touched, gathered, kind)
    return sorted(table.values(), key=lambda entry: -(entry.read_bytes + entry.written_bytes))


def _least(
    entry: TensorTraffic,
    touched: dict[tuple[int, bool], dict[object, Access]],
    gathered: dict[tuple[int, bool], int],
    kind: str,
) -> None:
    index, room = entry.allocation.index, entry.allocation.nbytes
    for writes in (False, True):
        if kind == "output" and not writes:
            continue  # what was read back had been on the chip
        accesses = list(touched.get((index, writes), {}).values())
        nbytes = min(room, _distinct(accesses) + gathered.get((index, writes), 0))
        if writes:
            entry.least_written_bytes = nbytes
        else:
            entry.least_read_bytes = nbytes


def _distinct(accesses: list[Access]) -> int:
    """Bytes that at least one of the accesses touches."""
    if not accesses:
        return 0
    starts: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    count = 0
    for access in accesses:
        first, length = runs(access)
        starts.append(first)
        ends.append(first + length)
        count += len(first)
        if count > _MOST_RUNS:
            return sum(other.nbytes for other in accesses)
    begin, end = np.concatenate(starts), np.concatenate(ends)
    order = np.argsort(begin, kind="stable")
    begin, reach = begin[order], np.maximum.accumulate(end[order])
    # Each run adds what lies beyond all runs that start before it.
    before = np.concatenate(([begin[0]], reach[:-1]))
    return int(np.maximum(reach - np.maximum(begin, before), 0).sum())
