"""Scalar engine: activation functions, with scale, bias and a running sum."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dtypes, rules, running
from ..enums import engine as Engine
from ..enums import reduce_cmd as ReduceCmd
from ..operands import float32, write
from ..record import NkiInstruction
from ..tensor import NkiTensor
from . import accumulators, operators
from .ops import OPS, Op

_ADD = OPS["add"]
_REDUCING = (ReduceCmd.reduce, ReduceCmd.reset_reduce)
_BIAS = frozenset(dtypes.NUMPY) - dtypes.PACKED - {"tfloat32"}


def activation(
    dst: NkiTensor,
    op: Op,
    data: NkiTensor,
    bias: float | NkiTensor | None = None,
    scale: float | NkiTensor = 1.0,
    reduce_op: Op | None = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: ReduceCmd = ReduceCmd.idle,
    name: str | None = None,
) -> NkiInstruction:
    """dst = op(data * scale + bias) in float32; `scale` and `bias` are numbers or columns.

    `reduce_cmd` says whether the sum of the results over the free dimensions (before the cast to
    dst's dtype) goes to the engine's reduction registers; `reduce_res`, a column, receives them
    through a second instruction, recorded as "activation_read". Work: `op`.
    """
    core = running.current()
    if core.checks:
        _legal("activation", dst, op, data, (bias, scale))
        _reduction_legal("activation", data, reduce_op, reduce_res, reduce_cmd)
    values = _scaled(data, scale, bias)
    if op.valid is not None and core.checks:
        _note_range(op, values)
    result = op.activation(values)
    if reduce_cmd in _REDUCING:
        accumulators.reduce(core, accumulators.SCALAR, "activation", _ADD, result, reduce_cmd)
    elif reduce_cmd is ReduceCmd.reset:
        accumulators.reset(core, accumulators.SCALAR, 0.0)
    total = np.zeros(0, np.float32)
    if reduce_res is not None:
        total = accumulators.read(core, accumulators.SCALAR, "activation", data.shape[0])
    write(dst, result)
    reads = (data, *operators.arguments(scale, bias))
    issued = core.issue("activation", Engine.scalar, reads, (dst,), name, op=op.name)
    if reduce_res is not None:
        write(reduce_res, total)
        core.issue("activation_read", Engine.scalar, (), (reduce_res,), None)
    return issued


def _scaled(
    data: NkiTensor, scale: float | NkiTensor, bias: float | NkiTensor | None
) -> np.ndarray:
    """data * scale + bias, each step rounded to float32."""
    values = float32("activation", "data", data)
    if scale.__class__ is NkiTensor or scale != 1.0:
        values = values * operators.column("activation", "scale", scale, data)
    if bias is not None and (bias.__class__ is NkiTensor or bias != 0.0):
        values = values + operators.column("activation", "bias", bias, data)
    return values


def activation_reduce(
    dst: NkiTensor,
    op: Op,
    data: NkiTensor,
    reduce_op: Op,
    reduce_res: NkiTensor | None,
    bias: float | NkiTensor | None = None,
    scale: float | NkiTensor = 1.0,
    name: str | None = None,
) -> NkiInstruction:
    """`activation` with `reduce_cmd.reset_reduce`: reduce_res = the sum of the results."""
    return activation(
        dst, op, data, bias, scale, reduce_op, reduce_res, ReduceCmd.reset_reduce, name
    )  # fmt: skip


def _legal(word: str, dst: NkiTensor, op: Any, data: NkiTensor, terms: tuple[Any, Any]) -> None:
    bias, scale = terms
    rules.tiles(word, dst=dst, data=data)
    rules.same_elements(word, dst=dst, data=data)
    if not isinstance(op, Op):
        rules.refuse(word, "op", f"must be an operator, got {op!r}", "one such as nl.exp")
    if op.activation is None:
        if op.name == "prelu":
            rules.only_gen4(f"{word}: op=nl.prelu (its slope is an argument of activate2)")
        rules.refuse(word, "op", f"{op} is no activation function", "one such as nl.exp")
    operators.scalar(word, "scale", scale, data)
    if bias is None:
        return
    operators.scalar(word, "bias", bias, data, _BIAS)
    if running.current().chip.generation < 3:
        if bias.__class__ is not NkiTensor and bias != 0.0:
            rules.refuse(word, "bias", f"the number {bias}, on a NeuronCore-v2", "a column")
        if op.name == "reciprocal":
            rules.refuse(word, "bias", "given with nl.reciprocal, on a NeuronCore-v2", "None")


def _reduction_legal(
    word: str, data: NkiTensor, op: Any, result: NkiTensor | None, cmd: ReduceCmd
) -> None:
    operators.command(
        word, cmd, ReduceCmd.idle, ReduceCmd.reset, ReduceCmd.reduce, ReduceCmd.reset_reduce
    )  # fmt: skip
    if op is not None or cmd in _REDUCING:
        operators.named(word, "reduce_op", op, ("add",))
    if result is not None:
        rules.tiles(word, reduce_res=result)
        rules.per_partition(word, data, reduce_res=result)


def _note_range(op: Op, values: np.ndarray) -> None:
    """Note inputs for which the hardware's polynomials are not made (sqrt(0) is 0 all the same)."""
    assert op.valid is not None
    low, high = op.valid
    if op.name == "reciprocal":
        values = np.abs(values)
    least, most = float(values.min()), float(values.max())
    if op.name == "sqrt" and least == 0.0:
        positive = values[values > 0]
        least = float(positive.min()) if positive.size else low
    if least < low or most > high:
        running.current().program.note(
            f"{running.site()}: activation: op={op}: inputs from {least:g} to {most:g} leave the"
            f" range {low:g} to {high:g} for which the hardware's result is valid"
        )
