"""Loops: those that unroll while the kernel is built, and those that the device runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .. import rules, running
from ..enums import engine as Engine
from ..registers import VirtualRegister, register_value

_STATIC = "an int; nl.fori_loop takes registers"


def affine_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """Python's `range`: the loop is unrolled."""
    return _unrolled("affine_range", start, stop, step)


def sequential_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """Python's `range`: the loop is unrolled."""
    return _unrolled("sequential_range", start, stop, step)


def static_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """Python's `range`: the loop is unrolled."""
    return _unrolled("static_range", start, stop, step)


def _unrolled(op: str, start: Any, stop: Any, step: Any) -> range:
    for argument, number in (("start", start), ("stop", stop), ("step", step)):
        if isinstance(number, VirtualRegister):
            rules.refuse(op, argument, f"{number!r} is known at run time only", _STATIC)
    return range(start) if stop is None else range(start, stop, step)


def dynamic_range(start: Any, stop: Any = None, step: int = 1) -> Iterator[VirtualRegister]:
    """A device loop as a `for` loop; the bounds may be registers, the counter is a read-only
    register. Deprecated by NKI 0.6: use `fori_loop`."""
    warnings.warn(
        "nl.dynamic_range is deprecated (NKI 0.6); use nl.fori_loop", DeprecationWarning, 2
    )
    low, high = (0, start) if stop is None else (start, stop)
    numbers = _counted("dynamic_range", low, high, step)
    return (VirtualRegister(number, frozen=True) for number in _on_device(numbers))


def fori_loop(
    lower: Any, upper: Any, body_fun: Callable[[VirtualRegister], Any], step: int = 1
) -> None:
    """A device loop: body_fun(i) for i from `lower` to `upper` (exclusive), ints or registers; `i`
    is a read-only register."""
    for number in _on_device(_counted("fori_loop", lower, upper, step)):
        body_fun(VirtualRegister(number, frozen=True))


def while_loop(
    init: VirtualRegister, body_fun: Callable[[VirtualRegister], VirtualRegister]
) -> None:
    """A device loop while a register is not 0, tested before each round: r = body_fun(r)."""
    _outside_no_reorder("while_loop")
    register = _condition(init, "init")
    with running.current().device_loop():
        while register_value(register) != 0:
            register = _condition(body_fun(VirtualRegister(register.value)), "body_fun's result")
            _branch()


def _counted(op: str, lower: Any, upper: Any, step: Any) -> range:
    _outside_no_reorder(op)
    if type(step) is not int or step < 1:
        rules.refuse(op, "step", f"got {step!r}", "a positive int known when the kernel is built")
    return range(register_value(lower), register_value(upper), step)


def _on_device(numbers: range) -> Iterator[int]:
    with running.current().device_loop():
        for number in numbers:
            yield number
            _branch()


def _branch() -> None:
    running.current().issue("branch", Engine.sync, (), ())


def _condition(register: Any, argument: str) -> VirtualRegister:
    if not isinstance(register, VirtualRegister):
        rules.refuse("while_loop", argument, f"got {register!r}", "the next condition, a register")
    return register


def _outside_no_reorder(op: str) -> None:
    if running.current().no_reorder:
        rules.refuse(
            op, "no_reorder", "a device loop inside it", "no_reorder inside the loop's body"
        )


@contextmanager
def no_reorder() -> Iterator[None]:
    """What is issued inside keeps its order; device loops are not allowed inside."""
    core = running.current()
    core.no_reorder += 1
    try:
        yield
    finally:
        core.no_reorder -= 1
