"""A layer of the model: the attention block and the MLP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import tkg
from tkg.runner.config import ModelConfig
from tkg.runner.weights import Weights


@dataclass(frozen=True)
class Moments:
    """Second moments of what a layer's projections take in, or `None` without calibration.

    Attributes:
        qkv, out, gate_up, down: `[in, in]` float32, as `quantisation.Calibrated` takes them.
    """

    qkv: np.ndarray | None = None
    out: np.ndarray | None = None
    gate_up: np.ndarray | None = None
    down: np.ndarray | None = None


NOT_CALIBRATED = Moments()


class Layer:
    """`x + attention(x)`, then `x + mlp(x)`."""

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        index: int,
        backend: str | None,
        moments: Moments = NOT_CALIBRATED,
    ) -> None:
        out = out_weights(weights, config, index, moments)
        self.attention = attention_block(
            weights, config, index, out=out, backend=backend, moments=moments
        )
        self.mlp = MLP(weights, config, index, backend, moments)


class MLP:
    """SwiGLU of the normed states: `down(silu(gate(x)) * up(x))`."""

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        index: int,
        backend: str | None,
        moments: Moments = NOT_CALIBRATED,
    ) -> None:
        name, inner = f"model.layers.{index}", config.intermediate
        gate, up, down = (f"{name}.mlp.{part}_proj" for part in ("gate", "up", "down"))
        first = weights.linear([gate, up], config.hidden, [inner, inner], moments.gate_up)
        second = weights.linear([down], inner, [config.hidden], moments.down)
        self._norm = weights.vector(f"{name}.post_attention_layernorm.weight", config.hidden)
        self._eps, self._inner = config.norm_eps, inner
        self._gate_up = tkg.Projection(first, backend)
        self.down = tkg.Projection(second, backend)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The MLP of hidden states `[..., H]`."""
        return self.down(self.gated(self.normed(x)))

    def normed(self, x: np.ndarray) -> np.ndarray:
        """What the gate and up projections take in."""
        return rms_norm(x, self._norm, self._eps)

    def gated(self, normed: np.ndarray) -> np.ndarray:
        """What the down projection takes in."""
        both = self._gate_up(normed)
        return silu(both[..., : self._inner]) * both[..., self._inner :]


def attention_block(
    weights: Weights,
    config: ModelConfig,
    index: int,
    *,
    out: tkg.Linear | None,
    backend: str | None = None,
    moments: Moments = NOT_CALIBRATED,
) -> tkg.AttentionBlock:
    """A layer's attention block; without `out` it ends before the output projection."""
    name, hidden = f"model.layers.{index}", config.hidden
    qkv = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
    return tkg.AttentionBlock(
        heads=config.heads,
        input_norm=tkg.RMSNorm(input_norm(weights, config, index), config.norm_eps),
        qkv=weights.linear(qkv, hidden, config.heads.sections(), moments.qkv),
        pre_rope_norm=_qk_norm(weights, config, f"{name}.self_attn"),
        rope=config.rope,
        sliding_window=config.windows[index],
        out=out,
        backend=backend,
    )


def out_weights(
    weights: Weights, config: ModelConfig, index: int, moments: Moments = NOT_CALIBRATED
) -> tkg.Linear:
    """A layer's output projection."""
    name, inputs = f"model.layers.{index}.self_attn.o_proj", config.heads.q * config.heads.d_head
    return weights.linear([name], inputs, [config.hidden], moments.out)


def input_norm(weights: Weights, config: ModelConfig, index: int) -> np.ndarray:
    """The weight of the RMSNorm before a layer's attention, `[1, H]` float32."""
    return weights.vector(f"model.layers.{index}.input_layernorm.weight", config.hidden)


def _qk_norm(weights: Weights, config: ModelConfig, name: str) -> tkg.QKNorm | None:
    if not config.qk_norm:
        return None
    size = config.heads.d_head
    q, k = (weights.vector(f"{name}.{part}_norm.weight", size) for part in "qk")
    return tkg.QKNorm(q, k, config.norm_eps)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis."""
    mean = np.add.reduce(x * x, axis=-1, keepdims=True) / np.float32(x.shape[-1])
    return x / np.sqrt(mean + np.float32(eps)) * weight[0]


def silu(x: np.ndarray) -> np.ndarray:
    """`x * sigmoid(x)`, by way of tanh: exp could overflow."""
    half = np.float32(0.5) * x
    return half + half * np.tanh(half)
