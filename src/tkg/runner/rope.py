"""RoPE's frequencies, plain or scaled for longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tkg.runner.errors import ModelError


def inverse_frequencies(
    d_head: int, base: float, scaling: Mapping[str, Any] | None = None
) -> np.ndarray:
    """Radians a position turns each pair of a head, `[d_head // 2]` float64.

    `base ** (-2i / d_head)` (RoFormer, arXiv 2104.09864), scaled as `scaling` says: a
    `rope_scaling` or `rope_parameters` entry of a Hugging Face config.json.

    Raises:
        ModelError: the kind of scaling is not known here, or a parameter of it is missing.
    """
    frequencies = base ** (-np.arange(0, d_head, 2, dtype=np.float64) / d_head)
    if scaling is None:
        return frequencies
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / _parameter(scaling, "factor")
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    raise ModelError(f"RoPE scaling must be default, linear or llama3; got {kind!r}")


def _llama3(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """Llama 3.1's scaling: long wavelengths are stretched, short ones kept, a ramp between them."""
    factor = _parameter(scaling, "factor")
    low, high = (_parameter(scaling, f"{end}_freq_factor") for end in ("low", "high"))
    trained = _parameter(scaling, "original_max_position_embeddings")
    turns = trained * frequencies / (2 * math.pi)  # in the context the model was trained on
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / factor)


def _parameter(scaling: Mapping[str, Any], name: str) -> float:
    if name not in scaling:
        raise ModelError(f"RoPE scaling needs {name!r}; got {dict(scaling)}")
    return float(scaling[name])
