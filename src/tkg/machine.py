"""This machine's measured ceilings: what memory and arithmetic units give at best."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from tkg.backends import cpu


@dataclass(frozen=True)
class Ceilings:
    """Measured by the C++ core with the threads that the cpu backend uses.

    Attributes:
        bytes_per_second: streaming read from memory.
        flops_per_second: float32 multiply-adds in registers, counted as 2 each.
    """

    bytes_per_second: float
    flops_per_second: float

    def better(self, other: Ceilings) -> Ceilings:
        """The higher of each: a measurement can only be too low."""
        return Ceilings(
            max(self.bytes_per_second, other.bytes_per_second),
            max(self.flops_per_second, other.flops_per_second),
        )


def ceilings() -> Ceilings | str:
    """The ceilings with the current number of threads, measured once; or why they are not known."""
    reason = cpu.unavailable()
    return reason if reason is not None else _measured(cpu.get_num_threads())


def measured_now() -> Ceilings:
    """The ceilings with the current number of threads, measured again.

    Raises:
        RuntimeError: there is no C++ core.
    """
    return Ceilings(cpu.measure_read_bandwidth(), cpu.measure_fma_rate())


def read_bandwidth_now() -> float:
    """What memory gives at this moment, bytes a second: the best of a few passes.

    Raises:
        RuntimeError: there is no C++ core.
    """
    return cpu.measure_read_bandwidth(repeats=3)


@functools.cache
def _measured(threads: int) -> Ceilings:
    del threads  # the key of the cache; the core reads its own setting
    return measured_now()
