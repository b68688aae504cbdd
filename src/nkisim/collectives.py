"""`nki.collectives` between the ranks of `run_ranks` (rank r is the r-th call).

All cores of all ranks of a group meet. Reductions are made in float32, in the group's order. With
two cores a rank (LNC=2) the operands are tensors that both share, and the first core moves them.
Rules from the references of nki.collectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NoReturn

import numpy as np

from . import dtypes, rules, running
from .enums import PSUM, SBUF, SHARED_HBM
from .enums import engine as Engine
from .errors import NkiNotImplementedError
from .exchange import Arrays, Collective, Tensors, collect
from .isa.ops import OPS, Op
from .missing import refuse_name as _refuse_name
from .record import NkiInstruction
from .registers import VirtualRegister, register_value
from .tensor import NKIObject, NkiTensor


class ReplicaGroup(NKIObject):
    """Groups of ranks, as a list of disjoint lists; each group communicates within itself."""

    def __init__(self, groups: Sequence[Sequence[int]]):
        self.groups = tuple(tuple(int(rank) for rank in group) for group in groups)
        ranks = [rank for group in self.groups for rank in group]
        if not ranks or len(set(ranks)) != len(ranks):
            raise ValueError(
                f"ReplicaGroup: groups: {list(groups)!r}: use disjoint, non-empty lists of ranks"
            )

    def __repr__(self) -> str:
        return f"ReplicaGroup({[list(group) for group in self.groups]})"


def all_reduce(
    srcs: Tensors,
    dsts: Tensors,
    replica_group: ReplicaGroup,
    op: Op,
    priority: int | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """Each dst = the sum, minimum or maximum (`op`) of the ranks' srcs; equal shapes."""
    word = "all_reduce"
    _legal(word, srcs, dsts, priority)
    _reduction(word, op)
    for src, dst in zip(srcs, dsts, strict=True):
        _shape(word, dst, src.shape)

    def combine(given: list[Arrays], _: int) -> Arrays:
        return [
            _reduced(op, column, src.dtype)
            for src, column in zip(srcs, zip(*given, strict=True), strict=True)
        ]

    call = Collective(word, _group(word, replica_group), (op.name, _sizes(srcs)), name)
    return collect(call, srcs, dsts, combine)


def all_gather(
    srcs: Tensors,
    dsts: Tensors,
    replica_group: ReplicaGroup,
    collective_dim: int,
    priority: int | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """Each dst = the ranks' srcs, one after the other along `collective_dim` (0; SBUF: 0 or 1)."""
    word = "all_gather"
    _legal(word, srcs, dsts, priority)
    _dim(word, collective_dim, (0, 1) if srcs[0].buffer is SBUF else (0,))
    group = _group(word, replica_group)
    for src, dst in zip(srcs, dsts, strict=True):
        if src.buffer is SBUF and src.ndim != 2:
            rules.refuse(word, "srcs", f"shape {list(src.shape)} in SBUF", "2 dimensions")
        sizes = list(src.shape)
        sizes[collective_dim] *= len(group)
        _shape(word, dst, tuple(sizes))

    def combine(given: list[Arrays], _: int) -> Arrays:
        return [np.concatenate(column, axis=collective_dim) for column in zip(*given, strict=True)]

    call = Collective(word, group, (collective_dim, _sizes(srcs)), name)
    return collect(call, srcs, dsts, combine)


def reduce_scatter(
    srcs: Tensors,
    dsts: Tensors,
    replica_group: ReplicaGroup,
    collective_dim: int,
    op: Op,
    priority: int | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """Each dst = this rank's part, along dimension 0, of the reduction of the ranks' srcs."""
    word = "reduce_scatter"
    _legal(word, srcs, dsts, priority)
    _dim(word, collective_dim, (0,))
    _reduction(word, op)
    group = _group(word, replica_group)
    for src, dst in zip(srcs, dsts, strict=True):
        _divides(word, src, len(group))
        _shape(word, dst, (src.shape[0] // len(group), *src.shape[1:]))

    def combine(given: list[Arrays], place: int) -> Arrays:
        return [
            _reduced(op, [_part(values, place, len(group)) for values in column], src.dtype)
            for src, column in zip(srcs, zip(*given, strict=True), strict=True)
        ]

    call = Collective(word, group, (op.name, _sizes(srcs)), name)
    return collect(call, srcs, dsts, combine)


def all_to_all(
    srcs: Tensors,
    dsts: Tensors,
    replica_group: ReplicaGroup,
    collective_dim: int,
    priority: int | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """Part j, along dimension 0, of rank i's src becomes part i of rank j's dst (HBM)."""
    word = "all_to_all"
    _legal(word, srcs, dsts, priority)
    _only_hbm(word, srcs)
    _dim(word, collective_dim, (0,))
    group = _group(word, replica_group)
    for src, dst in zip(srcs, dsts, strict=True):
        _divides(word, src, len(group))
        _shape(word, dst, src.shape)

    def combine(given: list[Arrays], place: int) -> Arrays:
        return [
            np.concatenate([_part(values, place, len(group)) for values in column])
            for column in zip(*given, strict=True)
        ]

    return collect(Collective(word, group, _sizes(srcs), name), srcs, dsts, combine)


def collective_permute(
    srcs: Tensors,
    dsts: Tensors,
    source_target_pairs: Sequence[tuple[int, int]],
    priority: int | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """For each (source, target) pair: the target's dst = the source's src (HBM, one tensor)."""
    word = "collective_permute"
    _legal(word, srcs, dsts, priority)
    _only_hbm(word, srcs)
    _single(word, srcs)
    _shape(word, dsts[0], srcs[0].shape)
    origin = {target: source for source, target in source_target_pairs}
    ranks = tuple(sorted({rank for pair in source_target_pairs for rank in pair}))
    if len(origin) != len(source_target_pairs) or len(set(origin.values())) != len(origin):
        rules.refuse(
            word, "source_target_pairs", f"{list(source_target_pairs)}: a rank occurs twice",
            "each rank once as source and once as target",
        )  # fmt: skip
    me = running.current().rank
    received = dsts if me in origin else ()
    sent = srcs if me in origin.values() else ()
    if me not in ranks:
        return running.current().issue(word, Engine.dma, (), (), name)

    def combine(given: list[Arrays], _: int) -> Arrays:
        return given[ranks.index(origin[me])] if received else []

    call = Collective(word, ranks, (tuple(sorted(origin.items())), _sizes(srcs)), name)
    return collect(call, sent, received, combine)


def collective_permute_implicit(
    srcs_by_channel: Sequence[Tensors],
    dsts_by_channel: Sequence[Tensors],
    replica_group: ReplicaGroup,
    channel_ids: Sequence[int] = (0,),
    priority: int | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """One step of a ring in the group's order: dst = the predecessor's src, for each channel
    (HBM)."""
    word = "collective_permute_implicit"
    srcs, dsts = _channels(word, (srcs_by_channel, dsts_by_channel), channel_ids)
    _legal(word, srcs, dsts, priority, coalesced=False)
    _only_hbm(word, srcs)
    for src, dst in zip(srcs, dsts, strict=True):
        _shape(word, dst, src.shape)

    def combine(given: list[Arrays], place: int) -> Arrays:
        return given[place - 1]

    idea = (tuple(channel_ids), _sizes(srcs))
    return collect(Collective(word, _group(word, replica_group), idea, name), srcs, dsts, combine)


def collective_permute_implicit_reduce(
    srcs0_by_channel: Sequence[Tensors],
    srcs1_by_channel: Sequence[Tensors],
    dsts_by_channel: Sequence[Tensors],
    replica_group: ReplicaGroup,
    op: Op,
    channel_ids: Sequence[int] = (0,),
    priority: int | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """As `collective_permute_implicit`, of op(src0, src1): dst = the predecessor's result."""
    word = "collective_permute_implicit_reduce"
    srcs0, srcs1, dsts = _channels(
        word, (srcs0_by_channel, srcs1_by_channel, dsts_by_channel), channel_ids
    )
    _reduction(word, op)
    _legal(word, [*srcs0, *srcs1], [*dsts, *dsts], priority, coalesced=False)
    _only_hbm(word, srcs0)
    for first, second, dst in zip(srcs0, srcs1, dsts, strict=True):
        _shape(word, dst, first.shape)
        _shape(word, second, first.shape)
    channels = len(srcs0)

    def combine(given: list[Arrays], place: int) -> Arrays:
        theirs = given[place - 1]
        pairs = zip(srcs0, theirs[:channels], theirs[channels:], strict=True)
        return [_reduced(op, pair, src.dtype) for src, *pair in pairs]

    idea = (tuple(channel_ids), op.name, _sizes(srcs0))
    call = Collective(word, _group(word, replica_group), idea, name)
    return collect(call, [*srcs0, *srcs1], dsts, combine)


def collective_permute_implicit_current_processing_rank_id(
    iteration_id: Any, replica_group: ReplicaGroup, channel_id: int = 0, name: str | None = None
) -> VirtualRegister:
    """A register: the rank whose data this rank holds after `iteration_id` steps of the ring."""
    word = "collective_permute_implicit_current_processing_rank_id"
    group = _group(word, replica_group)
    core = running.current()
    core.issue(word, Engine.sync, (), (), name)
    return VirtualRegister(
        group[(group.index(core.rank) - register_value(iteration_id)) % len(group)]
    )


def rank_id(name: str | None = None) -> VirtualRegister:
    """A register: this rank."""
    core = running.current()
    core.issue("rank_id", Engine.sync, (), (), name)
    return VirtualRegister(core.rank)


def all_gather_v(*_: Any, **__: Any) -> NoReturn:
    """Not simulated."""
    raise NkiNotImplementedError(f"{running.site()}: nki.collectives.all_gather_v is not simulated")


def all_to_all_v(*_: Any, **__: Any) -> NoReturn:
    """Not simulated."""
    raise NkiNotImplementedError(f"{running.site()}: nki.collectives.all_to_all_v is not simulated")


def __getattr__(name: str) -> Any:
    _refuse_name("nki.collectives", name)


# -- rules and parts ------------------------------------------------------------------------------


def _legal(word: str, srcs: Any, dsts: Any, priority: Any, coalesced: bool = True) -> None:
    if priority is not None:
        rules.only_gen4(f"{word}: priority")
    if not isinstance(srcs, (list, tuple)) or not isinstance(dsts, (list, tuple)):
        rules.refuse(word, "srcs and dsts", f"got {srcs!r} and {dsts!r}", "lists of tensors")
    if not srcs or len(srcs) != len(dsts):
        rules.refuse(word, "dsts", f"{len(dsts)} for {len(srcs)} srcs", "one dst a src")
    operands = {f"srcs[{i}]": src for i, src in enumerate(srcs)}
    operands |= {f"dsts[{i}]": dst for i, dst in enumerate(dsts)}
    rules.tensors(word, **operands)
    in_sbuf = srcs[0].buffer is SBUF
    if in_sbuf and coalesced and len(srcs) > 1:
        rules.refuse(word, "srcs", f"{len(srcs)} tensors in SBUF", "one, or tensors in HBM")
    for argument, tensor in operands.items():
        _operand(word, argument, tensor, in_sbuf)
    for src, dst in zip(srcs, dsts, strict=True):
        rules.same_dtype(word, srcs=src, dsts=dst)


def _operand(word: str, argument: str, tensor: NkiTensor, in_sbuf: bool) -> None:
    if tensor.buffer is PSUM or (tensor.buffer is SBUF) is not in_sbuf:
        rules.refuse(
            word, argument, f"{tensor!r}: all must be in HBM, or all in SBUF", "one memory"
        )
    if tensor.dynamic is not None:
        rules.refuse(word, argument, "has a run-time index", "a static view")
    if tensor.dtype in dtypes.PACKED:
        rules.refuse(word, argument, f"dtype {tensor.dtype}", "an unpacked dtype")
    if running.current().programs > 1 and tensor.buffer is not SHARED_HBM:
        rules.refuse(
            word,
            argument,
            f"{tensor!r} belongs to one core of the pair",
            "a tensor of nl.shared_hbm",
        )


def _only_hbm(word: str, srcs: Tensors) -> None:
    if srcs[0].buffer is SBUF:
        rules.refuse(word, "srcs", f"{srcs[0]!r} is in SBUF", "tensors in HBM")


def _single(word: str, srcs: Tensors) -> None:
    if len(srcs) != 1:
        rules.refuse(word, "srcs", f"{len(srcs)} tensors", "exactly one")


def _channels(word: str, lists: Sequence[Any], ids: Sequence[int]) -> list[list[NkiTensor]]:
    """The one tensor of each channel, for each argument."""
    if list(ids) != list(range(len(ids))):
        rules.refuse(word, "channel_ids", f"got {list(ids)}", "0, 1, ... in order")
    for channels in lists:
        if len(channels) != len(ids):
            rules.refuse(
                word, "srcs and dsts", f"{len(channels)} channels for {list(ids)}", "one an id"
            )
        for tensors in channels:
            _single(word, tensors)
    return [[tensors[0] for tensors in channels] for channels in lists]


def _group(word: str, replica_group: Any) -> tuple[int, ...]:
    if not isinstance(replica_group, ReplicaGroup):
        rules.refuse(word, "replica_group", f"got {replica_group!r}", "ReplicaGroup([[0, 1]])")
    me = running.current().rank
    for group in replica_group.groups:
        if me in group:
            return group
    rules.refuse(word, "replica_group", f"rank {me} is not in {replica_group!r}", "a group with it")


def _dim(word: str, dim: Any, allowed: tuple[int, ...]) -> None:
    if dim not in allowed:
        rules.refuse(word, "collective_dim", f"got {dim!r}", " or ".join(map(str, allowed)))


def _shape(word: str, dst: NkiTensor, wanted: tuple[int, ...]) -> None:
    if dst.shape != wanted:
        rules.refuse(word, "dsts", f"shape {list(dst.shape)}", f"shape {list(wanted)}")


def _divides(word: str, src: NkiTensor, ranks: int) -> None:
    if src.shape[0] % ranks:
        rules.refuse(
            word, "srcs", f"{src.shape[0]} rows for {ranks} ranks", "a multiple of the ranks"
        )


def _sizes(srcs: Tensors) -> tuple[tuple[tuple[int, ...], str], ...]:
    return tuple((src.shape, src.dtype) for src in srcs)


def _reduction(word: str, op: Any) -> None:
    if op not in (OPS["add"], OPS["minimum"], OPS["maximum"]):
        rules.refuse(word, "op", f"got {op!r}", "nl.add, nl.minimum or nl.maximum")


def _reduced(op: Op, values: Sequence[np.ndarray], dtype: str) -> np.ndarray:
    assert op.alu is not None
    return dtypes.cast(reduce(op.alu, [dtypes.to_float32(array) for array in values]), dtype)


def _part(values: np.ndarray, place: int, parts: int) -> np.ndarray:
    size = values.shape[0] // parts
    return values[place * size : (place + 1) * size]
