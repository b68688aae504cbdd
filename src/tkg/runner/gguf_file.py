"""A model in a GGUF file: llama.cpp's format, with its sizes, tokenizer and quantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

import tkg
from tkg.runner.config import ModelConfig, only
from tkg.runner.errors import ModelError
from tkg.runner.gguf_vocabulary import gguf_vocabulary
from tkg.runner.rope import inverse_frequencies
from tkg.runner.vocabulary import Vocabulary

ROPE = {"llama": "interleaved", "qwen2": "half", "qwen3": "half"}
"""By `general.architecture`. llama.cpp's converter permutes the Q and K rows of llama models (and
Mistral's, which it also calls llama) so that RoPE turns neighbours; of the others it does not."""

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Hugging Face's module names to GGUF's; a layer's own without their prefix."""


class _Bytes:
    """The file's bytes; a slice that reaches past their end is an error, not a shorter slice.

    A plain array is also read three times as fast as the `memmap` that `GGUFReader` makes.
    """

    def __init__(self, mapped: np.ndarray) -> None:
        self._array = np.asarray(mapped)

    def __getitem__(self, span: slice) -> np.ndarray:
        if span.stop > self._array.size:
            raise ValueError(f"it ends at byte {self._array.size}, within {span.start}:{span.stop}")
        return self._array[span]


class _Reader(gguf.GGUFReader):
    """`GGUFReader` that notices where a file is cut short."""

    @property
    def data(self) -> _Bytes:  # pyright: ignore
        return self._bytes

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._bytes = _Bytes(mapped)


class GGUFFile:
    """A checkpoint in one file.

    Raises:
        ModelError: the file is no GGUF, is cut short or damaged, or holds a model that the
            runner does not know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with np.errstate(over="raise"):
                reader = _Reader(path)
            self._metadata = {name: field.contents() for name, field in reader.fields.items()}
        # What a damaged header makes the reader stumble over.
        except (ValueError, LookupError, ArithmeticError, OSError, MemoryError) as error:
            problem = "not a GGUF file, or damaged or cut short"
            raise ModelError(f"{path}: {problem}: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        try:
            self.config = self._config()
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this (Hugging Face) name."""
        return gguf_name(name) in self._tensors

    def tensor(self, name: str) -> np.ndarray:
        """A tensor, dequantised; matrices are `[out, in]`."""
        tensor = self._tensors.get(gguf_name(name))
        if tensor is None:
            raise ModelError(f"{self.path}: tensor {gguf_name(name)} is missing")
        try:
            return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise ModelError(
                f"{self.path}: {tensor.name} is quantised as {kind}, which the gguf package "
                "cannot undo; take a file in another quantisation, such as Q8_0"
            ) from error

    def vocabulary(self) -> Vocabulary:
        """The tokenizer and chat template of the file's metadata."""
        try:
            return gguf_vocabulary(self._metadata)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from error

    def _size(self, key: str, default: int | None = None) -> int:
        """A positive integer of the metadata, the same in all layers."""
        value = self._value(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or value < 1:
            rule = "must be a positive integer, the same in all layers"
            raise ModelError(f"metadata {self._architecture}.{key} {rule}; got {value!r}")
        return value

    def _value(self, key: str, default: Any = None) -> Any:
        """Metadata `key` of the model's architecture, such as `block_count`."""
        name = f"{self._architecture}.{key}"
        value = self._metadata.get(name, default)
        if value is None:
            raise ModelError(f"metadata {name} is missing")
        return value

    @property
    def _architecture(self) -> str:
        return self._metadata.get("general.architecture", "")

    def _config(self) -> ModelConfig:
        only("general.architecture", self._architecture, *ROPE)
        only("expert_count", self._value("expert_count", 0), 0)
        query, hidden = self._size("attention.head_count"), self._size("embedding_length")
        d_head = self._size("attention.key_length", hidden // query)
        only("attention.value_length", self._value("attention.value_length", d_head), d_head)
        only("rope.dimension_count", self._value("rope.dimension_count", d_head), d_head)
        layers, window = self._size("block_count"), self._value("attention.sliding_window", 0)
        self._required(f"blk.{layers - 1}.attn_norm.weight")
        return ModelConfig(
            architecture=self._architecture,
            heads=tkg.Heads(query, self._size("attention.head_count_kv", query), d_head),
            hidden=hidden,
            intermediate=self._size("feed_forward_length"),
            layers=layers,
            vocabulary=int(self._required("token_embd.weight").shape[-1]),
            context=self._size("context_length"),
            norm_eps=self._value("attention.layer_norm_rms_epsilon"),
            tied="output.weight" not in self._tensors,
            windows=(window or None,) * layers,
            rope=ROPE[self._architecture],
            inv_freq=self._inverse_frequencies(d_head),
        )

    def _required(self, name: str) -> Any:
        if name not in self._tensors:
            raise ModelError(f"tensor {name} is missing")
        return self._tensors[name]

    def _inverse_frequencies(self, d_head: int) -> np.ndarray:
        """RoPE's frequencies; llama3's scaling comes as one divisor a frequency, in a tensor."""
        base = self._value("rope.freq_base", 10000.0)
        kind = self._value("rope.scaling.type", "none")
        only("rope.scale_linear", self._value("rope.scale_linear", 1.0), 1.0)  # before GGUF v3
        only("rope.scaling.type", kind, "none", "linear")
        scaling = None
        if kind == "linear":
            scaling = {"rope_type": kind, "factor": self._value("rope.scaling.factor")}
        frequencies = inverse_frequencies(d_head, base, scaling)
        divisors = self._tensors.get("rope_freqs.weight")
        if divisors is None:
            return frequencies
        if divisors.data.shape != frequencies.shape:
            rule = f"must have shape {frequencies.shape}"
            raise ModelError(f"tensor rope_freqs.weight {rule}; got {divisors.data.shape}")
        return frequencies / divisors.data.astype(np.float64)


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor that Hugging Face calls `name`."""
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, own = module.split(".", 3)
        return f"blk.{layer}.{NAMES[own]}.{kind}"
    return f"{NAMES[module]}.{kind}"
