"""The two cores of a logical NeuronCore (LNC=2) meeting: barrier and exchange of tiles.

Rules from the references of nki.isa.core_barrier and sendrecv.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from .. import rules, running
from ..core import Core
from ..enums import SHARED_HBM
from ..enums import dma_engine as DmaEngine
from ..enums import engine as Engine
from ..errors import NkiHazardError
from ..memory import Site
from ..operands import value, write_bits
from ..record import NkiInstruction
from ..tensor import NkiTensor

_BARRIER_ENGINES = (Engine.gpsimd, Engine.tensor, Engine.vector, Engine.scalar, Engine.sync)
_GPSIMD_BYTES = 256  # a partition, for each byte of the dtype


def core_barrier(
    data: NkiTensor,
    cores: tuple[int, ...],
    engine: Engine = Engine.gpsimd,
    name: str | None = None,
) -> NkiInstruction:
    """Wait until both cores are here with all their accesses to `data` (shared HBM) complete.

    Record: `meeting` (the same object on both cores), `members` (core indices).
    """
    op = "core_barrier"
    core = running.current()
    if core.checks:
        _paired(op, core)
        rules.tensors(op, data=data)
        if data.buffer is not SHARED_HBM:
            rules.refuse(op, "data", f"{data!r} is not in shared HBM", "a tensor of nl.shared_hbm")
        if tuple(cores) != (0, 1):
            rules.refuse(op, "cores", f"got {cores!r}", "(0, 1)")
    chosen = rules.choose(op, engine, _BARRIER_ENGINES)
    members = members_of(core)
    met = core.program.turns.meet(
        (op, core.rank), members, _count(core), f"core_barrier at {running.site()}"
    )
    return core.issue(
        op, chosen, (data,), (data,), name, meeting=meeting(op, met), members=members
    )  # fmt: skip


class _Parcel(NamedTuple):
    """What one core brings to an exchange."""

    values: np.ndarray
    dtype: str
    send_to: int
    receive_from: int
    program: int
    count: int
    site: Site


def sendrecv(
    src: NkiTensor,
    dst: NkiTensor,
    send_to_rank: int,
    recv_from_rank: int,
    pipe_id: int,
    dma_engine: DmaEngine = DmaEngine.dma,
    name: str | None = None,
) -> NkiInstruction:
    """Send `src` to a core and receive `dst` from one, both cores at once (SBUF, same shape and
    dtype).

    Record: `meeting`, `members`, `pipe`, `trigger` (GpSimd for `gpsimd_dma`).
    """
    op = "sendrecv"
    core = running.current()
    if core.checks:
        _paired(op, core)
        _exchange_legal(src, dst, (send_to_rank, recv_from_rank), dma_engine)
    values = np.array(value(op, "src", src))
    members = members_of(core)
    parcel = _Parcel(
        values,
        src.dtype,
        send_to_rank,
        recv_from_rank,
        core.program_id,
        _count(core),
        running.site(),
    )
    met = core.program.turns.meet(
        (op, core.rank, pipe_id),
        members,
        parcel,
        f"sendrecv with pipe_id {pipe_id} at {running.site()}",
    )
    write_bits(dst, _received(met[members[recv_from_rank]], parcel).values)
    by_gpsimd = dma_engine is DmaEngine.gpsimd_dma
    return core.issue(
        op, Engine.gpsimd if by_gpsimd else Engine.dma, (src,), (dst,), name,
        meeting=meeting(op, {index: given.count for index, given in met.items()}), members=members,
        pipe=pipe_id, trigger=Engine.gpsimd if by_gpsimd else Engine.unknown,
    )  # fmt: skip


def _received(theirs: _Parcel, mine: _Parcel) -> _Parcel:
    """The parcel that this core waits for; both sides must agree on it."""
    pair = f"core {mine.program} waits for core {theirs.program}"
    where = f"{mine.site}: sendrecv: recv_from_rank: {pair}"
    if theirs.send_to != mine.program:
        raise NkiHazardError(
            f"{where}, which sends to core {theirs.send_to} at {theirs.site}; make send_to_rank and"
            " recv_from_rank of the two cores fit each other"
        )
    if theirs.values.shape != mine.values.shape or theirs.dtype != mine.dtype:
        raise NkiHazardError(
            f"{where}, which sends {theirs.dtype}{list(theirs.values.shape)} at {theirs.site}, but"
            f" this core's tiles are {mine.dtype}{list(mine.values.shape)}; use equal tiles"
        )
    return theirs


def members_of(core: Core) -> tuple[int, ...]:
    """Core indices of all programs of this core's launch and device."""
    first = core.index - core.program_id
    return tuple(range(first, first + core.programs))


def meeting(op: str, counts: dict[int, int]) -> Hashable:
    """A key that all who met share and no other meeting has: who came, and at which record."""
    return op, tuple(sorted(counts.items()))


def _count(core: Core) -> int:
    return len(core.records or ())


def _paired(op: str, core: Core) -> None:
    if core.chip.generation < 3:
        rules.refuse(op, "target", f"{core.chip.name} has no such instruction", "trn2")
    if core.programs != 2:
        rules.refuse(
            op, "lnc", f"the launch has {core.programs} core; two must meet", "kernel[2](...)"
        )


def _exchange_legal(src: NkiTensor, dst: NkiTensor, ranks: tuple[Any, Any], by: DmaEngine) -> None:
    op = "sendrecv"
    rules.tensors(op, src=src, dst=dst)
    rules.in_sbuf(op, src=src, dst=dst)
    rules.same_dtype(op, src=src, dst=dst)
    for argument, tensor in (("src", src), ("dst", dst)):
        if tensor.dynamic is not None:
            rules.refuse(op, argument, "has a run-time index", "a static view")
    if src.shape != dst.shape:
        rules.refuse(
            op, "dst", f"shape {list(dst.shape)}, but src has {list(src.shape)}", "one shape"
        )
    for argument, rank in zip(("send_to_rank", "recv_from_rank"), ranks, strict=True):
        if rank not in (0, 1):
            rules.refuse(op, argument, f"got {rank!r}", "0 or 1, the cores of the pair")
    if not isinstance(by, DmaEngine):
        rules.refuse(op, "dma_engine", f"got {by!r}", "a member of nki.isa.dma_engine")
    limit = _GPSIMD_BYTES * src.itemsize
    size = rules.elements(src)[1] * src.itemsize
    if by is DmaEngine.gpsimd_dma and size > limit:
        rules.refuse(
            op, "dma_engine", f"gpsimd_dma moves at most {limit} bytes a partition of {src.dtype},"
            f" src has {size}", "dma_engine.dma",
        )  # fmt: skip
