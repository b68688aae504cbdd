"""Reductions over the free dimensions, and statistics for normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import rules, running
from ...dtypes import NUMPY
from ...enums import engine as Engine
from ...enums import reduce_cmd as ReduceCmd
from ...operands import float32, write, write_bits
from ...record import NkiInstruction
from ...tensor import NkiTensor
from .. import accumulators, operators
from ..operators import apply, arguments, column
from ..ops import Op

_BN_STATS_MAX = 512  # elements per partition (nki.isa.bn_stats)
_REDUCE_OPS = ("add", "multiply", "max", "min", "maximum", "minimum")


def tensor_reduce(
    dst: NkiTensor,
    op: Op,
    data: NkiTensor,
    axis: int | tuple[int, ...] | list[int],
    negate: bool = False,
    keepdims: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """dst = the reduction of `data` over its last free dimensions `axis`, on the Vector engine.

    float32, or bits for integers with a bit operator; `subtract` goes from left to right. `negate`
    multiplies an arithmetic result by -1. dst may keep the reduced dimensions or not, whatever
    `keepdims` says: its elements per partition must be those that remain. Work: `op`, `axes` (how
    many dimensions).
    """
    word = "tensor_reduce"
    core = running.current()
    axes = _axes(data, axis)
    if core.checks:
        _tensor_reduce_legal(dst, op, data, axes, negate)
    over = axes[0] if len(axes) == 1 else axes
    if op.bits:
        result = op.reduce(operators.bits(word, "data", data), axis=over)
        write_bits(dst, result.view(NUMPY[dst.dtype]))
    else:
        result = op.reduce(float32(word, "data", data), axis=over)
        write(dst, np.negative(result, dtype=np.float32) if negate else result)
    return core.issue(word, Engine.vector, (data,), (dst,), name, op=op.name, axes=len(axes))


def _axes(data: NkiTensor, axis: Any) -> tuple[int, ...]:
    """The reduced dimensions in order; they must be the last ones, and not dimension 0."""
    count = len(data.shape)
    given = (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    axes = tuple(sorted(int(item) % count if item < 0 else int(item) for item in given))
    if not axes or axes[0] < 1 or axes != tuple(range(count - len(axes), count)):
        rules.refuse(
            "tensor_reduce", "axis", f"{axis} of {count} dimensions",
            f"the last ones, up to {tuple(range(1, count))}; dimension 0 is not reduced here",
        )  # fmt: skip
    return axes


def _tensor_reduce_legal(
    dst: NkiTensor, op: Any, data: NkiTensor, axes: tuple[int, ...], negate: bool
) -> None:
    word = "tensor_reduce"
    rules.tiles(word, dst=dst, data=data)
    if not isinstance(op, Op) or op.reduce is None or op.name == "average":
        rules.refuse(word, "op", f"{op!r} does not reduce", "one such as nl.add or nl.maximum")
    if op.bits:
        operators.integers(word, dst=dst, data=data)
        if negate:
            rules.refuse(word, "negate", f"True with {op}", "False, or an arithmetic operator")
    left = 1
    for size in data.shape[1 : axes[0]]:
        left *= size
    if rules.elements(dst) != (data.shape[0], left):
        rules.refuse(
            word, "dst", f"shape {list(dst.shape)}; {list(data.shape)} reduced over {axes} leaves"
            f" {left} per partition", f"{data.shape[0]} partitions of {left}",
        )  # fmt: skip


def tensor_scalar_reduce(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Op,
    operand0: float | NkiTensor | None,
    reduce_op: Op,
    reduce_res: NkiTensor | None = None,
    reverse0: bool = False,
    reduce_cmd: ReduceCmd = ReduceCmd.reset_reduce,
    reduce_init: float | NkiTensor | None = None,
    reduce_res_negate: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """dst = data op0 operand0, and the Vector accumulators take the reduction of the result (before
    its cast) over all free dimensions; `reduce_res`, a column, receives them.

    Work: `op0`, `op1` (the reduction).
    """
    word = "tensor_scalar_reduce"
    core = running.current()
    if core.checks:
        if reverse0:
            rules.refuse(word, "reverse0", "True is not supported by NKI", "False")
        _scalar_reduce_legal(dst, data, (op0, operand0), (reduce_op, reduce_res))
        _init_legal(data, reduce_cmd, reduce_init)
    scalar = None if op0.unary else column(word, "operand0", operand0, data)
    init = None if reduce_init is None else column(word, "reduce_init", reduce_init, data)
    result = apply(op0, float32(word, "data", data), scalar, False)
    if reduce_cmd is ReduceCmd.load_reduce:
        accumulators.load(core, accumulators.VECTOR, init, data.shape[0])
    accumulators.reduce(core, accumulators.VECTOR, word, reduce_op, result, reduce_cmd)
    write(dst, result)
    writes = (dst,)
    if reduce_res is not None:
        total = accumulators.read(core, accumulators.VECTOR, word, data.shape[0])
        write(reduce_res, -total if reduce_res_negate else total)
        writes = (dst, reduce_res)
    reads = (data, *arguments(operand0, reduce_init))
    return core.issue(word, Engine.vector, reads, writes, name, op0=op0.name, op1=reduce_op.name)


def _scalar_reduce_legal(
    dst: NkiTensor, data: NkiTensor, stage0: tuple[Any, Any], reduction: tuple[Any, Any]
) -> None:
    word = "tensor_scalar_reduce"
    rules.tiles(word, dst=dst, data=data)
    rules.same_elements(word, dst=dst, data=data)
    operators.on_vector(word, op0=stage0[0])
    operators.stage(word, 0, *stage0, data)
    operators.named(word, "reduce_op", reduction[0], _REDUCE_OPS)
    if reduction[1] is not None:
        rules.tiles(word, reduce_res=reduction[1])
        rules.per_partition(word, data, reduce_res=reduction[1])


def _init_legal(data: NkiTensor, cmd: ReduceCmd, init: Any) -> None:
    word = "tensor_scalar_reduce"
    operators.command(
        word, cmd, ReduceCmd.reset_reduce, ReduceCmd.reduce, ReduceCmd.load_reduce
    )  # fmt: skip
    if (init is not None) != (cmd is ReduceCmd.load_reduce):
        rules.refuse(
            word,
            "reduce_init",
            f"{init!r} with {cmd}",
            "it with reduce_cmd.load_reduce, and only so",
        )
    if init is not None:
        operators.scalar(word, "reduce_init", init, data)


def bn_stats(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """dst (P, 6) = count, mean and variance * count of the even elements of each partition, then of
    the odd ones, in float32 on the Vector engine; at most 512 elements per partition."""
    core = running.current()
    if core.checks:
        _statistics_legal("bn_stats", dst, data, 6)
        count = rules.elements(data)[1]
        if count > _BN_STATS_MAX:
            rules.refuse("bn_stats", "data", f"{count} elements per partition", "at most 512")
    values = float32("bn_stats", "data", data).reshape(data.shape[0], -1)
    result = np.zeros((data.shape[0], 6), np.float32)
    for i in range(2):
        half = values[:, i::2]
        if half.shape[1]:
            mean = half.mean(axis=1)
            result[:, 3 * i] = half.shape[1]
            result[:, 3 * i + 1] = mean
            result[:, 3 * i + 2] = np.square(half - mean[:, None]).sum(axis=1)
    write(dst, result)
    return core.issue("bn_stats", Engine.vector, (data,), (dst,), name)


def bn_aggr(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """dst (P, 2) = mean and (population) variance of all elements that the (count, mean, variance *
    count) triples of `data` describe, in float32 on the Vector engine."""
    core = running.current()
    if core.checks:
        _statistics_legal("bn_aggr", dst, data, 2)
        count = rules.elements(data)[1]
        if count % 3:
            rules.refuse("bn_aggr", "data", f"{count} elements per partition", "triples")
    triples = float32("bn_aggr", "data", data).reshape(data.shape[0], -1, 3)
    counts, means, spreads = triples[:, :, 0], triples[:, :, 1], triples[:, :, 2]
    total = counts.sum(axis=1)
    mean = (counts * means).sum(axis=1) / total
    spread = (spreads + counts * np.square(means - mean[:, None])).sum(axis=1)
    write(dst, np.stack((mean, spread / total), axis=1))
    return core.issue("bn_aggr", Engine.vector, (data,), (dst,), name)


def _statistics_legal(word: str, dst: NkiTensor, data: NkiTensor, width: int) -> None:
    rules.tiles(word, dst=dst, data=data)
    if rules.elements(dst) != (data.shape[0], width):
        rules.refuse(word, "dst", f"shape {list(dst.shape)}", f"({data.shape[0]}, {width})")
