"""Quantisation of weights, activations and the KV cache (FP8)."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any


class QuantizationType(enum.Enum):
    """How a projection's weight is quantised.

    - `NONE`: weights in float32, float16 or bfloat16.
    - `STATIC`: FP8 weights and activations, one scale each:
      `x_q = fp8(clip(x / input_scale, +-240))`, `y = (x_q @ W) * input_scale * weight_scale`.
    - `ROW`: FP8 weights, activations as they are: `y = (x @ W) * weight_scale[column]`.
    """

    NONE = "none"
    STATIC = "static"
    ROW = "row"


@dataclass(frozen=True)
class KVScale:
    """The scale of an FP8 KV cache, with its meaning in its name.

    Libraries use the names `k_scale` and `v_scale` for either of two reciprocal numbers. Here a
    user says which one it is: `KVScale.quantize(k, v)` for the multiplier applied on write
    (`stored = fp8(clip(K * k, +-240))`), `KVScale.dequantize(k, v)` for the one applied on read
    (`K = stored * k`), the form found in checkpoints.

    Attributes:
        k, v: the multipliers applied on write, positive and finite. In the call of a drop-in
            function whose scales are on a device: those arrays, which the backend there reads.
    """

    k: float | Any
    v: float | Any

    @classmethod
    def quantize(cls, k: float, v: float) -> KVScale:
        """From the multipliers applied when K and V are written."""
        return cls(_positive("k", k), _positive("v", v))

    @classmethod
    def dequantize(cls, k: float, v: float) -> KVScale:
        """From the multipliers applied when K and V are read back."""
        return cls(1.0 / _positive("k", k), 1.0 / _positive("v", v))


def _positive(name: str, value: float) -> float:
    value = float(value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"KVScale: {name} must be positive and finite; got {value}")
    return value
