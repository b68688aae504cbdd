"""The programs of one launch take turns: one runs until it must wait for another.

That makes runs with several cores or ranks deterministic, lets a global name the running core, and
finds deadlocks: when nobody can run and somebody waits, nobody will ever come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from . import running
from .core import Core
from .errors import NkiHazardError


class _Stopped(BaseException):
    """Ends a waiting program after another one has failed."""


class _Turn:
    """One program: its core, what it runs, what it waits for."""

    def __init__(self, core: Core, body: Callable[[], Any]):
        self.core = core
        self.body = body
        self.go = threading.Semaphore(0)
        self.waits_for: str | None = None
        self.done = False
        self.result: Any = None


class Turns:
    """Runs one body a core to its end; `meet` is the only place where a program waits."""

    def __init__(self) -> None:
        self.turns: list[_Turn] = []
        self.tables: dict[Hashable, dict[int, Any]] = {}
        self.finished = threading.Semaphore(0)
        self.error: BaseException | None = None

    def run(self, bodies: list[tuple[Core, Callable[[], Any]]]) -> list[Any]:
        """The results, in the order of the bodies; the first error of any program is raised."""
        if len(bodies) == 1:
            core, body = bodies[0]
            return [on_core(core, body)]
        self.turns = [_Turn(core, body) for core, body in bodies]
        threads = [
            threading.Thread(target=self._program, args=(turn,), daemon=True) for turn in self.turns
        ]
        before = running.core
        for thread in threads:
            thread.start()
        self.turns[0].go.release()
        self.finished.acquire()
        for thread in threads:
            thread.join()
        running.core = before  # the last program to end may have found another's core there
        if self.error is not None:
            raise self.error
        return [turn.result for turn in self.turns]

    def meet(
        self, key: Hashable, members: tuple[int, ...], payload: Any, what: str
    ) -> dict[int, Any]:
        """Wait until all `members` (core indices) have come to `key`; everyone's payload.

        `what` tells in a deadlock's report what this program waits for, line included.
        """
        me = running.current().index
        table = self.tables.setdefault(key, {})
        table[me] = payload
        absent = [member for member in members if member not in table]
        if not absent:
            del self.tables[key]
            for turn in self.turns:
                if turn.core.index in members:
                    turn.waits_for = None
            return table
        if len(self.turns) <= 1:
            raise NkiHazardError(f"deadlock: {what}, and no other core runs this kernel")
        turn = next(turn for turn in self.turns if turn.core.index == me)
        turn.waits_for = f"{what}; not there: core {', core '.join(map(str, absent))}"
        self._next(turn)
        turn.go.acquire()
        if self.error is not None:
            raise _Stopped
        running.core = turn.core
        return table

    def _program(self, turn: _Turn) -> None:
        turn.go.acquire()
        try:
            if self.error is None:
                turn.result = on_core(turn.core, turn.body)
        except _Stopped:
            pass
        except BaseException as error:
            if self.error is None:
                self.error = error
        turn.done = True
        self._next(turn)

    def _next(self, turn: _Turn) -> None:
        """Hand over to the next program that can run, in order of cores."""
        at = self.turns.index(turn)
        order = self.turns[at + 1 :] + self.turns[: at + 1]
        left = [other for other in order if not other.done]
        if not left:
            self.finished.release()
            return
        ready = [other for other in left if other.waits_for is None]
        if not ready and self.error is None:
            self.error = NkiHazardError(self._deadlock())
        (left if self.error is not None else ready)[0].go.release()

    def _deadlock(self) -> str:
        lines = ["deadlock: no program can go on"]
        for turn in self.turns:
            state = "has finished" if turn.done else f"waits: {turn.waits_for}"
            lines.append(f"  core {turn.core.index} {state}")
        return "\n".join(lines)


def on_core(core: Core, body: Callable[[], Any]) -> Any:
    """Run a body as this core's program. Infinities and NaNs are values here, not warnings."""
    before = running.core
    running.core = core
    running.thread.inside = True
    try:
        with np.errstate(all="ignore"):
            return body()
    finally:
        running.core = before
        running.thread.inside = False
