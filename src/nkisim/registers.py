"""Scalar registers of an engine's sequencer, as a kernel sees them."""

from __future__ import annotations

import warnings
from typing import Any

from . import running
from .enums import engine as Engine


class VirtualRegister:
    """A 32-bit register: bound of a device loop, condition, run-time address.

    `value` is its present value (int), or None before the first write. A loop's counter is
    `frozen`: a kernel may read it, not write it.
    """

    __slots__ = ("frozen", "value")

    def __init__(self, state: int | None = None, frozen: bool = False):
        self.value: int | None = None if state is None else int(state)
        self.frozen = frozen

    def __bool__(self) -> bool:
        warnings.warn("`while register` is deprecated; use nl.while_loop", DeprecationWarning, 2)
        if self.value is None:
            raise ValueError("VirtualRegister: read before it was written; register_move it first")
        if running.core is not None:
            running.core.issue("branch", Engine.sync, (), ())
        return self.value != 0

    def __index__(self) -> int:
        raise TypeError(
            "VirtualRegister: its value is not known while the kernel is built, so it cannot be an"
            " int; use it as scalar_offset, nl.ds start or loop bound"
        )

    def __repr__(self) -> str:
        return f"VirtualRegister({self.value})"


def register_value(register: Any) -> int:
    """The int in a register, or the int itself."""
    if isinstance(register, VirtualRegister):
        if register.value is None:
            raise ValueError("VirtualRegister: read before it was written; register_move it first")
        return register.value
    return int(register)
