"""Planted bugs are caught with their lines, and their clean twins pass without a word."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nkisim import NkiHazardError, NkiValidationError
from nkisim.kernel import Run
from tests.nkisim.harness import observe
from tests.nkisim.planted_bugs import BUGS, Bug

HAZARDS = [bug for bug in BUGS if bug.kind]


def places(bug: Bug) -> list[str]:
    """file:line of each piece of source that the error must name, in the kernel's own body."""
    lines, first = inspect.getsourcelines(bug.body)
    start = next(i for i, line in enumerate(lines) if line.startswith("def "))
    found = []
    for piece in bug.lines:
        at = next(i for i, line in enumerate(lines) if piece in line and i > start)
        found.append(f"{Path(inspect.getfile(bug.body)).name}:{first + at}")
    return found


def run(bug: Bug, broken: bool, checks: str = "raise") -> Run:
    needs_table = len(inspect.signature(bug.body).parameters) == 2
    inputs = [np.ones((64, 8), np.float32)] if needs_table else []
    return observe(bug.body, broken, *inputs, lnc=bug.cores, checks=checks)


def named(bug: Bug) -> Any:
    return pytest.param(bug, id=bug.body.__name__)


@pytest.mark.parametrize("bug", [named(b) for b in BUGS])
def test_the_bug_is_caught(bug: Bug) -> None:
    with pytest.raises(NkiValidationError) as caught:
        run(bug, True)
    text = str(caught.value)
    assert isinstance(caught.value, NkiHazardError) or not bug.kind
    for piece in (*bug.says, *places(bug)):
        assert piece in text


@pytest.mark.parametrize("bug", [named(b) for b in BUGS])
def test_the_clean_twin_passes(bug: Bug) -> None:
    for checks in ("raise", "report"):
        assert run(bug, False, checks).report.findings == []


@pytest.mark.parametrize("bug", [named(b) for b in HAZARDS])
def test_a_hazard_can_be_reported_instead(bug: Bug) -> None:
    """The program goes on to its end, and its report has the finding."""
    findings = run(bug, True, "report").report.findings
    kinds = {finding.kind for finding in findings}
    assert bug.kind in kinds
    assert kinds <= {bug.kind, "race"}  # a race may also show as what it leads to


@pytest.mark.parametrize("bug", [named(b) for b in HAZARDS])
def test_nothing_is_looked_for_without_checks(bug: Bug) -> None:
    assert run(bug, True, "off").report.findings == []
