"""The core whose program is being run now. One program runs at a time, so a global is enough."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import NkiValidationError
from .memory import Site

if TYPE_CHECKING:
    from .core import Core

core: Core | None = None

# Launches from several threads wait for each other; `inside` tells a launch from a call within one.
launch = threading.Lock()
thread = threading.local()

_PACKAGE = str(Path(__file__).parent)


def inside() -> bool:
    """Whether this thread is running a kernel now."""
    return getattr(thread, "inside", False)


def current() -> Core:
    """The running core; NkiValidationError outside a kernel."""
    if core is None:
        raise NkiValidationError(
            "no kernel is running: nki.isa and nki.language work inside a kernel only;"
            " call the kernel, or nki.simulate(kernel)(...)"
        )
    return core


def site() -> Site:
    """The innermost line of the call stack outside this package: the kernel's."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    if frame is None:
        return Site("<unknown>", 0)
    return Site(frame.f_code.co_filename, frame.f_lineno)
