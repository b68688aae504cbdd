"""What the simulated chip is, as `nki.isa` tells it."""

from __future__ import annotations

from .. import running
from ..chips import CHIPS
from ..enums import nc_version
from ..kernel import options


def get_nc_version() -> nc_version:
    """The generation of the running kernel's core, else of the target that the options name."""
    chip = CHIPS[options().target] if running.core is None else running.core.chip
    return nc_version(chip.generation)


def get_nc_sub_version() -> int:
    """The silicon revision: the first."""
    return 0
