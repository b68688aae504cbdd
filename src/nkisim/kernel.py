"""`nki.jit`, `nki.simulate` and launching a kernel on simulated cores."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import running
from .arguments import Bound
from .chips import CHIPS
from .core import Core
from .errors import NkiNotImplementedError, NkiValidationError
from .program import Options, Program
from .report import Report
from .turns import on_core


@dataclass(frozen=True)
class Run:
    """A finished run: what the kernel returned, and the report of how it ran."""

    result: Any
    report: Report


class Kernel:
    """An NKI kernel. `kernel(...)` runs it on one core, `kernel[2](...)` on both of an LNC pair;
    called within a kernel it is an ordinary function."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.lnc = 1
        self.schedule: tuple[tuple[str, tuple[str, ...]], ...] = ()
        self.__name__ = getattr(function, "__name__", "kernel")
        self.__doc__ = function.__doc__
        self.__wrapped__ = function
        self.report: Report | None = None

    def __getitem__(self, lnc: Any) -> Kernel:
        lnc = lnc[0] if isinstance(lnc, tuple) and len(lnc) == 1 else lnc
        if lnc not in (1, 2):
            raise NkiValidationError(
                f"{self.__name__}[{lnc!r}]: lnc: a launch has 1 or 2 cores (LNC); use [1] or [2]"
            )
        other = copy.copy(self)
        other.lnc = lnc
        return other

    def with_schedule(self, schedule: Sequence[tuple[str, Any]]) -> Kernel:
        """Add edges by name: each (consumer, producer or producers); the consumer waits."""
        other = copy.copy(self)
        other.schedule = tuple(
            (consumer, (producers,) if isinstance(producers, str) else tuple(producers))
            for consumer, producers in schedule
        )
        return other

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if running.inside():
            return self.function(*args, **kwargs)
        return run(self, *args, **kwargs).result


_defaults = Options()

on_report: list[Callable[[Report], None]] = []
"""Called with the report of each finished launch, in order."""


def set_options(**changes: Any) -> Options:
    """Change the options of all later runs (fields of `Options`); returns the former ones."""
    global _defaults
    before = _defaults
    _defaults = replace(_defaults, **changes)
    _check(_defaults)
    return before


def options() -> Options:
    """The present options; NEURON_PLATFORM_TARGET_OVERRIDE names the target where it is set."""
    target = os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE")
    chosen = replace(_defaults, target=target) if target else _defaults
    _check(chosen)
    return chosen


def _check(chosen: Options) -> None:
    if chosen.target not in CHIPS:
        raise ValueError(f"options: target: no chip {chosen.target!r}; use {', '.join(CHIPS)}")
    if chosen.checks not in ("raise", "report", "off"):
        raise ValueError(f"options: checks: got {chosen.checks!r}; use raise, report or off")


def jit(function: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
    """Make a function an NKI kernel (also as `@jit(...)`). `mode=` is ignored, as in NKI 0.3."""
    if "platform_target" in kwargs:
        raise NkiValidationError(
            "jit: platform_target: removed in NKI 0.3; set NEURON_PLATFORM_TARGET_OVERRIDE, or"
            " nkisim.run(target=)"
        )
    if function is None:
        return jit
    return function if isinstance(function, Kernel) else Kernel(function)


def simulate(kernel: Any) -> Callable[..., Any]:
    """A callable that runs `kernel` on the simulator and returns what it returns."""
    chosen = jit(kernel)

    def call(*args: Any, **kwargs: Any) -> Any:
        return run(chosen, *args, **kwargs).result

    return call


def run(kernel: Any, *args: Any, lnc: int | None = None, options_: Options | None = None,
        **kwargs: Any) -> Run:  # fmt: skip
    """Run a kernel and keep the report. `lnc` and `options_` default to the kernel's and the
    present options; everything else goes to the kernel."""
    chosen = jit(kernel)
    if lnc is not None:
        chosen = chosen[lnc]
    return run_ranks(chosen, [(args, kwargs)], options_)[0]


def run_ranks(
    kernel: Any,
    calls: Sequence[tuple[Sequence[Any], dict[str, Any]]],
    options_: Options | None = None,
) -> list[Run]:
    """Run a kernel on one simulated device a call, which may talk through `nki.collectives`."""
    chosen = jit(kernel)
    settings = options_ or options()
    _check(settings)
    if os.environ.get("NKI_PRECISE_FP") == "0":
        raise NkiNotImplementedError(
            f"{chosen.__name__}: NKI_PRECISE_FP=0: this simulator rounds every value to its dtype;"
            " unset it, or give the tensors dtype nl.float32"
        )
    if running.inside():
        raise NkiValidationError(f"{chosen.__name__}: a kernel cannot launch another run")
    with running.launch:
        return _launch(chosen, calls, settings)


def _launch(
    chosen: Kernel, calls: Sequence[tuple[Sequence[Any], dict[str, Any]]], settings: Options
) -> list[Run]:
    program = Program(settings, name=chosen.__name__)
    bound: list[Bound] = []
    bodies: list[tuple[Core, Callable[[], Any]]] = []
    for rank, (args, kwargs) in enumerate(calls):
        first = len(program.cores)
        cores = [Core(program, first + i, i, chosen.lnc, rank) for i in range(chosen.lnc)]
        program.cores += cores
        binding = Bound(shared=chosen.lnc > 1)
        names, values = _named(chosen.function, args, kwargs)
        tensors = on_core(cores[0], lambda b=binding, n=names, v=values: [*map(b.bind, v, n)])
        bound.append(binding)
        bodies += [(core, _body(chosen, tensors, args, kwargs)) for core in cores]
    results = program.turns.run(bodies)
    finished = []
    for rank, binding in enumerate(bound):
        core = program.cores[rank * chosen.lnc]
        result = on_core(core, lambda b=binding, r=results[rank * chosen.lnc]: b.result(r))
        finished.append((binding, result))
    report = Report.of(program, chosen.schedule)
    for binding, _ in finished:
        binding.write_back()
    chosen.report = report
    for observer in on_report:
        observer(report)
    return [Run(result, report) for _, result in finished]


def _named(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[list[str], list[Any]]:
    """The parameters' names and values, positional ones first; a wrong call raises TypeError."""
    parameters = inspect.signature(function).bind(*args, **kwargs).signature.parameters
    names = list(parameters)[: len(args)]
    names += [f"argument {i}" for i in range(len(names), len(args))]
    return names + list(kwargs), [*args, *kwargs.values()]


def _body(
    kernel: Kernel, tensors: list[Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Callable[[], Any]:
    positional = tensors[: len(args)]
    keyword = dict(zip(kwargs, tensors[len(args) :], strict=True))
    return lambda: kernel.function(*positional, **keyword)
