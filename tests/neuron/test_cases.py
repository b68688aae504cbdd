"""Every named case on one core and on two, against float64; or refused, as listed here."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import tkg
from nkisim import kernel
from nkisim.report import Report
from tests.calls import Call, block_checks, checksums, failures, projection_check, run
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.cases import CASES, PROJECTION_CASES
from tkg.testing.verify import block_truth, projection_truth

REFUSED_ON_TWO = {
    "hidden-1": "on two cores X's H must be even; this is 1",
    "projection-tiny": "H must be a multiple of lnc = 2; this is 1",
}


def launches(case: Case | ProjectionCase) -> list[int]:
    """The numbers of cores a case is for: a transposed output has a layout for one number."""
    fixed = case.transposed if isinstance(case, ProjectionCase) else case.projection == "transposed"
    return [case.lnc] if fixed else [1, 2]


NAMED = [
    pytest.param(case, lnc, id=f"{case}-{lnc}")
    for case in (*CASES, *PROJECTION_CASES)
    if "ci" in case.tags
    for lnc in launches(case)
]


@pytest.fixture
def reports() -> Iterator[list[Report]]:
    """The reports of all launches of a test."""
    seen: list[Report] = []
    kernel.on_report.append(seen.append)
    yield seen
    kernel.on_report.remove(seen.append)


@pytest.mark.parametrize("case, lnc", NAMED)
def test_case(case: Case | ProjectionCase, lnc: int, reports: list[Report]) -> None:
    call = case.inputs() | {"lnc": lnc}
    reason = REFUSED_ON_TWO.get(case.name)
    if lnc == 2 and reason:
        refused(case, call, reason)
        assert not reports
        return
    if isinstance(case, ProjectionCase):
        assert projection_check("neuron", call, projection_truth(call)).ok
    else:
        before = checksums(call)
        assert not failures(block_checks("neuron", call, block_truth(call)))
        assert checksums(call) == before
    (report,) = reports
    assert len(report.program.cores) == lnc
    assert report.findings == []


def refused(case: Case | ProjectionCase, call: Call, reason: str) -> None:
    with pytest.raises(tkg.Unsupported, match=re.escape(reason)) as caught:
        if isinstance(case, ProjectionCase):
            tkg.output_projection_tkg(**call, backend="neuron")
        else:
            run("neuron", call)
    assert caught.value.alternatives == ("reference", "cpu")


def test_the_list_names_cases() -> None:
    assert {*REFUSED_ON_TWO} <= {str(case) for case in (*CASES, *PROJECTION_CASES)}
