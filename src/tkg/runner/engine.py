"""Generation: a prompt goes in, tokens come out one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import tkg
from tkg.runner.calibration_text import TEXT
from tkg.runner.checkpoint import open_checkpoint
from tkg.runner.errors import ModelError
from tkg.runner.kv_cache import make_caches
from tkg.runner.model import Model
from tkg.runner.sampler import Sampler
from tkg.runner.stopwatch import Stopwatch

CHUNK = 128
"""Tokens of a prompt that go through the model at once: the contract's largest S_tkg."""


@dataclass
class Statistics:
    """What a generation did, and how long it took.

    Attributes:
        prompt_tokens, new_tokens: their numbers, so far.
        prompt_seconds: from the start to the first new token.
        decode_seconds: from the first new token to the last one so far.
        stages: seconds in each stage, prompt and decode together.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


class Engine:
    """A model, its vocabulary, and the caches of one sequence at a time.

    Args:
        path: a GGUF file or a safetensors folder.
        dtype: of the weights: float32, float16, bfloat16 or float8.
        calibrate: float8 weights are calibrated with `calibration_text.TEXT`; otherwise rounded to
            the nearest.
        kv: layout of the cache, flat or block.
        kv_dtype: of the cache: as `dtype`.
        backend: as in `tkg.AttentionBlock`.

    Attributes:
        vocabulary: encodes prompts and decodes tokens.
        statistics: of the last generation, also of one that was cut off.

    Raises:
        ModelError: the model cannot be loaded.
        ValueError, Unsupported: an option is wrong, or the backend cannot run here.
    """

    def __init__(
        self,
        path: Path,
        *,
        dtype: str = "bfloat16",
        calibrate: bool = True,
        kv: str = "flat",
        kv_dtype: str = "bfloat16",
        backend: str | None = None,
    ) -> None:
        self._stopwatch = Stopwatch()
        self._cache_options = {"layout": kv, "dtype": kv_dtype}
        checkpoint = open_checkpoint(path)
        self.vocabulary = checkpoint.vocabulary()
        text = self.vocabulary.encode(TEXT) if calibrate and dtype == "float8" else None
        self.model = Model(
            checkpoint,
            dtype=dtype,
            calibration=text,
            backend=backend,
            stopwatch=self._stopwatch,
        )
        self.statistics = Statistics()

    def generate(
        self, prompt: Sequence[int], *, max_tokens: int, sampler: Sampler
    ) -> Iterator[int]:
        """New tokens after `prompt`, until the model ends the text or there are `max_tokens`.

        The model's context length ends it, too.

        Raises:
            ModelError: the prompt is empty, or does not fit the model.
            ValueError: `max_tokens` is below 1.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1; got {max_tokens}")
        self._check(prompt)
        config = self.model.config
        tokens = min(max_tokens, config.context - len(prompt))
        caches = self._caches(len(prompt) + tokens)
        self._stopwatch.reset()
        stats = self.statistics = Statistics(len(prompt), stages=self._stopwatch.seconds)
        start = time.perf_counter()
        hidden = self._read(prompt, caches)
        while True:
            token = self._choose(hidden, sampler)
            now = time.perf_counter()
            if stats.new_tokens == 0:
                stats.prompt_seconds, start = now - start, now
            stats.new_tokens += 1
            stats.decode_seconds = now - start
            if token in self.vocabulary.end_ids:
                return
            yield token
            if stats.new_tokens == tokens:
                return
            hidden = self._step([token], len(prompt) + stats.new_tokens - 1, caches)[-1]

    def losses(self, text: Sequence[int]) -> np.ndarray:
        """-log P(token | those before it) of every token of a text but the first, in nats.

        `exp` of their mean is the perplexity: how well the model foresees the text.

        Args:
            text: at least two tokens, fewer than the model's context.

        Returns:
            `[len(text) - 1]` float64.

        Raises:
            ModelError: the text has fewer, or does not fit the model.
        """
        self._check(text)
        if len(text) < 2:
            raise ModelError("losses need a text of at least two tokens; got one")
        caches, found = self._caches(len(text)), []
        for first in range(0, len(text) - 1, CHUNK):
            following = np.array(text[first + 1 : first + 1 + CHUNK])
            tokens = text[first : first + len(following)]
            logits = self.model.logits(self._step(tokens, first, caches)).astype(np.float64)
            logits -= logits.max(axis=-1, keepdims=True)
            chosen = np.take_along_axis(logits, following[:, None], axis=-1)[:, 0]
            found.append(np.log(np.exp(logits).sum(axis=-1)) - chosen)
        return np.concatenate(found)

    def _check(self, prompt: Sequence[int]) -> None:
        config = self.model.config
        if not prompt:
            raise ModelError("the prompt has no tokens; give some text")
        if len(prompt) >= config.context:
            raise ModelError(
                f"the prompt must be shorter than the model's context of {config.context} tokens; "
                f"got {len(prompt)}"
            )
        if max(prompt) >= config.vocabulary:
            raise ModelError(
                f"token {max(prompt)} of the prompt is outside the model's vocabulary of "
                f"{config.vocabulary}: the tokenizer does not belong to these weights"
            )

    def _caches(self, capacity: int) -> list[tkg.KVCache]:
        return make_caches(self.model.config, capacity=capacity, **self._cache_options)

    def _read(self, prompt: Sequence[int], caches: list[tkg.KVCache]) -> np.ndarray:
        """Take the prompt into the caches; the last token's hidden state `[H]`."""
        hidden = np.empty(0)
        for first in range(0, len(prompt), CHUNK):
            hidden = self._step(prompt[first : first + CHUNK], first, caches)[-1]
        return hidden

    def _step(self, tokens: Sequence[int], first: int, caches: list[tkg.KVCache]) -> np.ndarray:
        """Run `tokens` from position `first` on; their hidden states `[S, H]`."""
        positions = np.arange(first, first + len(tokens), dtype=np.int32)[None]
        return self.model.forward(np.array([tokens]), positions, caches)[0]

    def _choose(self, hidden: np.ndarray, sampler: Sampler) -> int:
        logits = self.model.logits(hidden)
        with self._stopwatch("sampling"):
            return sampler(logits)
