"""What a model's projections take in while it reads a text, for calibrated FP8 weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import tkg
from tkg.runner.checkpoint import Checkpoint
from tkg.runner.errors import ModelError
from tkg.runner.layer import MLP, Moments, attention_block, input_norm, out_weights, rms_norm
from tkg.runner.weights import Weights

ROW = 128
"""Tokens that are read as one sequence: the contract's largest S_tkg. The first token of a sequence
has activations far larger than the others', and one long sequence would show only one of them."""


class Calibration:
    """Reads a text with the checkpoint's own weights in float32, layer by layer.

    The weights are not kept: those of one layer are in memory at a time. Whatever backend the model
    is loaded for, this runs on the cpu backend.

    Args:
        checkpoint: the model.
        embedding: its embedding, `[vocabulary, H]`.
        text: ids of the text's tokens; read as rows of equal length, at most `ROW` and the model's
            context. Tokens at the end that would not fill a row are left out.

    Raises:
        ModelError: the text has no token, or one that the model does not have.
    """

    def __init__(self, checkpoint: Checkpoint, embedding: np.ndarray, text: Sequence[int]) -> None:
        config = self._config = checkpoint.config
        if not text:
            raise ModelError(f"{checkpoint.path}: the calibration text has no tokens")
        if max(text) >= config.vocabulary:
            raise ModelError(
                f"{checkpoint.path}: token {max(text)} of the calibration text is outside the "
                f"model's vocabulary of {config.vocabulary}: the tokenizer does not belong to "
                "these weights"
            )
        self._path, self._weights = checkpoint.path, Weights(checkpoint, "float32")
        rows = -(-len(text) // min(ROW, config.context))
        tokens = np.array(text[: len(text) // rows * rows]).reshape(rows, -1)
        self._x = embedding[tokens].astype(np.float32)

    @np.errstate(over="ignore", invalid="ignore")  # _moments tells which layer
    def layer(self, index: int) -> Moments:
        """Second moments within the next layer; call it for each layer in turn."""
        weights, config = self._weights, self._config
        norm = input_norm(weights, config, index)
        qkv = self._moments(rms_norm(self._x, norm, config.norm_eps), index)
        attended = self._attended(index)
        out = tkg.Projection(out_weights(weights, config, index))
        self._x = self._x + out(attended)
        mlp = MLP(weights, config, index, None)
        normed = mlp.normed(self._x)
        gated = mlp.gated(normed)
        self._x = self._x + mlp.down(gated)
        return Moments(qkv, *(self._moments(x, index) for x in (attended, normed, gated)))

    @np.errstate(over="ignore", invalid="ignore")
    def head(self, norm: np.ndarray) -> np.ndarray:
        """Second moments of what the output layer takes in, after all layers; norm `[1, H]`."""
        last = rms_norm(self._x, norm, self._config.norm_eps)
        return self._moments(last, self._config.layers)

    def _attended(self, index: int) -> np.ndarray:
        """What the output projection takes in, `[rows, S, q_heads * d_head]`."""
        config = self._config
        rows, length, _ = self._x.shape
        block = attention_block(self._weights, config, index, out=None)
        cache = tkg.KVCache.flat(
            batch=rows,
            capacity=length,
            kv_heads=config.heads.kv,
            d_head=config.heads.d_head,
            dtype="float32",
        )
        positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
        rope = tkg.rope_tables(positions, config.heads.d_head, inv_freq=config.inv_freq)
        heads = block(self._x, cache, positions, rope=rope)  # [rows, q_heads, d_head, S]
        return heads.transpose(0, 3, 1, 2).reshape(rows, length, -1)

    def _moments(self, inputs: np.ndarray, index: int) -> np.ndarray:
        """`X^T X` of inputs `[rows, S, in]`, `[in, in]`."""
        x = inputs.reshape(-1, inputs.shape[-1])
        moments = x.T @ x
        if not np.isfinite(np.trace(moments)):
            raise ModelError(
                f"{self._path}: the squares of what layer {index} takes in are not finite in "
                "float32; FP8 weights of this model can only be rounded to the nearest "
                "(--no-calibrate)"
            )
        return moments
