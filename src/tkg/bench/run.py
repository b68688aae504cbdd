"""One row of the benchmark: load every contestant, check its answer, then time them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tkg
from tkg import machine
from tkg.bench import inputs, rotation
from tkg.bench.check import Expected
from tkg.bench.inputs import Call
from tkg.bench.peers import CannotRun, Contestant, Peer, Setup
from tkg.bench.timing import Clock, Times, interleaved, wall
from tkg.bench.workloads import Row
from tkg.contract.cost import Cost, cost
from tkg.testing.budgets import Computes
from tkg.testing.verify import computes

WARM_UP_RUNS = 3
"""Untimed runs before the first turn: they compile, pack weights and start threads."""


@dataclass(frozen=True)
class Place:
    """Where the contestants run, and how time and memory are measured there.

    Attributes:
        computes: what tkg's intermediates are rounded to there, as in `tkg.testing.budgets`.
        cache_bytes: of the last cache before memory; `None` if the machine does not tell.
        margin: the copies together are so many times that cache.
        free_memory: bytes that weights and caches may still take.
        clock: measures a run.
        read: what memory gives at this moment, bytes a second; `None` if that does not change.
    """

    computes: Callable[[], Computes]
    cache_bytes: Callable[[], int | None]
    margin: int
    free_memory: Callable[[], int]
    clock: Clock
    read: Callable[[], float] | None = None


HOST = Place(
    computes=lambda: computes("cpu"),
    cache_bytes=lambda: rotation.last_level_cache(),
    margin=rotation.MARGIN,
    free_memory=lambda: rotation.free_memory(),
    clock=wall,
    read=lambda: machine.read_bandwidth_now(),
)
"""This machine's processors and main memory."""


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        threads: that tkg and every peer may use.
        rounds: turns of each contestant.
        seconds: timed of each contestant in each row, over all turns.
        place: where.
    """

    threads: int
    rounds: int = 7
    seconds: float = 0.7
    place: Place = HOST


@dataclass(frozen=True)
class Result:
    """How a contestant did on a row.

    Attributes:
        row, peer: what and who.
        state: "ok"; "wrong" (its answer is over its error budget; it was not timed); "error" (it
            broke); "refused" (it cannot run such a row); "absent" (it is not installed).
        note: the reason for any state but "ok".
        used: largest share of its error budget that the answer used, or `None`.
        copies: of the weights and caches in its rotation.
        cost: the least that must be moved and computed, in the formats that it computes in.
        times: seconds a call, if it was timed.
    """

    row: Row
    peer: Peer
    state: str
    note: str = ""
    used: float | None = None
    copies: int = 0
    cost: Cost | None = None
    times: Times | None = None

    @property
    def failed(self) -> bool:
        """Whether the command must not end well because of it."""
        return self.state in ("wrong", "error")


class _Loaded:
    """A contestant whose answer is right, waiting to be timed."""

    def __init__(self, contestant: Contestant, copies: int, used: float, work: Cost) -> None:
        self.contestant = contestant
        self.copies = copies
        self.used = used
        self.cost = work


def measure(
    row: Row, peers: Sequence[Peer], plan: Plan, say: Callable[[str], None] = lambda text: None
) -> list[Result]:
    """Results of all peers on a row, in their order.

    Args:
        row: what to run.
        peers: who takes part.
        plan: how long to measure.
        say: is told what is going on.
    """
    say(f"{row}: inputs")
    loading = _Loading(row, plan)
    loaded: dict[str, _Loaded] = {}
    results: dict[str, Result] = {}
    for peer in peers:
        say(f"{row}: checking {peer.name}")
        entered = loading.enter(peer)
        if isinstance(entered, Result):
            results[peer.name] = entered
        else:
            loaded[peer.name] = entered
    say(f"{row}: timing {', '.join(loaded) or 'nobody'}")
    contestants = [entry.contestant for entry in loaded.values()]
    for contestant in contestants:
        _warm_up(contestant)
    place = plan.place
    look = place.read or (lambda: None)
    taken = interleaved(contestants, plan.rounds, plan.seconds, place.clock, look)
    for (name, entry), times in zip(loaded.items(), taken, strict=True):
        peer = next(peer for peer in peers if peer.name == name)
        results[name] = Result(
            row, peer, "ok", "", entry.used, entry.copies, entry.cost, times=times
        )
    return [results[peer.name] for peer in peers]


def _warm_up(contestant: Contestant) -> None:
    for _ in range(WARM_UP_RUNS):
        contestant.settle()
        contestant.run()


class _Loading:
    """Builds the contestants of a row and checks their answers."""

    def __init__(self, row: Row, plan: Plan) -> None:
        self._row = row
        self._threads = plan.threads
        self._place = plan.place
        self._base = inputs.distinct(row)
        self._times = row.batch // inputs.distinct_rows(row)
        self._calls: dict[str, tuple[Call, Expected]] = {}

    def _call(self, peer: Peer) -> tuple[Call, Expected]:
        """What the peer runs, for the distinct rows, and the right answer to it."""
        key = "" if peer.ours else peer.computes_in(self._row.dtype)
        if key not in self._calls:
            call = inputs.plain(self._base, key) if key else self._base
            how = "same dtype" if key else self._place.computes()
            self._calls[key] = call, Expected(call, how)
        return self._calls[key]

    def enter(self, peer: Peer) -> _Loaded | Result:
        """The peer, ready to be timed, or why it is not."""
        reason = peer.absent()
        if reason is not None:
            return Result(self._row, peer, "absent", reason)
        try:
            return self._built(peer)
        except (CannotRun, tkg.Unsupported) as error:
            return Result(self._row, peer, "refused", str(error))
        except Exception as error:
            if peer.ours:
                raise
            # A peer that breaks is a result of its own: the others still have theirs, and the
            # command fails in the end.
            text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            return Result(self._row, peer, "error", text)

    def _built(self, peer: Peer) -> _Loaded | Result:
        base, expected = self._call(peer)
        call = inputs.repeated(base, self._times)
        size = inputs.big_bytes(call)
        place = self._place
        copies = rotation.copies(size, place.cache_bytes(), place.margin)
        # Checking the answer takes about as much as the caches once more.
        need, free = (peer.memory * copies + 1) * size, place.free_memory()
        if need > 0.9 * free:
            raise CannotRun(f"needs {need / 2**30:.1f} GiB of memory; {free / 2**30:.1f} are free")
        contestant = peer.builder()(Setup(call, copies, self._threads))
        checks = expected.judge(contestant.answer())
        worst = max(checks, key=lambda check: check.used)
        if not worst.ok:
            note = f"{worst.what} is off by {worst.error:.2g}, allowed is {worst.budget:.2g}"
            return Result(self._row, peer, "wrong", note, worst.used, copies)
        described = tkg.describe(tkg.attention_block_tkg, **call)
        return _Loaded(contestant, copies, worst.used, cost(described))
