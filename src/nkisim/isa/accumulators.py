"""The reduction registers of the Vector and the Scalar engine: one float32 a lane.

They persist between instructions. Lane i here is the i-th partition that an instruction touches.
What they hold before the first reset, or after an instruction that may clobber them, is not known;
going on from there is a hazard.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import running
from ..core import Core
from ..enums import reduce_cmd as ReduceCmd
from ..operands import hazard
from .ops import Op

LANES = 128
VECTOR = "vector accumulators"
SCALAR = "scalar accumulators"


def _lanes(core: Core, which: str) -> np.ndarray:
    lanes = core.registers.get(which)
    if lanes is None:
        lanes = core.registers[which] = np.full(LANES, np.nan, np.float32)
        core.registers[which + " known"] = np.zeros(LANES, bool)
    return lanes


def forget(core: Core, which: str) -> None:
    """An instruction that does not use the registers may have changed them."""
    if which in core.registers:
        core.registers[which + " known"].fill(False)


def reset(core: Core, which: str, start: float) -> None:
    """All lanes hold an operator's identity."""
    _lanes(core, which).fill(start)
    core.registers[which + " known"].fill(True)


def load(core: Core, which: str, values: Any, count: int) -> None:
    """The first lanes hold a number, or a column."""
    _lanes(core, which)[:count] = values.reshape(-1) if isinstance(values, np.ndarray) else values
    core.registers[which + " known"][:count] = True


def read(core: Core, which: str, word: str, count: int) -> np.ndarray:
    """What the first lanes hold."""
    lanes = _lanes(core, which)
    if not core.registers[which + " known"][:count].all() and core.checks:
        hazard(
            "uninitialised accumulator",
            f"{running.site()}: {word}: reduce_cmd: continues from the {which}, which no"
            " instruction has set (or an idle one may have changed); use"
            " nisa.reduce_cmd.reset_reduce first",
        )
    return lanes[:count]


def reduce(core: Core, which: str, word: str, op: Op, values: np.ndarray, cmd: ReduceCmd) -> None:
    """Add the reduction of each partition's values to the registers, as `reduce_cmd` says."""
    count = values.shape[0]
    axes = tuple(range(1, values.ndim))
    part = op.reduce(values, axis=axes[0] if len(axes) == 1 else axes)
    if cmd is ReduceCmd.reset_reduce:
        reset(core, which, op.start)
        _lanes(core, which)[:count] = part
    else:
        before = read(core, which, word, count)
        load(core, which, op.reduce(np.stack((before, part)), axis=0), count)
