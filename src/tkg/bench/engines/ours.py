"""tkg's runner."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tkg
from tkg.bench.engines import Generation
from tkg.runner.engine import Engine
from tkg.runner.sampler import Sampler
from tkg.runner.vocabulary import TextStream


class Ours:
    """An engine; the cache has the weights' format, or bfloat16 beside FP8 weights."""

    def __init__(self, model: Path, weights: str) -> None:
        cache = "float32" if weights == "float32" else "bfloat16"
        self._engine = Engine(model, dtype=weights, kv_dtype=cache, backend="cpu")

    def write(self, prompt: str, tokens: int) -> Generation:
        ids = self._engine.vocabulary.encode(prompt)
        stream = TextStream(self._engine.vocabulary, ids)
        new = self._engine.generate(ids, max_tokens=tokens, sampler=Sampler())
        text = "".join(stream.push(token) for token in new)
        done = self._engine.statistics
        return Generation(text, done.new_tokens - 1, done.decode_seconds)

    def losses(self, text: str) -> np.ndarray:
        return self._engine.losses(self._engine.vocabulary.encode(text))


def load(model: Path, weights: str, threads: int) -> Ours:
    """The runner with the weights in that format."""
    tkg.set_num_threads(threads)
    return Ours(model, weights)
