"""Running calls without side effects, and comparing what comes back."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

import tkg
from tkg.testing import placed
from tkg.testing.budgets import Check, check_block, check_projection
from tkg.testing.verify import computes

Call = dict[str, Any]

BACKENDS = os.environ.get("TKG_TEST_BACKENDS", "reference,cpu").split(",")
"""A backend that is named here and cannot run fails its tests; it is not skipped."""

NEURON_CORES = int(os.environ.get("TKG_TEST_NEURON_CORES", "1"))
"""On how many cores at least the suite launches the neuron backend."""

REFUSALS = {
    "neuron": (
        r"d_head is n \* m with n up to 4 and m up to 128; this is \d+",
        r"B \* S_tkg is at most 512; this is \d+",
        r"S_tkg is at most 128; this is \d+",
        r"B \* S is at most 512; this is \d+",
        r"the slots of all KV heads are at most 16777215; this is \d+",
        r"on two cores X's H must be even; this is \d*[13579]",
        r"the output's H must be a multiple of lnc = 2; this is \d*[13579]",
        r"H must be a multiple of lnc = 2; this is \d*[13579]",
    )
}
"""What each backend says that it cannot run: its documented limits, word by word."""


def documented(refusal: tkg.Unsupported) -> bool:
    """Whether each reason is one of `REFUSALS`, and a value that it names is past the limit."""
    for backend, reasons in refusal.reasons.items():
        for reason in reasons:
            if not any(re.fullmatch(known, reason) for known in REFUSALS.get(backend, ())):
                return False
            bounds = re.search(r"at most (\d+); this is (\d+)", reason)
            if bounds and int(bounds[2]) <= int(bounds[1]):
                return False
    return "reference" in refusal.alternatives


@contextmanager
def unless_documented() -> Iterator[None]:
    """A refusal that the docs announce ends the block; any other is an error."""
    try:
        yield
    except tkg.Unsupported as refusal:
        if not documented(refusal):
            raise


def cores(backend: str) -> int:
    """On how many cores at least the suite launches `backend`."""
    return NEURON_CORES if backend == "neuron" else 1


def on_cores(backend: str, call: Call) -> Call:
    """The call as the suite launches it on `backend`. A transposed output has a layout for one
    number of cores, so it keeps its own."""
    if call.get("transposed_out") or call.get("TRANSPOSE_OUT"):
        return call
    return call | {"lnc": max(cores(backend), call.get("lnc", 1))}


def run(backend: str, call: Call) -> tuple[Any, Any, Any]:
    """`attention_block_tkg` on copies of the caches; NumPy arrays, whatever the backend takes."""
    return placed.attention_block(on_cores(backend, call), backend)


def run_as_is(backend: str, call: Call) -> tuple[Any, Any, Any]:
    """`attention_block_tkg` on the call's own arrays: they are of the kind that `backend` takes."""
    return tkg.attention_block_tkg(**on_cores(backend, call), backend=backend)


def project(backend: str, call: Call) -> np.ndarray:
    """`output_projection_tkg`, likewise."""
    return placed.output_projection(on_cores(backend, call), backend)


def block_checks(backend: str, call: Call, truth: Any) -> list[Check]:
    return check_block(call, run(backend, call), truth, computes(backend))


def projection_check(backend: str, call: Call, truth: np.ndarray) -> Check:
    return check_projection(call, project(backend, call), truth, computes(backend))


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
