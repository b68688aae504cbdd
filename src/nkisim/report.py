"""The report of a run: modelled time, traffic, memory, findings. Nothing here was measured.

Placement and hazards are worked out at once (they may raise); everything else when it is asked for.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .costs import LANES, Cost, Transfer
from .critical import Step, critical_path, shares
from .dependencies import Schedule, Waits, dependencies
from .enums import PSUM, SBUF, MemoryRegion
from .hazards import find_hazards
from .placement import Placement, place
from .program import Finding, Program
from .schedule import Timeline, schedule
from .traffic import TensorTraffic, traffic


class EngineUse(NamedTuple):
    """How busy an engine of a core was: the time that its instructions held it, modelled."""

    core: int
    engine: str
    instructions: int
    busy_us: float
    utilisation: float


class Report:
    """What is known of a finished run. Times are modelled (docs/nkisim.md), bytes are counted."""

    def __init__(self, program: Program, edges: Schedule = ()):
        self.program = program
        self.edges = edges

    @classmethod
    def of(cls, program: Program, schedule_edges: Schedule = ()) -> Report:
        """The report; raises NkiValidationError if on-chip memory overflows and NkiHazardError for
        what nothing orders, as the run's options say."""
        report = cls(program, schedule_edges)
        if program.options.observe and program.options.checks != "off":
            with _no_collection():
                _ = report.placement
                if report._in_doubt():
                    find_hazards(program, lambda: report.waits)
        return report

    def _in_doubt(self) -> bool:
        return len(self.program.cores) > 1 or any(
            record.work.get("indirect", "none") != "none"
            for core in self.program.cores
            for record in core.records or ()
        )

    # -- the passes -----------------------------------------------------------------------------

    @cached_property
    def placement(self) -> Placement:
        """Addresses and lifetimes of on-chip tensors."""
        return place(self.program, strict=self.program.options.checks != "off")

    @cached_property
    def waits(self) -> Waits:
        """[core][record]: the records that it waits for."""
        placement = self.placement
        with _no_collection():
            return dependencies(self.program, placement, self.edges)

    @cached_property
    def timeline(self) -> Timeline:
        """When each instruction ran, modelled."""
        waits = self.waits
        with _no_collection():
            return schedule(self.program, waits)

    # -- time -----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def findings(self) -> list[Finding]:
        return self.program.findings

    @property
    def latency_us(self) -> float:
        """From the first instruction to the last result, without a launch's overhead; NaN if the
        run was not observed."""
        if not self.program.options.observe:
            return float("nan")
        return self.timeline.end_ns / 1000

    @cached_property
    def engines(self) -> list[EngineUse]:
        """Each engine that got an instruction; a DMA counts for its trigger's engine."""
        timeline = self.timeline
        busy: Counter[tuple[int, int]] = Counter()
        count: Counter[tuple[int, int]] = Counter()
        for number, record in enumerate(timeline.records):
            lane = (record.core, timeline.costs[number].lane)
            busy[lane] += timeline.held[number] - timeline.start[number]  # type: ignore[assignment]
            count[lane] += 1
        total = timeline.end_ns or 1.0
        return [
            EngineUse(core, LANES[lane], count[core, lane], spent / 1000, spent / total)
            for (core, lane), spent in sorted(busy.items())
        ]

    @cached_property
    def dma_active(self) -> list[float]:
        """A core: fraction of the time with a DMA between its trigger and its completion."""
        timeline = self.timeline
        spans: list[list[tuple[float, float]]] = [[] for _ in self.program.cores]
        for number, record in enumerate(timeline.records):
            if timeline.moving[number] >= 0:
                spans[record.core].append((timeline.start[number], timeline.done[number]))
        return [_covered(pairs) / (timeline.end_ns or 1.0) for pairs in spans]

    @cached_property
    def dma_busy(self) -> list[float]:
        """A core: fraction of its DMA engines' time in which they moved data."""
        whole = (self.timeline.end_ns or 1.0) * self.program.chip.dma.engines
        return [busy / whole for busy in self.timeline.dma_busy_ns]

    @cached_property
    def critical_path(self) -> list[Step]:
        """What the run's end waited for, in order."""
        return critical_path(self.timeline, self.program.chip.dma)

    @cached_property
    def bounds(self) -> dict[str, float]:
        """Fractions of the critical path by what they were spent on."""
        return shares(self.critical_path)

    @property
    def bound(self) -> str:
        """What most of the critical path was spent on: an engine, DMA data, triggers or latency."""
        return next(iter(self.bounds), "nothing")

    # -- work -----------------------------------------------------------------------------------

    @cached_property
    def instructions(self) -> dict[str, int]:
        """How many of each instruction ran, most first."""
        count = Counter(r.op for core in self.program.cores for r in core.records or ())
        return dict(count.most_common())

    @cached_property
    def flops(self) -> float:
        """Multiplies and adds of the Tensor engine's matrix multiplies."""
        return sum(what.flops for what in self.timeline.costs if isinstance(what, Cost))

    @property
    def mfu(self) -> float:
        """`flops` against the bfloat16 peak of the cores, as AWS's profiler counts."""
        peak = self.program.chip.tflops * 1e12 * len(self.program.cores)
        return self.flops / (peak * self.timeline.end_ns * 1e-9) if self.timeline.end_ns else 0.0

    @cached_property
    def tensors(self) -> list[TensorTraffic]:
        """HBM traffic by tensor, most first."""
        return traffic(self.program)

    @cached_property
    def dma_bytes(self) -> int:
        """Bytes moved by DMA, within the chip included."""
        return sum(what.nbytes for what in self.timeline.costs if isinstance(what, Transfer))

    @property
    def hbm_read_bytes(self) -> int:
        return sum(tensor.read_bytes for tensor in self.tensors)

    @property
    def hbm_written_bytes(self) -> int:
        return sum(tensor.written_bytes for tensor in self.tensors)

    @property
    def least_bytes(self) -> int:
        """HBM bytes with each used input byte read once, each output byte written once."""
        return sum(t.least_read_bytes + t.least_written_bytes for t in self.tensors)

    @property
    def mbu(self) -> float:
        """HBM bytes against the bandwidth of the stack that a device's cores share."""
        stacks = len({core.rank for core in self.program.cores})
        room = self.timeline.end_ns * self.program.chip.stack_bytes_per_ns * stacks
        return (self.hbm_read_bytes + self.hbm_written_bytes) / room if room else 0.0

    # -- memory ---------------------------------------------------------------------------------

    def high_water(self, region: MemoryRegion) -> int:
        """The most bytes of a partition alive at one time, on the fullest core."""
        return max((m.peak for m in self.placement.memories if m.region is region), default=0)

    @property
    def sbuf_high_water(self) -> int:
        return self.high_water(SBUF)

    @property
    def psum_high_water(self) -> int:
        return self.high_water(PSUM)

    # -- output ---------------------------------------------------------------------------------

    def __str__(self) -> str:
        from .table import table

        return table(self)

    def __repr__(self) -> str:
        return f"<Report of {self.name}>"

    def trace(self, path: str) -> None:
        """Write a Chrome trace (JSON), for ui.perfetto.dev or chrome://tracing."""
        from .trace import write_trace

        write_trace(self, path)

    def plot(self, path: str) -> None:
        """Draw the timeline of all engines (PNG, SVG or PDF by its name; needs matplotlib)."""
        from .pictures import plot_timeline

        plot_timeline(self, path)

    def memory_map(self, path: str) -> None:
        """Draw SBUF and PSUM, address by time (needs matplotlib)."""
        from .pictures import plot_memory

        plot_memory(self, path)


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    if not spans:
        return 0.0
    start, end = np.array(sorted(spans)).T
    reach = np.maximum.accumulate(end)
    before = np.concatenate(([start[0]], reach[:-1]))
    return float(np.maximum(reach - np.maximum(start, before), 0).sum())


@contextmanager
def _no_collection() -> Iterator[None]:
    """The passes make millions of objects that stay; walking them again and again takes half the
    time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
