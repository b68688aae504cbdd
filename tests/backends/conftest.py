"""A call that a backend refuses for a documented limit is an expected failure, with its reasons."""

from __future__ import annotations

from collections.abc import Generator

import pytest

import tkg
from tests.calls import documented


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    except tkg.Unsupported as refusal:
        if not documented(refusal):
            raise
        pytest.xfail(str(refusal))
