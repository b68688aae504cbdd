"""What the simulator raises: a broken rule, a hazard, or an instruction it does not have."""

from __future__ import annotations


class NkiValidationError(Exception):
    """A rule of the hardware or of NKI is broken. The text names the kernel's line, the
    instruction, the argument, the rule, the value received and the fix."""


class NkiHazardError(NkiValidationError):
    """The program is legal but its result rests on luck: uninitialised memory read, memory
    used after it was given away, two accesses that nothing orders, a deadlock."""


class NkiNotImplementedError(NotImplementedError):
    """A name of NKI that this simulator, or the simulated core, does not have."""
