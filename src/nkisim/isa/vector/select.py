"""Selections by an index range or a predicate, with a running maximum."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import rules, running
from ...enums import engine as Engine
from ...enums import reduce_cmd as ReduceCmd
from ...operands import float32, value, write
from ...record import NkiInstruction
from ...tensor import NkiTensor
from .. import accumulators, operators
from ..operators import FLOATS, arguments, column
from ..ops import OPS, Op

FP32_MIN = float(np.finfo(np.float32).min)  # the only fill that range_select has
_EXACT = 1 << 24  # float32 holds every integer up to here
_COMPARISONS = ("equal", "less", "less_equal", "greater", "greater_equal")
_MAXIMUM = ("maximum", "max")
_PREDICATES = frozenset(("int8", "uint8", "int16", "uint16", "bool"))
_NOT_SELECTED = frozenset(("tfloat32", "int32", "uint32"))
_COMMANDS = (ReduceCmd.idle, ReduceCmd.reset, ReduceCmd.reduce, ReduceCmd.reset_reduce)


def range_select(
    dst: NkiTensor,
    on_true_tile: NkiTensor,
    comp_op0: Op,
    comp_op1: Op,
    bound0: NkiTensor,
    bound1: NkiTensor,
    reduce_cmd: ReduceCmd = ReduceCmd.reset_reduce,
    reduce_res: NkiTensor | None = None,
    reduce_op: Op = OPS["maximum"],
    range_start: int = 0,
    on_false_value: float = FP32_MIN,
    name: str | None = None,
) -> NkiInstruction:
    """dst[i] = on_true_tile[i] where comp_op0(range_start + i, bound0) and
    comp_op1(range_start + i, bound1), else -3.4028235e38 (-inf in narrower floats); i counts the
    elements of a partition.

    The Vector accumulators take the maximum of the selected values (before the cast) as
    `reduce_cmd` says; `reduce_res`, a column, receives them. NeuronCore-v3. Work: `op0`, `op1`.
    """
    word = "range_select"
    core = running.current()
    if core.checks:
        _range_legal(dst, on_true_tile, (comp_op0, comp_op1), (bound0, bound1))
        _fill_legal(on_true_tile, range_start, on_false_value)
        _reduction_legal(word, on_true_tile, reduce_cmd, reduce_op, reduce_res)
    count = on_true_tile.shape[0]
    values = float32(word, "on_true_tile", on_true_tile).reshape(count, -1)
    index = np.arange(range_start, range_start + values.shape[1], dtype=np.float32)[None]
    low = float32(word, "bound0", bound0).reshape(count, 1)
    high = float32(word, "bound1", bound1).reshape(count, 1)
    inside = (comp_op0.alu(index, low) * comp_op1.alu(index, high)) != 0
    result = np.where(inside, values, np.float32(on_false_value))
    writes = _finish(word, result, (reduce_cmd, reduce_op), dst, reduce_res)
    reads = (on_true_tile, bound0, bound1)
    return core.issue(
        word, Engine.vector, reads, writes, name, op0=comp_op0.name, op1=comp_op1.name
    )  # fmt: skip


def _range_legal(
    dst: NkiTensor, data: NkiTensor, ops: tuple[Any, Any], bounds: tuple[NkiTensor, NkiTensor]
) -> None:
    word = "range_select"
    if running.current().chip.generation < 3:
        rules.refuse(word, "engine", "a NeuronCore-v2 has no range_select", "affine_select")
    rules.tiles(word, dst=dst, on_true_tile=data, bound0=bounds[0], bound1=bounds[1])
    rules.same_elements(word, dst=dst, on_true_tile=data)
    rules.dtype_in(word, FLOATS, on_true_tile=data)
    rules.per_partition(word, data, bound0=bounds[0], bound1=bounds[1])
    rules.dtype_in(word, ("float32",), bound0=bounds[0], bound1=bounds[1])
    operators.named(word, "comp_op0", ops[0], _COMPARISONS)
    operators.named(word, "comp_op1", ops[1], _COMPARISONS)


def _fill_legal(data: NkiTensor, start: Any, fill: Any) -> None:
    word = "range_select"
    if not isinstance(start, (int, np.integer)):
        rules.refuse(word, "range_start", f"must be known when the kernel is built, got {start!r}",
                     "an integer")  # fmt: skip
    if not -_EXACT <= start <= _EXACT - rules.elements(data)[1]:
        rules.refuse(word, "range_start", f"{start} plus the index passes 2^24", "a smaller start")
    if not isinstance(fill, (int, float, np.floating)) or np.float32(fill) != np.float32(FP32_MIN):
        rules.refuse(
            word, "on_false_value", f"got {fill!r}", f"{FP32_MIN}, the hardware's only fill"
        )


def select_reduce(
    dst: NkiTensor,
    predicate: NkiTensor,
    on_true: NkiTensor,
    on_false: float | NkiTensor,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: ReduceCmd = ReduceCmd.idle,
    reduce_op: Op = OPS["maximum"],
    reverse_pred: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """dst = on_true where the predicate is not 0 (is 0, if reversed), else on_false, a number or
    a column. The Vector accumulators take the maximum of the result as `reduce_cmd` says (an idle
    call may change them all the same); `reduce_res`, a column, receives them."""
    word = "select_reduce"
    core = running.current()
    if core.checks:
        _select_legal(dst, predicate, on_true, on_false)
        _reduction_legal(word, on_true, reduce_cmd, reduce_op, reduce_res)
    chosen = value(word, "predicate", predicate).reshape(on_true.shape) != 0
    if reverse_pred:
        chosen = ~chosen
    values = float32(word, "on_true", on_true)
    result = np.where(chosen, values, column(word, "on_false", on_false, on_true))
    writes = _finish(word, result, (reduce_cmd, reduce_op), dst, reduce_res)
    reads = (predicate, on_true, *arguments(on_false))
    return core.issue(word, Engine.vector, reads, writes, name, op=reduce_op.name)


def _select_legal(dst: NkiTensor, predicate: NkiTensor, on_true: NkiTensor, on_false: Any) -> None:
    word = "select_reduce"
    rules.tiles(word, dst=dst, predicate=predicate, on_true=on_true)
    rules.same_elements(word, on_true=on_true, predicate=predicate, dst=dst)
    rules.not_both_psum(word, predicate=predicate, on_true=on_true)
    rules.dtype_in(word, _PREDICATES, predicate=predicate)
    if on_true.dtype in _NOT_SELECTED:
        rules.refuse(
            word, "on_true", f"dtype {on_true.dtype}", "another float, or shorter integers"
        )
    operators.scalar(word, "on_false", on_false, on_true, FLOATS)


def _reduction_legal(
    word: str, data: NkiTensor, cmd: ReduceCmd, op: Any, result: NkiTensor | None
) -> None:
    operators.command(word, cmd, *_COMMANDS)
    operators.named(word, "reduce_op", op, _MAXIMUM)
    if result is not None:
        rules.tiles(word, reduce_res=result)
        rules.per_partition(word, data, reduce_res=result)
        rules.dtype_in(word, FLOATS, reduce_res=result)


def _finish(
    word: str,
    result: np.ndarray,
    reduction: tuple[ReduceCmd, Op],
    dst: NkiTensor,
    reduce_res: NkiTensor | None,
) -> tuple[NkiTensor, ...]:
    """Keep the maximum and store the results: dst first, which `reduce_res` may overlap. Returns
    what was written."""
    core, which = running.current(), accumulators.VECTOR
    cmd, op = reduction
    if cmd is ReduceCmd.idle:
        accumulators.forget(core, which)
    elif cmd is ReduceCmd.reset:
        accumulators.reset(core, which, op.start)
    else:
        accumulators.reduce(core, which, word, op, result, cmd)
    if reduce_res is None:
        write(dst, result)
        return (dst,)
    most = accumulators.read(core, which, word, dst.shape[0])
    write(dst, result)
    write(reduce_res, most)
    return dst, reduce_res
