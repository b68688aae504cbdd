"""llama.cpp, by way of the prebuilt `xllamacpp` package."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import xllamacpp

from tkg.bench.engines import Generation
from tkg.bench.engines.bf16_file import write_bf16

CONTEXT = 512
"""Slots of its cache; the prompt and the new tokens must fit."""


class LlamaCpp:
    """A model file, served inside this process."""

    def __init__(self, model: Path, threads: int) -> None:
        library: Any = xllamacpp  # it has no type stubs
        settings = library.CommonParams()
        settings.model.path = str(model)
        settings.n_ctx = CONTEXT
        settings.n_parallel = 1
        settings.cpuparams.n_threads = threads
        settings.cpuparams_batch.n_threads = threads
        settings.verbosity = -1
        self._server: Any = library.Server(settings)

    def write(self, prompt: str, tokens: int) -> Generation:
        request = {
            "prompt": prompt,
            "n_predict": tokens,
            "temperature": 0,
            "cache_prompt": False,
        }
        answer = self._server.handle_completions(request)
        timings = answer["timings"]
        seconds = timings["predicted_ms"] / 1e3  # from the first new token on
        return Generation(answer["choices"][0]["text"], timings["predicted_n"] - 1, seconds)

    def losses(self, text: str) -> None:
        """Its server does not give the probabilities of a prompt's tokens."""


def load(model: Path, weights: str, threads: int) -> LlamaCpp:
    """The file as it is, or for bfloat16 a copy of it with the values of its weights."""
    if weights != "bfloat16":
        return LlamaCpp(model, threads)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "bf16.gguf"
        write_bf16(model, copy)
        return LlamaCpp(copy, threads)  # it maps the file, which lives on without its name
