"""A shorter suite, for a backend whose calls are slow: interpreted (cuda) or simulated (neuron).

`TKG_TEST_SHORT=1` tries fewer random calls and sizes, and leaves out the tests marked `repeats`,
which say on other numbers what others say. docs/cuda.md and docs/neuron.md list them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

SHORT = os.environ.get("TKG_TEST_SHORT") == "1"

EXAMPLES = int(os.environ.get("TKG_EXAMPLES", "4" if SHORT else "100"))
"""Random calls that a property is tried on."""

SWEEP_STEP = int(os.environ.get("TKG_SWEEP", "59" if SHORT else "1"))


def swept(values: Iterable[Any]) -> list[Any]:
    """The values of a sweep to try: every `SWEEP_STEP`th, and the last."""
    every = list(values)
    return [*every[:-1:SWEEP_STEP], every[-1]]
