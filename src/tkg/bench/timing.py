"""Times of several contestants, taken in turns so that the host's noise hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

PAUSE_SECONDS = 0.01
"""Between turns: thread pools that wait actively for more work have gone to sleep by then."""

LEAST_CALLS = 2
"""Timed calls of a turn, at the least."""


class Runnable(Protocol):
    """What can be timed: `run` is the next call; `settle`, before each, is not timed."""

    calls_per_run: int

    def settle(self) -> None: ...
    def run(self) -> None: ...


@dataclass(frozen=True)
class Turn:
    """One turn of a contestant.

    Attributes:
        seconds: a call, the median of the turn.
        read: what memory gave just then, bytes a second, the mean of a look before and one after;
            `None` if nobody looks.
    """

    seconds: float
    read: float | None = None


@dataclass(frozen=True)
class Times:
    """Seconds a call.

    Attributes:
        seconds: one number a timed run, divided by its calls.
        calls: how many calls were timed.
        turns: one a round.
    """

    seconds: tuple[float, ...]
    calls: int
    turns: tuple[Turn, ...]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median, third quartile."""
        low, middle, high = np.percentile(self.seconds, (25, 50, 75))
        return float(low), float(middle), float(high)


Clock = Callable[[Callable[[], None]], float]
"""Runs something and says how many seconds it took."""


def wall(run: Callable[[], None]) -> float:
    """The clock of code that has done its work when it returns."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleaved(
    contestants: Sequence[Runnable],
    rounds: int,
    seconds: float,
    clock: Clock = wall,
    look: Callable[[], float | None] = lambda: None,
) -> list[Times]:
    """Time every contestant in each of the rounds.

    Args:
        contestants: warmed up.
        rounds: each starts with another contestant, so that none always follows the same one.
        seconds: how long each is timed, over all rounds.
        clock: that measures a run.
        look: what memory gives at this moment, bytes a second.
    """
    taken: list[list[float]] = [[] for _ in contestants]
    turns: list[list[Turn]] = [[] for _ in contestants]
    order = list(range(len(contestants)))
    before = look()
    for _ in range(rounds):
        for index in order:
            spent = _turn(contestants[index], seconds / rounds, clock)
            after = look()
            read = None if before is None or after is None else (before + after) / 2
            taken[index] += spent
            turns[index].append(Turn(float(np.median(spent)), read))
            before = after
        order = order[1:] + order[:1]
    return [
        Times(tuple(spent), len(spent) * contestant.calls_per_run, tuple(own))
        for spent, own, contestant in zip(taken, turns, contestants, strict=True)
    ]


def _turn(contestant: Runnable, seconds: float, clock: Clock) -> list[float]:
    """Seconds a call of one turn's runs. An untimed run comes first: it wakes the threads up."""
    time.sleep(PAUSE_SECONDS)
    contestant.settle()
    contestant.run()
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while len(spent) < LEAST_CALLS or time.perf_counter() < end:
        contestant.settle()
        spent.append(clock(contestant.run) / contestant.calls_per_run)
    return spent
