"""The named cases: one list for tests, benchmarks, the support matrix and `tkg verify`."""

from __future__ import annotations

from tkg.testing.case import Case, ProjectionCase
from tkg.testing.edge_cases import EDGE_CASES
from tkg.testing.model_cases import MODEL_CASES
from tkg.testing.projection_cases import PROJECTION_CASES

CASES: tuple[Case, ...] = MODEL_CASES + EDGE_CASES


def select(tag: str) -> tuple[Case | ProjectionCase, ...]:
    """Every case, of both operations, that has the tag; "all" for every case.

    Raises:
        ValueError: no case has the tag.
    """
    everything = (*CASES, *PROJECTION_CASES)
    chosen = tuple(case for case in everything if tag == "all" or tag in case.tags)
    if not chosen:
        tags = sorted({t for case in everything for t in case.tags} | {"all"})
        raise ValueError(f"tag must be one of {', '.join(tags)}; got {tag!r}")
    return chosen


def find(name: str) -> Case | ProjectionCase:
    """The case of that name.

    Raises:
        ValueError: there is none.
    """
    for case in (*CASES, *PROJECTION_CASES):
        if case.name == name:
            return case
    raise ValueError(f"case must be a name that `tkg verify` lists; got {name!r}")
