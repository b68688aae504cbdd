"""A Llama-like model: every layer's attention is one call of the attention block."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import tkg
from tkg.runner.checkpoint import Checkpoint
from tkg.runner.config import ModelConfig
from tkg.runner.stopwatch import Stopwatch
from tkg.runner.weights import Weights


class Layer:
    """`x + attention(x)`, then `x + mlp(norm(x))`."""

    def __init__(self, weights: Weights, config: ModelConfig, index: int, backend: str | None):
        name = f"model.layers.{index}"
        hidden, inner = config.hidden, config.intermediate
        mlp = [f"{name}.mlp.{part}_proj" for part in ("gate", "up", "down")]
        norm = weights.vector(f"{name}.input_layernorm.weight", hidden)
        self.attention = tkg.AttentionBlock(
            heads=config.heads,
            input_norm=tkg.RMSNorm(norm, config.norm_eps),
            qkv=weights.linear(
                [f"{name}.self_attn.{part}_proj" for part in "qkv"], hidden, config.heads.sections()
            ),
            pre_rope_norm=_qk_norm(weights, config, f"{name}.self_attn"),
            rope=config.rope,
            sliding_window=config.windows[index],
            out=weights.linear(
                [f"{name}.self_attn.o_proj"], config.heads.q * config.heads.d_head, [hidden]
            ),
            backend=backend,
        )
        self.inner = inner
        self.norm = weights.vector(f"{name}.post_attention_layernorm.weight", hidden)
        self.gate_up = tkg.Projection(weights.linear(mlp[:2], hidden, [inner, inner]), backend)
        self.down = tkg.Projection(weights.linear(mlp[2:], inner, [hidden]), backend)

    def mlp(self, x: np.ndarray) -> np.ndarray:
        """SwiGLU: `down(silu(gate(x)) * up(x))`."""
        both = self.gate_up(x)
        return self.down(silu(both[..., : self.inner]) * both[..., self.inner :])


class Model:
    """The layers between token ids and logits. Hidden states are float32 between them.

    Args:
        checkpoint: where the weights come from.
        dtype: of the weights, one of `weights.DTYPES`.
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
        backend: str | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        config = self.config = checkpoint.config
        weights = Weights(checkpoint, dtype)
        self.stopwatch = stopwatch or Stopwatch()
        table = "model.embed_tokens"
        head = table if config.tied else "lm_head"
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy converts without the GIL
            layers = pool.map(lambda i: Layer(weights, config, i, backend), range(config.layers))
            self.layers = list(layers)
        self.norm = weights.vector("model.norm.weight", config.hidden)
        output = weights.linear([head], config.hidden, [config.vocabulary])
        self.lm_head = tkg.Projection(output, backend)
        self.embedding = weights.matrix(f"{table}.weight", (config.vocabulary, config.hidden))

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
                x = x + layer.mlp(rms_norm(x, layer.norm, config.norm_eps))
        return rms_norm(x, self.norm, config.norm_eps)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Logits `[..., vocabulary]` float32 of hidden states `[..., H]`."""
        with self.stopwatch("lm_head"):
            return self.lm_head(hidden)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis."""
    mean = np.add.reduce(x * x, axis=-1, keepdims=True) / np.float32(x.shape[-1])
    return x / np.sqrt(mean + np.float32(eps)) * weight[0]


def silu(x: np.ndarray) -> np.ndarray:
    """`x * sigmoid(x)`, by way of tanh: exp could overflow."""
    half = np.float32(0.5) * x
    return half + half * np.tanh(half)


def _qk_norm(weights: Weights, config: ModelConfig, name: str) -> tkg.QKNorm | None:
    if not config.qk_norm:
        return None
    size = config.heads.d_head
    q, k = (weights.vector(f"{name}.{part}_norm.weight", size) for part in "qk")
    return tkg.QKNorm(q, k, config.norm_eps)
