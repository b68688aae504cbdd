"""How the ranks of a collective meet: everyone brings values, everyone takes what is theirs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from . import rules, running
from .core import Core
from .enums import engine as Engine
from .errors import NkiHazardError
from .isa.cores import meeting
from .memory import Site
from .operands import value, write_bits
from .record import NkiInstruction
from .tensor import NkiTensor

Tensors = Sequence[NkiTensor]
Arrays = list[np.ndarray]
# What each rank of the group brought (in the group's order), this rank's place in it: the results.
Combine = Callable[[list[Arrays], int], Arrays]


class _Parcel(NamedTuple):
    """A core's values (those of its rank, if it is the rank's first core); what it takes the
    collective to be."""

    values: Arrays
    idea: Hashable
    count: int
    site: Site


class Collective(NamedTuple):
    """One collective as the calling core sees it. All must have the same `idea` of it."""

    op: str
    group: tuple[int, ...]
    idea: Hashable
    name: str | None


def collect(call: Collective, srcs: Tensors, dsts: Tensors, combine: Combine) -> NkiInstruction:
    """Exchange the sources within the group and store what `combine` makes of them."""
    core = running.current()
    op, group = call.op, call.group
    first = core.program_id == 0
    values = [np.array(value(op, f"srcs[{i}]", src)) for i, src in enumerate(srcs)] if first else []
    members = _members(op, core, group)
    parcel = _Parcel(values, call.idea, len(core.records or ()), running.site())
    meet = core.program.turns.meet
    met = meet((op, group), members, parcel, f"{op} at {parcel.site}")
    _agree(op, parcel, met)
    if first:
        cores = core.program.cores
        brought = {
            cores[i].rank: given.values for i, given in met.items() if cores[i].program_id == 0
        }
        results = combine([brought[rank] for rank in group], group.index(core.rank))
        for dst, result in zip(dsts, results, strict=True):
            write_bits(dst, result)
    if core.programs > 1:
        # Nobody goes on before the first core of each rank has stored.
        meet((op, group, "stored"), members, None, f"{op} at {parcel.site}")
    key = meeting(op, {index: given.count for index, given in met.items()})
    return core.issue(
        op, Engine.dma, tuple(srcs), tuple(dsts), call.name,
        meeting=key, members=members, moves=first,
    )  # fmt: skip


def _members(op: str, core: Core, group: tuple[int, ...]) -> tuple[int, ...]:
    cores = core.program.cores
    missing = set(group) - {other.rank for other in cores}
    if missing:
        rules.refuse(
            op, "replica_group", f"rank {min(missing)} is in it, but the run has"
            f" {cores[-1].rank + 1} ranks", "run_ranks with one call a rank",
        )  # fmt: skip
    return tuple(other.index for other in cores if other.rank in group)


def _agree(op: str, mine: _Parcel, met: dict[int, _Parcel]) -> None:
    for index, theirs in met.items():
        if theirs.idea != mine.idea:
            raise NkiHazardError(
                f"{mine.site}: {op}: this core calls it with {mine.idea}, core {index} with"
                f" {theirs.idea} at {theirs.site}; all ranks of a group must agree"
            )
