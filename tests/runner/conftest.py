"""The tiny models on disk, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.runner import tiny_models

torch.set_num_threads(1)  # its idle threads would spin beside those of the C++ core


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The safetensors folder of a family."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            path = tmp_path_factory.mktemp(family)
            made[family] = tiny_models.save(tiny_models.make(family), path)
        return made[family]

    return folder
