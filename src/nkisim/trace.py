"""A Chrome trace of the modelled timeline, for ui.perfetto.dev or chrome://tracing.

A process a core; a thread an engine, and threads of the DMA queues behind their triggers (several
where the data of two DMAs of one queue move at the same time). An arrow leads to each instruction
from the one whose result it waited for last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from .costs import LANES, Transfer
from .record import Record

if TYPE_CHECKING:
    from .report import Report

_QUEUES = 10  # first thread number of DMA queues; a queue has at most _SPLIT threads
_SPLIT = 32


def slices(report: Report) -> tuple[list[tuple[int, int, float, float]], dict[int, int]]:
    """For each record its slice on its engine as (core, lane, start, end); and for each DMA the
    thread on which its data is drawn."""
    timeline = report.timeline
    found = [
        (record.core, timeline.costs[n].lane, timeline.start[n], timeline.held[n])
        for n, record in enumerate(timeline.records)
    ]
    busy: dict[tuple[int, int], list[float]] = {}
    threads: dict[int, int] = {}
    dma = [n for n in range(len(found)) if timeline.moving[n] >= 0]
    for number in sorted(dma, key=timeline.moving.__getitem__):
        core, lane = found[number][:2]
        ends = busy.setdefault((core, lane), [])
        at = next((k for k, end in enumerate(ends) if end <= timeline.moving[number]), len(ends))
        if at == len(ends) and at < _SPLIT:
            ends.append(0.0)
        at = min(at, _SPLIT - 1)
        ends[at] = data_end(report, number)
        threads[number] = _QUEUES + lane * _SPLIT + at
    return found, threads


def data_end(report: Report, number: int) -> float:
    """When the last byte of a DMA has moved."""
    timeline, dma = report.timeline, report.program.chip.dma
    what = timeline.costs[number]
    assert isinstance(what, Transfer)
    return timeline.done[number] - dma.finish_ns - dma.stagger_ns * (what.last - what.first - 1)


def write_trace(report: Report, path: str) -> None:
    """Write the trace as JSON; times are microseconds."""
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
        _write(file, _events(report))
        file.write("\n]}\n")


def _write(file: IO[str], events: Iterator[dict[str, Any]]) -> None:
    separator = ""
    for event in events:
        file.write(separator + json.dumps(event))
        separator = ",\n"


def _events(report: Report) -> Iterator[dict[str, Any]]:
    timeline = report.timeline
    found, threads = slices(report)
    yield from _names(report, found, threads)
    for number, record in enumerate(timeline.records):
        core, lane, start, end = found[number]
        details = _details(record)
        is_dma = number in threads
        yield _slice(
            f"{record.op} trigger" if is_dma else record.op, core, lane, (start, end), details
        )
        if is_dma:
            what = timeline.costs[number]
            assert isinstance(what, Transfer)
            details = {**details, "bytes": what.nbytes, "engines": f"{what.first}..{what.last - 1}"}
            moving = timeline.moving[number], data_end(report, number)
            yield _slice(record.op, core, threads[number], moving, details)
        cause = timeline.cause[number]
        if cause >= 0 and timeline.by_data[number]:
            yield from _arrow(report, (cause, number), found, threads)


def _arrow(
    report: Report,
    pair: tuple[int, int],
    found: list[tuple[int, int, float, float]],
    threads: dict[int, int],
) -> Iterator[dict[str, Any]]:
    cause, number = pair
    core, lane, _, end = found[cause]
    if cause in threads:
        lane, end = threads[cause], data_end(report, cause)
    common = {"cat": "dependency", "name": "waits for", "id": number}
    # Perfetto ties an arrow to the slice that encloses its time.
    yield {**common, "ph": "s", "pid": core, "tid": lane, "ts": (end - 0.5) / 1000}
    core, lane, start, _ = found[number]
    yield {**common, "ph": "f", "bp": "e", "pid": core, "tid": lane, "ts": (start + 0.5) / 1000}


def _slice(
    name: str, core: int, thread: int, span: tuple[float, float], details: dict[str, Any]
) -> dict[str, Any]:
    start, end = span
    return {
        "ph": "X", "name": name, "cat": "nki", "pid": core, "tid": thread, "ts": start / 1000,
        "dur": max(end - start, 1.0) / 1000, "args": details,
    }  # fmt: skip


def _details(record: Record) -> dict[str, Any]:
    details: dict[str, Any] = {"at": str(record.site), "index": record.index}
    if record.name:
        details["name"] = record.name
    for side, accesses in (("writes", record.writes), ("reads", record.reads)):
        if accesses:
            details[side] = [
                f"{a.allocation.name or 'tensor'} {a.allocation.buffer.value} {a.dtype}"
                f"{list(a.shape)} {a.nbytes} B"
                for a in accesses
            ]
    return details


def _names(
    report: Report, found: list[tuple[int, int, float, float]], threads: dict[int, int]
) -> Iterator[dict[str, Any]]:
    pairs = {(core, lane): LANES[lane] for core, lane, _, _ in found}
    for number, thread in threads.items():
        lane, part = divmod(thread - _QUEUES, _SPLIT)
        pairs[found[number][0], thread] = f"DMA of {LANES[lane]}" + (f" {part}" if part else "")
    for core in {core for core, _ in pairs}:
        yield _name("process_name", core, 0, f"{report.name}, core {core}")
    for (core, thread), name in sorted(pairs.items()):
        yield _name("thread_name", core, thread, name)
        yield {"ph": "M", "name": "thread_sort_index", "pid": core, "tid": thread,
               "args": {"sort_index": thread}}  # fmt: skip


def _name(kind: str, core: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": core, "tid": thread, "args": {"name": name}}
