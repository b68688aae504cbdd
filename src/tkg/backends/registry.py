"""The written table of backends, and the questions one may ask of each.

A backend is a module with:
    unavailable() -> str | None                     why it cannot run here, or None
    unsupported(call) -> list[str]                  why it cannot run this legal call
    prepare(part) -> part                           a Block or Linear in its own form, made once
    attention_block(call) -> BlockOutput            run a BlockCall
    output_projection(call) -> array                run a ProjectionCall
and, where its arrays are not always on the device that the table names:
    device() -> str                                 where they are now
and, where what it rounds on the way depends on the machine:
    computes() -> str                               see `tkg.testing.budgets`
and all three, or none, where a step, projection or call like an earlier one costs less:
    repeat(call, slots, shape) -> Repeat or None    see `tkg.contract.repeats`
    repeat_projection(call, x, shape) -> RepeatProjection or None
    repeat_call(call, arguments) -> RepeatCall or None
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tkg.contract.block import BlockCall
from tkg.contract.cost import Call
from tkg.contract.errors import Unsupported


@dataclass(frozen=True, eq=False)
class Backend:
    """One row of the table.

    Attributes:
        name: what a user passes as `backend=`.
        module: the module that runs calls.
        device: where its arrays live, as in torch's device types.
        needs: what must be there for it to run.
    """

    name: str
    module: str
    device: str
    needs: str


BACKENDS = (
    Backend("reference", "tkg.backends.reference", "cpu", "NumPy"),
    Backend("cpu", "tkg.backends.cpu", "cpu", "the compiled C++ core"),
    Backend("cuda", "tkg.backends.cuda", "cuda", "an NVIDIA GPU, torch and Triton"),
    Backend("neuron", "tkg.backends.neuron", "cpu", "a NeuronCore, or its simulator nkisim"),
)

DEFAULTS = {"cpu": "cpu", "cuda": "cuda", "none": "cpu"}
"""Device of a call's arrays to the backend that runs it when none is named."""


def names() -> list[str]:
    """The names of all backends."""
    return [backend.name for backend in BACKENDS]


def find(name: str, operation: str) -> Backend:
    """The backend called `name`; `operation` is who asks, for the error message.

    Raises:
        ValueError: there is none.
    """
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"{operation}: backend must be None or one of {names()}; got {name!r}")


@functools.cache
def load(backend: Backend) -> ModuleType:
    """The backend's module."""
    return importlib.import_module(backend.module)


def unavailable(backend: Backend) -> str | None:
    """Why a backend cannot run anything on this machine, or `None` if it can."""
    return load(backend).unavailable()


def device_of(backend: Backend) -> str:
    """Where a backend's arrays live in this process, as in torch's device types."""
    module = load(backend)
    return module.device() if hasattr(module, "device") else backend.device


def unsupported(backend: Backend, call: Call) -> list[str]:
    """Every reason why a backend cannot run a legal call; empty if it can."""
    reason = unavailable(backend)
    return _unsupported_here(backend, call) if reason is None else [reason]


def _unsupported_here(backend: Backend, call: Call) -> list[str]:
    """The same for a backend that can run on this machine."""
    device, needed = call.device, device_of(backend)
    if device not in (needed, "none") and device.split(":")[0] != needed:
        return [f"it works on arrays on {needed}; these are on {device}"]
    return list(load(backend).unsupported(call))


def choose_for(name: str | None, device: str, operation: str = "choosing a backend") -> Backend:
    """The backend named, or the one for arrays on `device`; it must be able to run here.

    Raises:
        ValueError: no backend has that name.
        Unsupported: it cannot run on this machine, or no backend works on such a device.
    """
    if name is None:
        place = device.split(":")[0]
        if place not in DEFAULTS:
            reasons = {backend: [f"works on no arrays on {device}"] for backend in names()}
            raise Unsupported(operation, reasons)
        name = DEFAULTS[place]
    backend = find(name, operation)
    reason = unavailable(backend)
    if reason is not None:
        able = [other.name for other in BACKENDS if unavailable(other) is None]
        raise Unsupported(operation, {name: [reason]}, able)
    return backend


def choose(name: str | None, call: Call) -> Backend:
    """The backend to run `call` on: the named one, or the one where the arrays are.

    Raises:
        ValueError: no backend has that name.
        Unsupported: that backend cannot run the call. There is no fallback to another.
    """
    backend = choose_for(name, call.device, call.operation)
    reasons = _unsupported_here(backend, call)
    if reasons:
        raise Unsupported(call.operation, {backend.name: reasons}, _others(backend, call))
    return backend


def run(name: str | None, call: Call) -> Any:
    """What the backend that `choose` names returns for `call`.

    Raises:
        ValueError, Unsupported: as `choose`; also where only running tells that it cannot.
    """
    backend = choose(name, call)
    module = load(backend)
    start = module.attention_block if isinstance(call, BlockCall) else module.output_projection
    try:
        return start(call)
    except Unsupported as refusal:
        others = _others(backend, call)
        raise Unsupported(call.operation, refusal.reasons, others) from refusal


def _others(backend: Backend, call: Call) -> list[str]:
    """The other backends that could run a call."""
    others = [other for other in BACKENDS if other is not backend]
    return [other.name for other in others if not unsupported(other, call)]


def status() -> list[tuple[str, str | None]]:
    """Each backend's name, and why it is unavailable here (`None`: it is available)."""
    return [(backend.name, unavailable(backend)) for backend in BACKENDS]
