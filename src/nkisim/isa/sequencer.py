"""Scalar registers of the engines' sequencers: loop bounds, conditions, run-time addresses."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dtypes, dynamic, rules, running
from ..enums import PSUM
from ..enums import engine as Engine
from ..errors import NkiValidationError
from ..operands import value, write_bits
from ..record import NkiInstruction
from ..registers import VirtualRegister
from ..tensor import NkiTensor

_LOW, _HIGH = -(2**31), 2**32 - 1


class FrozenRegisterError(NkiValidationError, AssertionError):
    """A loop's counter is written (an AssertionError in NKI 0.4)."""


def register_alloc(x: int | None = None) -> VirtualRegister:
    """A register, holding `x` (32 bits) if given."""
    if isinstance(x, NkiTensor):
        rules.refuse("register_alloc", "x", f"got {x!r}", "register_load to read a tensor")
    if x is not None:
        _immediate("register_alloc", "x", x)
    return VirtualRegister(x)


def register_move(dst: VirtualRegister, src: int | VirtualRegister) -> NkiInstruction:
    """dst = src, a number or another register. Record: `register_move` on the Sync engine."""
    op = "register_move"
    _writable(op, dst)
    if isinstance(src, VirtualRegister):
        dst.value = _read(op, src)
    else:
        dst.value = _immediate(op, "src", src)
    return running.current().issue(op, Engine.sync, (), ())


def register_load(dst: VirtualRegister, src: NkiTensor) -> NkiInstruction:
    """dst = the one element of `src` (HBM or SBUF): an integer of at most 32 bits, or the bits of a
    float32."""
    op = "register_load"
    _writable(op, dst)
    _one_element(op, "src", src)
    source = dynamic.resolve(op, "src", src)
    assert source is not None
    element = value(op, "src", source).reshape(-1)[:1]
    dst.value = int((element.view(np.uint32) if src.dtype == "float32" else element)[0])
    reads = (source, *dynamic.index_tiles(src))
    return running.current().issue(op, Engine.sync, reads, ())


def register_store(dst: NkiTensor, src: VirtualRegister) -> NkiInstruction:
    """The one element of `dst` (HBM or SBUF; an integer or float32) = the register's low bits."""
    op = "register_store"
    _one_element(op, "dst", dst)
    if not isinstance(src, VirtualRegister):
        rules.refuse(op, "src", f"must be a register, got {src!r}", "register_alloc")
    bits = np.array([_read(op, src) & 0xFFFFFFFF], np.uint32)
    target = dynamic.resolve(op, "dst", dst)
    assert target is not None
    kind = dtypes.NUMPY[dst.dtype]
    write_bits(target, bits.astype(f"u{kind.itemsize}").view(kind))
    return running.current().issue(op, Engine.sync, dynamic.index_tiles(dst), (target,))


def _read(op: str, register: VirtualRegister) -> int:
    if register.value is None:
        rules.refuse(op, "src", "the register was never written", "register_move or register_load")
    return register.value


def _writable(op: str, register: Any) -> None:
    if not isinstance(register, VirtualRegister):
        rules.refuse(op, "dst", f"must be a register, got {register!r}", "register_alloc")
    if register.frozen:
        raise FrozenRegisterError(
            f"{running.site()}: {op}: dst: a loop's counter cannot be written; use another register"
        )


def _immediate(op: str, argument: str, number: Any) -> int:
    if not isinstance(number, (int, np.integer)) or isinstance(number, bool):
        rules.refuse(op, argument, f"must be an int or a register, got {number!r}", "an int")
    if not _LOW <= number <= _HIGH:
        rules.refuse(op, argument, f"{number} does not fit in 32 bits", "a 32-bit value")
    return int(number)


def _one_element(op: str, argument: str, tensor: Any) -> None:
    rules.tensors(op, **{argument: tensor})
    if tensor.buffer is PSUM:
        rules.refuse(op, argument, f"{tensor!r} is in PSUM", "a tensor in SBUF or HBM")
    if tensor.size != 1:
        rules.refuse(
            op, argument, f"{tensor.size} elements; a register holds one", "a (1, 1) tensor"
        )
    if tensor.dtype not in dtypes.INTEGERS and tensor.dtype != "float32":
        rules.refuse(op, argument, f"dtype {tensor.dtype}", "an integer dtype or float32")
