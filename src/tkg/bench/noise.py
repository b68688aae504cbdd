"""How much of the machine others used meanwhile: whether the figures can be trusted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
TROUBLE = 0.1
"""Share of the processors' time from which on a warning is printed."""


@dataclass(frozen=True)
class _Moment:
    """Processor seconds so far: of all processors, of them busy or stolen, and this process's."""

    whole: float
    busy: float
    own: float


class Noise:
    """Counts from the moment it is made."""

    def __init__(self) -> None:
        self._start = _now()

    def others(self) -> float | None:
        """Share of all processors' time that other processes, or other machines on the same host
        ("steal"), took since then; `None` where the system does not tell."""
        end = _now()
        if self._start is None or end is None or end.whole <= self._start.whole:
            return None
        busy, own = end.busy - self._start.busy, end.own - self._start.own
        return max(0.0, busy - own) / (end.whole - self._start.whole)


def _now() -> _Moment | None:
    try:
        first = STAT.read_text().splitlines()[0].split()
    except FileNotFoundError:
        return None
    # proc_stat(5): user nice system idle iowait irq softirq steal, in clock ticks
    ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in first[1:9]]
    spent = os.times()
    own = spent.user + spent.system + spent.children_user + spent.children_system
    return _Moment(sum(ticks), sum(ticks) - ticks[3] - ticks[4], own)
