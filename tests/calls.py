"""Running calls without side effects, and comparing what comes back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tkg.testing import placed
from tkg.testing.budgets import Check, check_block, check_projection
from tkg.testing.verify import COMPUTES

Call = dict[str, Any]

BACKENDS = os.environ.get("TKG_TEST_BACKENDS", "reference,cpu").split(",")
"""A backend that is named here and cannot run fails its tests; it is not skipped."""


def run(backend: str, call: Call) -> tuple[Any, Any, Any]:
    """`attention_block_tkg` on copies of the caches; NumPy arrays, whatever the backend takes."""
    return placed.attention_block(call, backend)


def project(backend: str, call: Call) -> np.ndarray:
    """`output_projection_tkg`, likewise."""
    return placed.output_projection(call, backend)


def block_checks(backend: str, call: Call, truth: Any) -> list[Check]:
    return check_block(call, run(backend, call), truth, COMPUTES[backend])


def projection_check(backend: str, call: Call, truth: np.ndarray) -> Check:
    return check_projection(call, project(backend, call), truth, COMPUTES[backend])


def failures(checks: list[Check]) -> list[Check]:
    return [check for check in checks if not check.ok]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the last bit, NaN patterns and signs of zero included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def checksums(call: Mapping[str, Any]) -> dict[str, str]:
    """A digest of every array's bytes."""
    return {
        name: hashlib.sha256(value.tobytes()).hexdigest()
        for name, value in call.items()
        if isinstance(value, np.ndarray)
    }


def without(call: Call, *names: str) -> Call:
    return {name: value for name, value in call.items() if name not in names}
