"""The case list: names, reproducible numbers, and that it reaches every option."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from tests.calls import checksums
from tkg.testing.case import Case
from tkg.testing.cases import CASES, PROJECTION_CASES, find, select

TAGS = {"smoke", "ci", "bench", "edge", "model"}


def test_names_are_unique_and_tags_known() -> None:
    everything = [*CASES, *PROJECTION_CASES]
    assert len({case.name for case in everything}) == len(everything)
    for case in everything:
        assert case.tags <= TAGS
        assert {"ci", "bench"} & case.tags


def test_inputs_follow_from_name_and_seed() -> None:
    case = find("llama3-8b-tp8-fp8")
    assert checksums(case.inputs(1)) == checksums(case.inputs(1))
    assert checksums(case.inputs(1))["X"] != checksums(case.inputs(2))["X"]
    assert checksums(case.inputs(1))["X"] != checksums(find("llama3-8b-tp8").inputs(1))["X"]


def test_every_option_is_used_by_some_case() -> None:
    """No field of `Case` has one value only over the whole list."""
    for field in fields(Case):
        assert len({getattr(case, field.name) for case in CASES}) > 1, field.name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("d_head", d) for d in (2, 6, 64, 128, 256, 512)),
        *(("block_len", n) for n in (1, 3, 16)),
        *(("tokens", n) for n in (1, 2, 128)),
        *(("cache_dtype", d) for d in ("float8_e4m3", "float8_e4m3fn", "float16", "float32")),
        *(("qkv", q) for q in ("STATIC", "ROW")),
        *(("out", q) for q in ("STATIC", "ROW")),
        *(("lnc", n) for n in (1, 2)),
        *(("visible", v) for v in ("positions", "causal", "holes", "nothing")),
        *(("rope", r) for r in (None, "half", "interleaved")),
    ],
)
def test_edges_are_there(name: str, value: object) -> None:
    assert any(getattr(case, name) == value for case in CASES if "ci" in case.tags)


def test_odd_groups_are_there() -> None:
    assert {5, 7, 3, 1} <= {case.q_heads // case.kv_heads for case in CASES}


@pytest.mark.parametrize("case", [c for c in CASES if "smoke" in c.tags], ids=str)
def test_unread_places_are_filled_as_asked(case: Case) -> None:
    assert not has_nan(case.inputs(invalid=0.0))
    assert has_nan(case.inputs())


def has_nan(call: dict) -> bool:
    arrays = [a for a in call.values() if isinstance(a, np.ndarray) and a.dtype.kind not in "biu"]
    return any(np.isnan(array.astype(np.float32)).any() for array in arrays)


def test_unknown_names_and_tags_are_refused() -> None:
    with pytest.raises(ValueError, match="'nightly'.*|.*smoke"):
        select("nightly")
    with pytest.raises(ValueError, match="'llama9'"):
        find("llama9")
