"""nkisim: a NeuronCore that runs NKI programs anywhere."""

from .errors import NkiHazardError, NkiNotImplementedError, NkiValidationError
from .install import install, uninstall
from .kernel import Kernel, Run, jit, options, run, run_ranks, set_options, simulate
from .lint import lint
from .program import Options
from .report import Report

__all__ = [
    "Kernel",
    "NkiHazardError",
    "NkiNotImplementedError",
    "NkiValidationError",
    "Options",
    "Report",
    "Run",
    "install",
    "jit",
    "lint",
    "options",
    "run",
    "run_ranks",
    "set_options",
    "simulate",
    "uninstall",
]
