"""When each instruction runs: engines, DMA triggers and DMA engines of all cores, event by event.

Each engine takes, of the instructions whose dependencies are met, the first in program order: the
compiler may reorder within dependencies, and buffers bound how far it runs ahead. A DMA holds its
trigger's sequencer, then moves its data on its DMA engines in order of arrival, then tells its
waiters. All times are nanoseconds from the start of the program.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

from .chips import Chip
from .costs import LANES, TENSOR, Cost, Transfer, cost, kind, meeting_ns
from .dependencies import Waits
from .errors import NkiValidationError
from .program import Program
from .record import Record

_LANES = len(LANES)
_FOREVER = float("inf")


class Timeline:
    """The times of all records, numbered core after core (`base[core] + record.index`).

    `start`: the engine (or the trigger's sequencer) takes it; `held`: it lets go; `done`: the
    result can be used. Of a DMA, `moving`: its data begins to move. `cause`: the record that it
    waited for last, a producer (`by_data`) or the one before it on its engine; -1 for none.
    """

    def __init__(self, records: list[Record], base: list[int]):
        count = len(records)
        self.records = records
        self.base = base
        self.costs: list[Cost | Transfer] = []
        self.start = [0.0] * count
        self.held = [0.0] * count
        self.done = [0.0] * count
        self.moving = [-1.0] * count
        self.cause = [-1] * count
        self.by_data = bytearray(count)
        self.behind = [-1] * count  # of a DMA: the one whose data its own waited for
        self.dma_busy_ns: list[float] = []  # a core: sum over its DMA engines

    @property
    def end_ns(self) -> float:
        return max(self.done, default=0.0)


def schedule(program: Program, waits: Waits) -> Timeline:
    """Run the clock. NkiValidationError if schedules or `depends_on` make a circle."""
    run = _Clock(program, waits)
    run.run()
    return run.timeline


class _Clock:
    def __init__(self, program: Program, waits: Waits):
        self.program = program
        self.chip: Chip = program.chip
        self.cores = program.cores
        records: list[Record] = []
        base: list[int] = []
        for core in self.cores:
            base.append(len(records))
            records += core.records or ()
        self.timeline = Timeline(records, base)
        self._prepare(waits)
        lanes = _LANES * len(self.cores)
        self.free = [0.0] * lanes
        self.last = [-1] * lanes
        self.queues: list[list[int]] = [[] for _ in range(lanes)]
        self.armed = [False] * lanes
        self.tables: list[str | None] = [None] * lanes
        # When a core's DMA engines are free: one time (`level`) while it is the same for all.
        self.level: list[float | None] = [0.0] * len(self.cores)
        self.engines: list[list[float]] = [[] for _ in self.cores]
        self.last_dma = [-1] * len(self.cores)
        self.hbm_until = [0.0] * len(self.cores)
        self.timeline.dma_busy_ns = [0.0] * len(self.cores)
        self.shares = len(self.cores) > 1
        self.met: dict[Any, list[tuple[int, float]]] = {}
        self.ramps = [_Ramp(self.chip) for _ in self.cores]

    def _prepare(self, waits: Waits) -> None:
        """Costs and lanes of all records."""
        timeline, chip = self.timeline, self.chip
        known: dict[Any, Cost | Transfer] = {}
        costs = timeline.costs
        self.lanes: list[int] = []
        for record in timeline.records:
            if "meeting" in record.work:
                found = cost(record, chip)
            else:
                key = kind(record)
                found = known.get(key)
                if found is None:
                    found = known[key] = cost(record, chip)
            costs.append(found)
            self.lanes.append(found.lane + _LANES * record.core)
        self._connect(waits)

    def _connect(self, waits: Waits) -> None:
        """Successors of all records; within no_reorder each engine keeps the program's order."""
        count = len(self.lanes)
        self.ready = [0.0] * count
        self.left: list[int] = []
        self.successors: list[list[int] | None] = [None] * count
        successors = self.successors
        for base, core in zip(self.timeline.base, waits, strict=True):
            for number, needs in enumerate(core, base):
                self.left.append(len(needs))
                for need in needs:
                    after = successors[need + base]
                    if after is None:
                        successors[need + base] = [number]
                    else:
                        after.append(number)
        self.followers: dict[int, int] = {}
        last: dict[int, int] = {}
        for number, record in enumerate(self.timeline.records):
            if "ordered" in record.work:
                lane = self.lanes[number]
                if lane in last:
                    self.followers[last[lane]] = number
                    self.left[number] += 1
                last[lane] = number

    # -- the event loop -------------------------------------------------------------------------

    def run(self) -> None:
        """Events are (time, code): a lane becomes free (code < 0), a record becomes ready (even), a
        DMA's data may move (odd)."""
        free, queues, lanes, armed = self.free, self.queues, self.lanes, self.armed
        self.events = events = [(0.0, 2 * n) for n, left in enumerate(self.left) if not left]
        begun = 0
        while events:
            time, code = heappop(events)
            if code < 0:
                lane = -code - 1
                armed[lane] = False
                queue = queues[lane]
                if free[lane] > time:
                    if free[lane] < _FOREVER:
                        armed[lane] = True
                        heappush(events, (free[lane], code))
                    continue
                number = heappop(queue)
            elif code & 1:
                self._move(code >> 1, time)
                continue
            else:
                number = code >> 1
                lane = lanes[number]
                queue = queues[lane]
                if queue or free[lane] > time:
                    heappush(queue, number)
                    if not armed[lane] and free[lane] < _FOREVER:
                        armed[lane] = True
                        heappush(events, (free[lane] if free[lane] > time else time, -lane - 1))
                    continue
            begun += 1
            self._begin(number, lane, time)
            if number in self.followers and free[lane] < _FOREVER:
                self._follow(number, free[lane])
            if queue and not armed[lane] and free[lane] < _FOREVER:
                armed[lane] = True
                heappush(events, (free[lane], -lane - 1))
        if begun < len(lanes):
            self._stuck()

    def _begin(self, number: int, lane: int, time: float) -> None:
        """An engine takes an instruction."""
        timeline = self.timeline
        before, free = self.last[lane], self.free[lane]
        if before >= 0 and free >= self.ready[number]:
            timeline.cause[number] = before
            timeline.by_data[number] = 0
        self.last[lane] = number
        what = timeline.costs[number]
        timeline.start[number] = time
        if isinstance(what, Transfer):
            trigger = what.trigger
            self.free[lane] = timeline.held[number] = time + trigger.issue_ns
            heappush(self.events, (time + trigger.start_ns, 2 * number + 1))
            return
        if lane % _LANES == TENSOR:
            self._multiply(number, lane, time, what)
            return
        if "meeting" in timeline.records[number].work:
            self._meet(number, lane, time)
            return
        begin = time
        if what.table is not None and what.table != self.tables[lane]:
            # The table needs no data: it loads while the engine waits.
            self.tables[lane] = what.table
            begin = max(time, free + what.lead_ns)
        held = begin + what.hold_ns
        self.free[lane] = timeline.held[number] = held
        self._finish(number, lane, begin + what.latency_ns, held)

    def _follow(self, number: int, time: float) -> None:
        """The next instruction of a no_reorder block on this engine may go now."""
        follower = self.followers[number]
        if time > self.ready[follower]:
            self.ready[follower] = time
        self.left[follower] -= 1
        if not self.left[follower]:
            heappush(self.events, (self.ready[follower], 2 * follower))

    def _multiply(self, number: int, lane: int, time: float, what: Cost) -> None:
        """The stationary load hides behind the multiply before, unless its operands come late."""
        ready = self.ready[number]
        begin = ready + what.lead_ns
        if begin < time:
            begin = time
        held = self.ramps[lane // _LANES].run(begin, what.hold_ns)
        self.free[lane] = self.timeline.held[number] = held
        self._finish(number, lane, held - what.hold_ns + what.latency_ns, held)

    def _finish(self, number: int, lane: int, done: float, held: float) -> None:
        """Tell the waiters; those for which it was the last one become ready."""
        timeline = self.timeline
        timeline.done[number] = done
        after = self.successors[number]
        if after is None:
            return
        ready, left, lanes = self.ready, self.left, self.lanes
        semaphore = self.chip.sync.semaphore_ns
        tensor = lane % _LANES == TENSOR
        for waiter in after:
            if lanes[waiter] != lane:
                time = done + semaphore
            elif tensor:
                # Two multiplies only meet in PSUM, where they add in order: the second one's
                # operands are not late, and its stationary load hides as ever.
                time = 0.0
            else:
                time = done
            if time >= ready[waiter]:
                ready[waiter] = time
                timeline.cause[waiter] = number
                timeline.by_data[waiter] = 1
            left[waiter] -= 1
            if not left[waiter]:
                heappush(self.events, (ready[waiter], 2 * waiter))

    # -- DMA ------------------------------------------------------------------------------------

    def _move(self, number: int, time: float) -> None:
        """A DMA's data arrives at the DMA engines: first come, first served, engine by engine."""
        timeline, dma = self.timeline, self.chip.dma
        what = timeline.costs[number]
        assert isinstance(what, Transfer)
        core = timeline.records[number].core
        service = (
            what.service_ns * self._contention(core, time)
            if self.shares and what.hbm
            else what.service_ns
        )
        first, last = what.first, what.last
        level = self.level[core]
        if level is not None and last - first == dma.engines:
            begin = level if level > time else time
            end = self.level[core] = begin + service
        else:
            begin, end = self._on_some(core, (first, last), time, service)
        timeline.moving[number] = begin
        if begin > time:
            timeline.behind[number] = self.last_dma[core]
        self.last_dma[core] = number
        timeline.dma_busy_ns[core] += service * (last - first)
        if what.hbm and end > self.hbm_until[core]:
            self.hbm_until[core] = end
        done = end + dma.finish_ns + dma.stagger_ns * (last - first - 1)
        # The semaphore's way is in finish_ns.
        self._finish(number, -1, done - self.chip.sync.semaphore_ns, done)
        timeline.done[number] = done

    def _on_some(
        self, core: int, which: tuple[int, int], time: float, service: float
    ) -> tuple[float, float]:
        """Data on some of a core's DMA engines, or on all while they differ: (begin, end)."""
        level = self.level[core]
        if level is not None:
            self.engines[core] = [level] * self.chip.dma.engines
            self.level[core] = None
        engines = self.engines[core]
        first, last = which
        begin = max(min(engines[first:last]), time)
        if last - first == len(engines) and max(engines) <= time:
            self.level[core] = time + service
            return time, time + service
        end = begin
        for engine in range(first, last):
            free = engines[engine]
            free = (free if free > time else time) + service
            engines[engine] = free
            if free > end:
                end = free
        return begin, end

    def _contention(self, core: int, time: float) -> float:
        """Two cores of a device share an HBM stack: slower while the other moves data too."""
        dma = self.chip.dma
        mine = self.cores[core]
        sharing = 1 + sum(
            other.rank == mine.rank and other.index != core and self.hbm_until[other.index] > time
            for other in self.cores
        )
        return max(1.0, sharing * dma.engines * dma.bytes_per_ns / self.chip.stack_bytes_per_ns)

    # -- meetings -------------------------------------------------------------------------------

    def _meet(self, number: int, lane: int, time: float) -> None:
        """The lane waits until all participants are here."""
        timeline = self.timeline
        record = timeline.records[number]
        self.free[lane] = _FOREVER
        key = record.work["meeting"]
        here = self.met.setdefault(key, [])
        here.append((number, time))
        members = record.work.get("members") or (record.core,)
        if len(here) < len(members):
            return
        del self.met[key]
        ranks = len({self.cores[member].rank for member in members})
        done = time + max(
            meeting_ns(timeline.records[other], self.chip, ranks) for other, _ in here
        )
        for other, _ in here:
            theirs = self.lanes[other]
            if other != number:
                timeline.cause[other], timeline.by_data[other] = number, 1
            self.free[theirs] = timeline.held[other] = done
            self._finish(other, theirs, done, done)
            if other in self.followers:
                self._follow(other, done)
            if self.queues[theirs] and not self.armed[theirs]:
                self.armed[theirs] = True
                heappush(self.events, (done, -theirs - 1))

    def _stuck(self) -> None:
        timeline = self.timeline
        waiting = [n for n, left in enumerate(self.left) if left]
        first = timeline.records[waiting[0]] if waiting else timeline.records[0]
        raise NkiValidationError(
            f"{first.site}: {first.op} waits for itself: with_schedule or depends_on make a circle"
            f" ({len(waiting)} instructions never start); remove an edge"
        )


class _Ramp:
    """The Tensor engine's clock: slow for a while after a window of too little use."""

    def __init__(self, chip: Chip):
        self.window = chip.tensor.ramp_ns
        self.slow = 1.0 / chip.tensor.cold_speed
        self.cold_until = self.window
        self.opened = 0.0
        self.used = 0.0
        self.ended = 0.0
        self.first = True

    def run(self, start: float, hold_ns: float) -> float:
        """The end of a multiply that takes hold_ns at full clock. Work at half the clock is use
        for as long as it takes: an engine that never pauses ramps up."""
        if not self.window:
            return start + hold_ns
        if self.first or start - self.ended > self.window:
            self.cold_until = start + self.window
            self.opened, self.used, self.first = start, 0.0, False
        elif start - self.opened >= self.window:
            if self.used < 0.5 * (start - self.opened):
                self.cold_until = start + self.window
            self.opened, self.used = start, 0.0
        end = start + hold_ns * (self.slow if start < self.cold_until else 1.0)
        self.used += end - start
        self.ended = end
        return end
