"""A tiny model for the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runner import tiny_models


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama's safetensors folder."""
    return tiny_models.save(tiny_models.make("llama"), tmp_path_factory.mktemp("llama"))
