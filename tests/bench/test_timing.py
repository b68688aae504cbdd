"""Turns, rounds and quartiles."""

from __future__ import annotations

import pytest

from tkg.bench import timing
from tkg.bench.timing import Times, Turn, interleaved


class Fake:
    """Takes `seconds` on a clock that only it moves."""

    def __init__(self, clock: Clock, name: str, seconds: float, calls: int = 1) -> None:
        self.clock, self.name, self.seconds = clock, name, seconds
        self.calls_per_run = calls

    def settle(self) -> None:
        self.clock.now += 100.0  # must not be in anybody's time
        self.clock.log.append("settle")

    def run(self) -> None:
        self.clock.now += self.seconds
        self.clock.log.append(self.name)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.log.append("pause")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def test_everyone_has_a_turn_in_every_round(clock: Clock) -> None:
    fakes = [Fake(clock, "a", 1.0), Fake(clock, "b", 2.0), Fake(clock, "c", 8.0, calls=4)]
    a, b, c = interleaved(fakes, rounds=3, seconds=0.3)
    turns = "".join(entry for entry in clock.log if entry != "settle").split("pause")[1:]
    assert [turn[0] for turn in turns] == list("abcbcacab")
    assert all(turn == turn[0] * 3 for turn in turns)  # one untimed run, two timed ones
    assert clock.log.count("settle") == 9 * 3
    assert a.seconds == (1.0,) * 6 and a.calls == 6
    assert b.seconds == (2.0,) * 6
    assert c.seconds == (2.0,) * 6 and c.calls == 24


def test_a_turn_lasts_as_long_as_it_should(clock: Clock) -> None:
    fake = Fake(clock, "a", 1.0)
    fake.settle = lambda: None  # type: ignore[method-assign]
    (times,) = interleaved([fake], rounds=2, seconds=20.0)
    assert len(times.seconds) == 20


def test_a_turn_knows_what_memory_gave_around_it(clock: Clock) -> None:
    looks = iter(float(n) for n in range(100))
    fakes = [Fake(clock, "a", 1.0), Fake(clock, "b", 2.0)]
    a, b = interleaved(fakes, rounds=2, seconds=0.3, look=lambda: next(looks))
    assert a.turns == (Turn(1.0, 0.5), Turn(1.0, 3.5))  # a b, then b a
    assert b.turns == (Turn(2.0, 1.5), Turn(2.0, 2.5))
    (alone,) = interleaved(fakes[:1], rounds=1, seconds=0.3)
    assert alone.turns == (Turn(1.0, None),)


def test_quartiles() -> None:
    assert Times((5.0, 1.0, 4.0, 2.0, 3.0), 5, ()).quartiles == (2.0, 3.0, 4.0)
