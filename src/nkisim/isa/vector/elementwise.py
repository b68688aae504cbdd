"""Element-wise arithmetic and bit operations on tiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import rules, running
from ...dtypes import NUMPY
from ...enums import PSUM
from ...enums import engine as Engine
from ...operands import float32, mark, value, write, write_bits
from ...record import NkiInstruction
from ...tensor import NkiTensor
from .. import operators
from ..operators import apply, arguments, bits, bits_column, column
from ..ops import Op

_Stage = tuple[Any, Any]  # an operator and its operand
_WORDS = frozenset(("int32", "uint32"))
# What the Scalar engine of a NeuronCore-v3 can do in a tensor_scalar (nki.isa.tensor_scalar).
_ON_SCALAR = frozenset((("multiply", "add"), ("multiply", None), ("add", None)))


def tensor_tensor(
    dst: NkiTensor,
    data1: NkiTensor,
    data2: NkiTensor,
    op: Op,
    engine: Engine = Engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """dst = op(data1, data2), element by element, on the Vector or GpSimd engine.

    float32 arithmetic; bits for integers with a bit operator; exact 32-bit integers on GpSimd,
    which is the default where all three are int32 or uint32 in SBUF. Work: `op`.
    """
    core = running.current()
    if core.checks:
        _tensor_tensor_legal(dst, data1, data2, op, engine)
    words = dst.dtype in _WORDS and data1.dtype in _WORDS and data2.dtype in _WORDS and not op.bits
    if engine is Engine.unknown:
        engine = op.engine or Engine.vector
        if words and PSUM not in (dst.buffer, data1.buffer, data2.buffer):
            engine = Engine.gpsimd
    if op.bits:
        count = bits("tensor_tensor", "data2", data2)
        operators.check_shift("tensor_tensor", "data2", op, count, data1)
        _store_bits(dst, op.alu(*_alike(bits("tensor_tensor", "data1", data1), count)))
    elif words and engine is Engine.gpsimd and op.name != "power":
        pair = _alike(
            value("tensor_tensor", "data1", data1), value("tensor_tensor", "data2", data2)
        )
        write_bits(dst, op.alu(*pair).astype(NUMPY[dst.dtype]))
    else:
        a = float32("tensor_tensor", "data1", data1)
        b = float32("tensor_tensor", "data2", data2)
        if b.shape != a.shape:
            b = b.reshape(a.shape)
        store(dst, op.alu, a, b)
    return core.issue("tensor_tensor", engine, (data1, data2), (dst,), name, op=op.name)


def _alike(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return a, (b if b.shape == a.shape else b.reshape(a.shape))


def store(dst: NkiTensor, function: Any, a: np.ndarray, b: Any) -> None:
    """dst = function(a, b), without a temporary where NumPy can write the result itself."""
    if dst.dtype == "float32" and function.__class__ is np.ufunc and dst.shape == a.shape:
        function(a, b, out=dst.array)
        mark(dst)
    else:
        write(dst, function(a, b))


def _store_bits(dst: NkiTensor, result: np.ndarray) -> None:
    write_bits(dst, result.view(NUMPY[dst.dtype]))


def _tensor_tensor_legal(
    dst: NkiTensor, data1: NkiTensor, data2: NkiTensor, op: Op, engine: Engine
) -> None:
    word = "tensor_tensor"
    rules.tiles(word, dst=dst, data1=data1, data2=data2)
    rules.same_elements(word, dst=dst, data1=data1, data2=data2)
    rules.not_both_psum(word, data1=data1, data2=data2)
    operators.binary(word, op=op)
    if op.bits:
        operators.integers(word, dst=dst, data1=data1, data2=data2)
    if engine is not Engine.unknown:
        allowed = (op.engine,) if op.engine is not None else (Engine.vector, Engine.gpsimd)
        rules.choose(f"{word}(op={op})", engine, (Engine.vector,) if op.bits else allowed)
    if engine is Engine.gpsimd or op.engine is Engine.gpsimd:
        rules.in_sbuf(word, dst=dst, data1=data1, data2=data2)


def tensor_scalar(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Op,
    operand0: float | NkiTensor | None,
    reverse0: bool = False,
    op1: Op | None = None,
    operand1: float | NkiTensor | None = None,
    reverse1: bool = False,
    engine: Engine = Engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """dst = (data op0 operand0) op1 operand1; the operands are numbers or float32 columns.

    `reverse0` and `reverse1` swap the operands of their stage. Vector by default; GpSimd for
    `nl.rsqrt` and `nl.power`. Work: `op0`, `op1` (None if there is no second stage).
    """
    word = "tensor_scalar"
    core = running.current()
    if core.checks:
        _tensor_scalar_legal(dst, data, (op0, operand0), (op1, operand1), engine)
    if engine is Engine.unknown:
        engine = _engines_of_tensor_scalar(op0, op1)[0]
    if op0.bits:
        _tensor_scalar_bits(dst, data, (op0, operand0, reverse0), (op1, operand1, reverse1))
    else:
        a = float32(word, "data", data)
        b = None if op0.unary else column(word, "operand0", operand0, data)
        if op1 is not None:
            c = None if op1.unary else column(word, "operand1", operand1, data)
            write(dst, apply(op1, apply(op0, a, b, reverse0), c, reverse1))
        elif op0.unary or reverse0:
            write(dst, apply(op0, a, b, reverse0))
        else:
            store(dst, op0.alu, a, b)
    return core.issue(
        word, engine, (data, *arguments(operand0, operand1)), (dst,), name,
        op0=op0.name, op1=None if op1 is None else op1.name,
    )  # fmt: skip


def _tensor_scalar_bits(dst: NkiTensor, data: NkiTensor, *stages: tuple[Any, Any, bool]) -> None:
    word = "tensor_scalar"
    values: Any = bits(word, "data", data)
    for i, (op, operand, reverse) in enumerate(stages):
        if op is not None:
            other = bits_column(word, f"operand{i}", operand, data)
            count = values if reverse else other
            operators.check_shift(word, "data" if reverse else f"operand{i}", op, count, data)
            values = apply(op, values, other, reverse)
    _store_bits(dst, values)


def _tensor_scalar_legal(
    dst: NkiTensor, data: NkiTensor, stage0: _Stage, stage1: _Stage, engine: Engine
) -> None:
    word = "tensor_scalar"
    rules.tiles(word, dst=dst, data=data)
    rules.same_elements(word, dst=dst, data=data)
    operators.stage(word, 0, *stage0, data)
    op0, op1 = stage0[0], stage1[0]
    if op1 is not None:
        operators.stage(word, 1, *stage1, data)
        if op0.bits != op1.bits:
            rules.refuse(word, "op1", f"{op1} with op0 {op0}", "two of arithmetic, or two of bits")
    elif stage1[1] is not None:
        rules.refuse(word, "operand1", f"got {stage1[1]!r} without op1", "op1 too, or neither")
    if op0.bits:
        operators.integers(word, dst=dst, data=data)
    allowed = _engines_of_tensor_scalar(op0, op1)
    if engine is not Engine.unknown:
        rules.choose(f"{word}(op0={op0}, op1={op1})", engine, allowed)
    if allowed[0] is Engine.gpsimd:
        tiles = {"operand0": stage0[1], "operand1": stage1[1]}
        columns = {key: item for key, item in tiles.items() if item.__class__ is NkiTensor}
        rules.in_sbuf(word, dst=dst, data=data, **columns)


def _engines_of_tensor_scalar(op0: Op, op1: Op | None) -> tuple[Engine, ...]:
    """GpSimd for the operators that only it has; Scalar too for a few."""
    if op0.engine is not None:
        return (op0.engine,)
    if op1 is not None and op1.engine is not None:
        return (op1.engine,)
    on_scalar = (op0.name, op1.name if op1 else None) in _ON_SCALAR
    if on_scalar and running.current().chip.generation >= 3:
        return Engine.vector, Engine.scalar
    return (Engine.vector,)


def scalar_tensor_tensor(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Op,
    operand0: float | NkiTensor | None,
    op1: Op,
    operand1: NkiTensor,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """dst = (data op0 operand0) op1 operand1 on the Vector engine: operand0 is a number or a
    column, operand1 a tile like `data`. Arithmetic only. Work: `op0`, `op1`."""
    word = "scalar_tensor_tensor"
    core = running.current()
    if core.checks:
        _scalar_tensor_tensor_legal(dst, data, (op0, operand0), op1, operand1)
    a = float32(word, "data", data)
    scalar = None if op0.unary else column(word, "operand0", operand0, data)
    b = float32(word, "operand1", operand1)
    first = apply(op0, a, scalar, reverse0)
    write(dst, apply(op1, first, b if b.shape == a.shape else b.reshape(a.shape), reverse1))
    return core.issue(
        word, Engine.vector, (data, *arguments(operand0), operand1), (dst,), name,
        op0=op0.name, op1=op1.name,
    )  # fmt: skip


def _scalar_tensor_tensor_legal(
    dst: NkiTensor, data: NkiTensor, stage0: _Stage, op1: Any, operand1: NkiTensor
) -> None:
    word = "scalar_tensor_tensor"
    rules.tiles(word, dst=dst, data=data, operand1=operand1)
    rules.same_elements(word, dst=dst, data=data, operand1=operand1)
    rules.not_both_psum(word, data=data, operand1=operand1)
    operators.on_vector(word, op0=stage0[0], op1=op1)
    operators.stage(word, 0, *stage0, data)
    operators.binary(word, op1=op1)


def reciprocal(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """dst = 1 / data in float32 on the Vector engine."""
    core = running.current()
    if core.checks:
        rules.tiles("reciprocal", dst=dst, data=data)
        rules.same_elements("reciprocal", dst=dst, data=data)
    a = float32("reciprocal", "data", data)
    if dst.dtype == "float32" and dst.shape == a.shape:
        np.divide(np.float32(1), a, dst.array)
        mark(dst)
    else:
        write(dst, np.float32(1) / a)
    return core.issue("reciprocal", Engine.vector, (data,), (dst,), name)
