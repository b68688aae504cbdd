"""The critical path of a timeline: what each moment waited for, from the end backwards."""

from __future__ import annotations

from typing import NamedTuple

from .chips import DmaTiming
from .costs import LANES, Cost, Transfer
from .record import Record
from .schedule import Timeline


class Step(NamedTuple):
    """A stretch of the critical path, in nanoseconds; `what` names what it was spent on."""

    record: Record
    start_ns: float
    end_ns: float
    what: str


def critical_path(timeline: Timeline, dma: DmaTiming) -> list[Step]:
    """Steps without a gap from the start of the program to its end."""
    steps: list[Step] = []
    if not timeline.records:
        return steps
    number = max(range(len(timeline.done)), key=timeline.done.__getitem__)
    at = timeline.done[number]
    by_result = True  # or by what its engine (a DMA's sequencer) was held for
    while True:
        what = timeline.costs[number]
        if isinstance(what, Transfer) and by_result:
            number, at, by_result = _back_through_data(timeline, dma, number, at, steps)
            if by_result:
                continue
        else:
            spent = _held_for(timeline.records[number], what)
            _add(steps, timeline, number, timeline.start[number], at, spent)
            at = timeline.start[number]
        cause = timeline.cause[number]
        if cause < 0:
            break
        by_result = bool(timeline.by_data[number])
        reached = timeline.done[cause] if by_result else timeline.held[cause]
        if by_result and reached < at:
            _add(steps, timeline, number, reached, at, "semaphores")
        number, at = cause, min(reached, at)
    if at > 0.0:
        _add(steps, timeline, number, 0.0, at, "start")
    return steps[::-1]


def _held_for(record: Record, what: Cost | Transfer) -> str:
    if "meeting" in record.work:
        return "meeting other cores"
    name = LANES[what.lane]
    return f"DMA triggers on {name}" if isinstance(what, Transfer) else name


def _back_through_data(
    timeline: Timeline, dma: DmaTiming, number: int, at: float, steps: list[Step]
) -> tuple[int, float, bool]:
    """From a DMA's completion to its trigger, or (True) to the DMA that its data waited for."""
    what = timeline.costs[number]
    assert isinstance(what, Transfer)
    moving = timeline.moving[number]
    latency = dma.finish_ns + dma.stagger_ns * (what.last - what.first - 1)
    end = min(at, timeline.done[number] - latency)
    _add(steps, timeline, number, end, at, "DMA latency")
    _add(steps, timeline, number, moving, end, "DMA data")
    if timeline.behind[number] >= 0:
        return timeline.behind[number], moving, True
    start = timeline.start[number]
    _add(steps, timeline, number, start, moving, "DMA latency")
    return number, start, False


def _add(
    steps: list[Step], timeline: Timeline, number: int, start: float, end: float, what: str
) -> None:
    if end > start:
        steps.append(Step(timeline.records[number], start, end, what))


def shares(steps: list[Step]) -> dict[str, float]:
    """Fraction of the path by what it was spent on, the largest first."""
    total = sum(step.end_ns - step.start_ns for step in steps)
    table: dict[str, float] = {}
    for step in steps:
        table[step.what] = table.get(step.what, 0.0) + step.end_ns - step.start_ns
    return {what: spent / total for what, spent in sorted(table.items(), key=lambda pair: -pair[1])}
