"""Kernels as a user writes them: they import nki, which is the simulator while that happens."""

import sys

import nkisim

_there = "nki" in sys.modules
nkisim.install(force=True)
try:
    from tests.nkisim.kernels import elementwise, layout, mamba, matmul, normalise, runtime
finally:
    if not _there:
        nkisim.uninstall()

__all__ = ["elementwise", "layout", "mamba", "matmul", "normalise", "runtime"]
