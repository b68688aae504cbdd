"""A model's sizes from Hugging Face's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tkg
from tkg.runner.config import ARCHITECTURES, ModelConfig, only
from tkg.runner.errors import ModelError
from tkg.runner.rope import inverse_frequencies


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The config that config.json's content describes.

    Raises:
        ModelError: an entry is missing, or has a value that the runner does not know.
    """
    architecture = settings.get("model_type")
    only("model_type", architecture, *ARCHITECTURES)
    only("hidden_act", settings.get("hidden_act", "silu"), "silu")
    if settings.get("quantization_config") is not None:
        method = settings["quantization_config"].get("quant_method")
        raise ModelError(f"quantization_config must be absent; got quant_method {method!r}")
    query, hidden = _size(settings, "num_attention_heads"), _size(settings, "hidden_size")
    # Qwen3's heads have a size of their own; in the other families they share the hidden size.
    d_head = _size(settings, "head_dim", None if architecture == "qwen3" else hidden // query)
    layers = _size(settings, "num_hidden_layers")
    base, scaling = _rope(settings)
    return ModelConfig(
        architecture=str(architecture),
        heads=tkg.Heads(query, _size(settings, "num_key_value_heads", query), d_head),
        hidden=hidden,
        intermediate=_size(settings, "intermediate_size"),
        layers=layers,
        vocabulary=_size(settings, "vocab_size"),
        context=_size(settings, "max_position_embeddings"),
        norm_eps=float(_required(settings, "rms_norm_eps")),
        tied=bool(settings.get("tie_word_embeddings", False)),
        windows=_windows(settings, layers),
        rope="half",
        inv_freq=inverse_frequencies(d_head, base, scaling),
    )


def _required(settings: Mapping[str, Any], name: str) -> Any:
    if settings.get(name) is None:
        raise ModelError(f"{name} is missing")
    return settings[name]


def _size(settings: Mapping[str, Any], name: str, default: int | None = None) -> int:
    if settings.get(name) is None and default is not None:
        return default
    value = _required(settings, name)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{name} must be a positive integer; got {value!r}")
    return value


def _rope(settings: Mapping[str, Any]) -> tuple[float, Mapping[str, Any] | None]:
    """Base and scaling: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`."""
    together = settings.get("rope_parameters")
    scaling = together if together is not None else settings.get("rope_scaling")
    base = (scaling or {}).get("rope_theta", settings.get("rope_theta", 10000.0))
    for place in (settings, scaling or {}):
        only("partial_rotary_factor", place.get("partial_rotary_factor", 1.0), 1.0)
    return float(base), scaling


def _windows(settings: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """The sliding window of each layer. Qwen's config has a window that it may not use."""
    window = settings.get("sliding_window")
    if not settings.get("use_sliding_window", settings["model_type"] == "mistral"):
        window = None
    kinds = settings.get("layer_types")
    if kinds is None:
        first = settings.get("max_window_layers", 0)
        return tuple(window if layer >= first else None for layer in range(layers))
    if len(kinds) != layers:
        raise ModelError(f"layer_types must have {layers} entries; got {len(kinds)}")
    for kind in kinds:
        only("layer_types", kind, "full_attention", "sliding_attention")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
