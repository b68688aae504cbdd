"""`tkg.backends.cuda.check` where there is no device to ask."""

from __future__ import annotations

import pytest

import tkg
from tkg.backends import cuda
from tkg.backends.cuda import errors


def test_check_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "unavailable", lambda: "no driver")
    with pytest.raises(tkg.Unsupported, match="cuda: no driver"):
        cuda.check()
