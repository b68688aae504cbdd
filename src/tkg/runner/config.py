"""What a model is: the sizes and choices that its weights' shapes do not say."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

import tkg
from tkg.runner.errors import ModelError

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""Hugging Face's `model_type`s that the runner knows: pre-norm, RoPE, SwiGLU, no experts."""


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-like model.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        heads: of every layer.
        hidden, intermediate: sizes of the hidden states and within the MLP.
        layers: their number.
        vocabulary: number of tokens.
        context: the longest sequence it was made for.
        norm_eps: of every RMSNorm.
        tied: the output layer is the transposed embedding.
        windows: sliding window of each layer's attention, or `None`.
        rope: `"half"` or `"interleaved"`: the pairs that RoPE turns in these weights.
        inv_freq: `[d_head // 2]` RoPE's radians a position.
    """

    architecture: str
    heads: tkg.Heads
    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    context: int
    norm_eps: float
    tied: bool
    windows: tuple[int | None, ...]
    rope: str
    inv_freq: np.ndarray = field(compare=False)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ModelError(f"architecture must be one of {known}; got {self.architecture!r}")
        heads = self.heads
        sizes = {
            "query heads": heads.q,
            "KV heads": heads.kv,
            "head size": heads.d_head,
            "hidden size": self.hidden,
            "MLP size": self.intermediate,
            "layers": self.layers,
            "vocabulary": self.vocabulary,
            "context": self.context,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ModelError(f"{name} must be at least 1; got {size}")
        if heads.q % heads.kv:
            raise ModelError(f"query heads must be a multiple of KV heads; got {heads}")

    @property
    def qk_norm(self) -> bool:
        """Whether each head of Q and K has an RMSNorm before RoPE."""
        return self.architecture == "qwen3"


def only(what: str, value: object, *accepted: object) -> None:
    """Refuse a model whose `what` is not one of `accepted`.

    Raises:
        ModelError: naming both.
    """
    if value not in accepted:
        rule = " or ".join(str(one) for one in accepted)
        raise ModelError(f"{what} must be {rule}; got {value!r}")
