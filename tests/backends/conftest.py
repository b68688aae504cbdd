"""A call that a backend refuses for a documented limit is an expected failure, with its reasons;
which drop-in calls Python checks can be counted."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

import tkg
from tests.calls import documented
from tkg import api
from tkg.contract.repeats import Calls


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    except tkg.Unsupported as refusal:
        if not documented(refusal):
            raise
        pytest.xfail(str(refusal))


@pytest.fixture
def checks_of_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A program's beginning; one entry for each legal call that Python checks from then on."""
    made: list[Any] = []
    full = api.run_block

    def counted(call: Any, backend: str | None) -> Any:
        made.append(call.x.shape)
        return full(call, backend)

    monkeypatch.setattr(api, "_CALLS", Calls())
    monkeypatch.setattr(api, "run_block", counted)
    return made
