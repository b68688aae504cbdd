"""Which program of the launch this is, and printing from a kernel."""

from __future__ import annotations

from typing import Any

from .. import rules, running
from ..enums import PSUM
from ..tensor import NkiTensor


def program_id(axis: int = 0) -> int:
    """The index of this program in the launch: 0, or 1 on the second core of `kernel[2]`."""
    _only_axis("program_id", "axis", axis)
    return running.current().program_id


def num_programs(axes: Any = 0) -> int:
    """How many programs the launch has: 1, or 2 for `kernel[2]`."""
    for axis in axes if isinstance(axes, (tuple, list)) else (axes,):
        _only_axis("num_programs", "axes", axis)
    return running.current().programs


def _only_axis(op: str, argument: str, axis: Any) -> None:
    if axis not in (0, None):
        rules.refuse(op, argument, f"got {axis!r}; a launch has one axis", "0")


def program_ndim() -> int:
    """1 for `kernel[2]`, 0 for a launch of one program, whose grid is not there."""
    return 1 if running.current().programs > 1 else 0


def device_print(print_prefix: str, tensor: NkiTensor) -> None:
    """Print the values of a tensor in HBM or SBUF, unwritten elements too, after a prefix."""
    if not isinstance(print_prefix, str):
        rules.refuse("device_print", "print_prefix", f"got {print_prefix!r}", "a string")
    rules.tensors("device_print", tensor=tensor)
    if tensor.buffer is PSUM or tensor.dynamic is not None:
        rules.refuse("device_print", "tensor", f"{tensor!r}", "a static tensor in SBUF or HBM")
    print(print_prefix, tensor.array)
