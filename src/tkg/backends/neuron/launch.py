"""Where the kernels run: AWS's NKI on a NeuronCore if it is installed, else the simulator
nkisim."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
from typing import Any

_one_at_a_time = threading.Lock()
"""A simulator runs one kernel at a time in a process."""


@functools.cache
def simulated() -> bool:
    """Whether `nki` is the simulator here. The first call makes `import nki` work."""
    if "nki" in sys.modules:
        return getattr(sys.modules["nki"].__spec__, "origin", None) == "nkisim"
    if importlib.util.find_spec("nki") is not None:
        return False
    importlib.import_module("nkisim").install()
    return True


def unavailable() -> str | None:
    """Why no kernel can run on this machine, or None."""
    if importlib.util.find_spec("nki") is None and importlib.util.find_spec("nkisim") is None:
        return "neither NKI nor its simulator nkisim is installed"
    return None


@functools.cache
def kernel(name: str) -> Any:
    """The kernel of that name, from the module of the same name."""
    simulated()
    nki = importlib.import_module("nki")
    module = importlib.import_module(f"tkg.backends.neuron.{name}")
    return nki.jit(getattr(module, name))


def launch(name: str, lnc: int, arguments: dict[str, Any]) -> Any:
    """Run a kernel on `lnc` cores; what it returns. Array arguments it writes are updated."""
    with _one_at_a_time:
        return kernel(name)[lnc](**arguments)


def run_with_report(name: str, lnc: int, arguments: dict[str, Any]) -> Any:
    """Run a kernel on the simulator: an `nkisim.Run`, with its report."""
    if not simulated():
        raise RuntimeError("reports come from the simulator nkisim; AWS's NKI is installed here")
    with _one_at_a_time:
        return importlib.import_module("nkisim").run(kernel(name), lnc=lnc, **arguments)
