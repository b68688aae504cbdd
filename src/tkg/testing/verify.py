"""Runs the named cases on a backend and compares them with the reference in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import tkg
from tkg.backends import reference, registry
from tkg.contract.block import BlockCall
from tkg.contract.projection import ProjectionCall
from tkg.testing.budgets import Check, Computes, Truth, check_block, check_projection
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.placed import attention_block, output_projection, own_caches

COMPUTES: dict[str, Computes] = {
    "reference": "float32",
    "cpu": "float32",
    "cuda": "same dtype",
    "neuron": "same dtype",
}
"""What each backend's intermediates are rounded to: it decides their budgets."""


def computes(backend: str) -> Computes:
    """`COMPUTES` of a backend as it runs here: a backend's module may say otherwise."""
    module = registry.load(registry.find(backend, "verify"))
    return module.computes() if hasattr(module, "computes") else COMPUTES[backend]


@dataclass(frozen=True)
class Row:
    """How a backend did on a case.

    Attributes:
        case: its name.
        checks: what was compared; empty if the backend refused the case.
        refused: the backend's reasons, or "".
    """

    case: str
    checks: tuple[Check, ...] = ()
    refused: str = ""

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def worst(self) -> Check | None:
        """The check that used most of its budget, or the first of several that used none."""
        return max(self.checks, key=lambda check: check.used, default=None)


def verify_cases(
    cases: Iterable[Case | ProjectionCase], backend: str | None = None, seed: int = 0
) -> Iterator[Row]:
    """Run and check each case; yields a row as soon as it is known.

    Args:
        cases: of either operation.
        backend: name, or `None` for the default one.
        seed: of the cases' random numbers.

    Raises:
        ValueError: no backend has that name.
        Unsupported: it cannot run on this machine.
    """
    name = registry.choose_for(backend, "cpu").name
    how = computes(name)
    for case in cases:
        call = case.inputs(seed)
        try:
            if isinstance(case, ProjectionCase):
                out = output_projection(call, name)
                checks = [check_projection(call, out, projection_truth(call), how)]
            else:
                result = attention_block(call, name)
                checks = check_block(call, result, block_truth(call), how)
        except tkg.Unsupported as error:
            yield Row(case.name, refused="; ".join(sum(map(list, error.reasons.values()), [])))
        else:
            yield Row(case.name, tuple(checks))


def block_truth(call: dict[str, Any]) -> Truth:
    """The reference's float64 answer to `attention_block_tkg(**call)`; updates nothing."""
    described = tkg.describe(tkg.attention_block_tkg, **own_caches(call))
    assert isinstance(described, BlockCall)
    return reference.attention_block_values(described, np.float64)


def projection_truth(call: dict[str, Any]) -> np.ndarray:
    """The reference's float64 answer to `output_projection_tkg(**call)`."""
    described = tkg.describe(tkg.output_projection_tkg, **call)
    assert isinstance(described, ProjectionCall)
    return reference.output_projection_values(described, np.float64)
