"""A Llama-like model: every layer's attention is one call of the attention block."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import tkg
from tkg.runner.calibration import Calibration
from tkg.runner.checkpoint import Checkpoint
from tkg.runner.layer import Layer, rms_norm
from tkg.runner.stopwatch import Stopwatch
from tkg.runner.weights import Weights


class Model:
    """The layers between token ids and logits. Hidden states are float32 between them.

    Args:
        checkpoint: where the weights come from.
        dtype: of the weights, one of `weights.DTYPES`.
        calibration: ids of a text that float8 weights are calibrated with; `None`: they are
            rounded to the nearest.
        backend: as in `tkg.AttentionBlock`.
        stopwatch: adds up the time of each stage.

    Raises:
        ModelError: a tensor is missing or has the wrong shape.
        Unsupported: the backend cannot run here.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: str = "bfloat16",
        calibration: Sequence[int] | None = None,
        backend: str | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        config = self.config = checkpoint.config
        weights = Weights(checkpoint, dtype)
        self.stopwatch = stopwatch or Stopwatch()
        table = "model.embed_tokens"
        head = table if config.tied else "lm_head"
        self.embedding = weights.matrix(f"{table}.weight", (config.vocabulary, config.hidden))
        self.norm = weights.vector("model.norm.weight", config.hidden)
        moments = None
        if calibration is None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy converts without the GIL
                numbers = range(config.layers)
                layers = pool.map(lambda i: Layer(weights, config, i, backend), numbers)
                self.layers = list(layers)
        else:
            text = Calibration(checkpoint, self.embedding, calibration)
            # One by one: most of the time is in matrix products, which have threads of their own.
            self.layers = [
                Layer(weights, config, i, backend, text.layer(i)) for i in range(config.layers)
            ]
            moments = text.head(self.norm)
        output = weights.linear([head], config.hidden, [config.vocabulary], moments)
        self.lm_head = tkg.Projection(output, backend)

    def forward(
        self, tokens: np.ndarray, positions: np.ndarray, caches: Sequence[tkg.KVCache]
    ) -> np.ndarray:
        """Hidden states after the last norm, `[B, S, H]` float32; the caches gain the tokens.

        Args:
            tokens: `[B, S]` ids, S at most 128.
            positions: `[B, S]` integers, consecutive in a row.
            caches: one a layer.
        """
        time, config = self.stopwatch, self.config
        with time("embedding, RoPE tables"):
            x = self.embedding[tokens].astype(np.float32)
            rope = tkg.rope_tables(positions, config.heads.d_head, inv_freq=config.inv_freq)
        for layer, cache in zip(self.layers, caches, strict=True):
            with time("attention block"):
                x = x + layer.attention(x, cache, positions, rope=rope)
            with time("MLP"):
                x = x + layer.mlp(x)
        return rms_norm(x, self.norm, config.norm_eps)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Logits `[..., vocabulary]` float32 of hidden states `[..., H]`."""
        with self.stopwatch("lm_head"):
            return self.lm_head(hidden)
