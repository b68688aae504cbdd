"""Scans: each element depends on the one before it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import rules, running
from ...enums import engine as Engine
from ...enums import reduce_cmd as ReduceCmd
from ...operands import float32, write
from ...record import NkiInstruction
from ...tensor import NkiTensor
from .. import accumulators, operators
from ..operators import apply, arguments, column
from ..ops import Op

_NO_WORDS = frozenset(("int32", "uint32"))
_ACCUMULATE: dict[str, Any] = {
    "add": np.add.accumulate,
    "multiply": np.multiply.accumulate,
    "maximum": np.maximum.accumulate,
    "minimum": np.minimum.accumulate,
    "max": np.maximum.accumulate,
    "min": np.minimum.accumulate,
}
_CUMULATIVE = (*_ACCUMULATE, "subtract")


def tensor_tensor_scan(
    dst: NkiTensor,
    data0: NkiTensor,
    data1: NkiTensor,
    initial: float | NkiTensor,
    op0: Op,
    op1: Op,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """r[i] = op1(op0(data0[i], r[i - 1]), data1[i]) along each partition, r[-1] = `initial` (a
    number or a column), in float32 on the Vector engine; dst = r. `reverse0` and `reverse1` swap
    the operands of their operator. Work: `op0`, `op1`."""
    word = "tensor_tensor_scan"
    core = running.current()
    if core.checks:
        _scan_legal(dst, data0, data1, initial, (op0, op1))
    count = data0.shape[0]
    # One row a step, so that each step works on adjacent floats.
    a = np.ascontiguousarray(float32(word, "data0", data0).reshape(count, -1).T)
    b = np.ascontiguousarray(float32(word, "data1", data1).reshape(count, -1).T)
    start = column(word, "initial", initial, data0)
    before = np.empty(count, np.float32)
    before[...] = start.reshape(-1) if isinstance(start, np.ndarray) else start
    result = np.empty_like(a)
    if type(op0.alu) is np.ufunc and type(op1.alu) is np.ufunc and not (reverse0 or reverse1):
        _scan_ufuncs(result, (a, b), before, op0.alu, op1.alu)
    else:
        for x, y, row in zip(a, b, result, strict=True):
            before = apply(op1, apply(op0, x, before, reverse0), y, reverse1)
            row[...] = before
    write(dst, result.T)
    reads = (data0, data1, *arguments(initial))
    return core.issue(word, Engine.vector, reads, (dst,), name, op0=op0.name, op1=op1.name)


def _scan_ufuncs(
    result: np.ndarray,
    data: tuple[np.ndarray, np.ndarray],
    before: np.ndarray,
    first: Any,
    second: Any,
) -> None:
    """The common operators, each step in place."""
    for x, y, row in zip(*data, result, strict=True):
        first(x, before, out=row)
        second(row, y, out=row)
        before = row


def _scan_legal(
    dst: NkiTensor, data0: NkiTensor, data1: NkiTensor, initial: Any, ops: tuple[Any, Any]
) -> None:
    word = "tensor_tensor_scan"
    rules.tiles(word, dst=dst, data0=data0, data1=data1)
    rules.same_elements(word, dst=dst, data0=data0, data1=data1)
    rules.not_both_psum(word, data0=data0, data1=data1)
    operators.on_vector(word, op0=ops[0], op1=ops[1])
    operators.binary(word, op0=ops[0], op1=ops[1])
    operators.scalar(word, "initial", initial, data0, operators.FLOATS)


def tensor_scalar_cumulative(
    dst: NkiTensor,
    src: NkiTensor,
    op0: Op,
    op1: Op,
    imm0: float | NkiTensor,
    imm1: float | NkiTensor | None = None,
    reduce_cmd: ReduceCmd = ReduceCmd.reset_reduce,
    name: str | None = None,
) -> NkiInstruction:
    """reg = op1(op0(src[i], imm0), reg); dst[i] = reg, along each partition, in float32.

    reg is the Vector engine's accumulator: reset to op1's identity, loaded from `imm1`, or
    continued, as `reduce_cmd` says. Numbers or float32 columns for `imm0` and `imm1`.

    Work: `op0`, `op1`.
    """
    word = "tensor_scalar_cumulative"
    core = running.current()
    if core.checks:
        _cumulative_legal(dst, src, (op0, imm0), op1, (reduce_cmd, imm1))
    count, which = src.shape[0], accumulators.VECTOR
    values = float32(word, "src", src)
    scalar = None if op0.unary else column(word, "imm0", imm0, src)
    steps = np.array(apply(op0, values, scalar, False), np.float32).reshape(count, -1)
    if reduce_cmd is ReduceCmd.reset_reduce:
        accumulators.reset(core, which, op1.start)
    elif reduce_cmd is ReduceCmd.load_reduce:
        accumulators.load(core, which, column(word, "imm1", imm1, src), count)
    result = _cumulate(op1, steps, accumulators.read(core, which, word, count))
    accumulators.load(core, which, result[:, -1], count)
    write(dst, result)
    reads = (src, *arguments(imm0, imm1))
    return core.issue(word, Engine.vector, reads, (dst,), name, op0=op0.name, op1=op1.name)


def _cumulate(op: Op, steps: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The running value at each step; `steps` is overwritten."""
    if op.name != "subtract":
        steps[:, 0] = op.reduce(np.stack((steps[:, 0], before)), axis=0)
        return _ACCUMULATE[op.name](steps, axis=1)
    # reg = step - reg: with the signs of every other step turned this is a sum, exactly.
    steps[:, 1::2] *= -1
    steps[:, 0] -= before
    result = np.add.accumulate(steps, axis=1)
    result[:, 1::2] *= -1
    return result


def _cumulative_legal(
    dst: NkiTensor,
    src: NkiTensor,
    stage0: tuple[Any, Any],
    op1: Any,
    load: tuple[ReduceCmd, Any],
) -> None:
    word = "tensor_scalar_cumulative"
    rules.tiles(word, dst=dst, src=src)
    rules.same_elements(word, dst=dst, src=src)
    for argument, tensor in (("dst", dst), ("src", src)):
        if tensor.dtype in _NO_WORDS:
            rules.refuse(
                word, argument, f"dtype {tensor.dtype}", "a float, or 8 or 16-bit integers"
            )
    operators.on_vector(word, op0=stage0[0])
    if not stage0[0].unary:
        operators.scalar(word, "imm0", stage0[1], src)
    operators.named(word, "op1", op1, _CUMULATIVE)
    cmd, imm1 = load
    operators.command(
        word, cmd, ReduceCmd.reset_reduce, ReduceCmd.reduce, ReduceCmd.load_reduce
    )  # fmt: skip
    if cmd is ReduceCmd.load_reduce:
        operators.scalar(word, "imm1", imm1, src)
    elif imm1 is not None:
        rules.refuse(word, "imm1", f"{imm1!r} with {cmd}", "it with reduce_cmd.load_reduce only")
