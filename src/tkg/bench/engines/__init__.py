"""Who writes text with a whole model: tkg's runner, transformers, llama.cpp. One file each."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Generation:
    """What came out of one run.

    Attributes:
        text: the new text.
        tokens: new tokens after the first one, which belongs to the prompt's time.
        seconds: from the first new token to the last.
    """

    text: str
    tokens: int
    seconds: float


class Writer(Protocol):
    """A loaded model."""

    def write(self, prompt: str, tokens: int) -> Generation:
        """Continue `prompt` greedily by at most `tokens` tokens."""
        ...

    def losses(self, text: str) -> np.ndarray | None:
        """As `tkg.runner.engine.Engine.losses`; `None` if the engine does not tell."""
        ...


@dataclass(frozen=True)
class EngineKind:
    """A line of the end-to-end table.

    Attributes:
        name, weights: who, and the format of the weights while it runs.
        module: in this package; its `load(model, weights, threads)` returns a `Writer`.
        package, install: that must be importable, and how a user gets it.
    """

    name: str
    weights: str
    module: str
    package: str = ""
    install: str = ""

    def absent(self) -> str | None:
        """Why it cannot take part, or `None`."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"install {self.package}: {self.install}"
        return None

    def load(self, model: Path, threads: int) -> Writer:
        """The model, ready to write."""
        return importlib.import_module(f"{__name__}.{self.module}").load(
            model, self.weights, threads
        )

    def __str__(self) -> str:
        return f"{self.name} {self.weights}"


ENGINES: tuple[EngineKind, ...] = (
    EngineKind("tkg", "bfloat16", "ours"),
    EngineKind("tkg", "float8", "ours"),
    EngineKind("tkg", "float32", "ours"),
    EngineKind(
        "transformers", "bfloat16", "hugging_face", "transformers", "pip install transformers torch"
    ),
    EngineKind(
        "transformers", "float32", "hugging_face", "transformers", "pip install transformers torch"
    ),
    EngineKind("llama.cpp", "bfloat16", "llama_cpp", "xllamacpp", "pip install xllamacpp"),
    EngineKind("llama.cpp", "Q4_1", "llama_cpp", "xllamacpp", "pip install xllamacpp"),
)
"""The weights are those of one Q4_1 file: as they are, or their values in another format."""
