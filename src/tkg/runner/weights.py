"""A checkpoint's weights in the form that the model runs on."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np

import tkg
from tkg.runner.checkpoint import Checkpoint
from tkg.runner.errors import ModelError
from tkg.runner.quantisation import FLOAT8, Calibrated, row_quantised

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8": FLOAT8,
}
"""Names of the dtypes that weights may be kept in."""


class Weights:
    """Takes weights out of a checkpoint: checked, transposed, fused, in one dtype.

    Args:
        checkpoint: where they come from.
        dtype: one of `DTYPES`. `float8` makes a scale for each column (ROW quantisation).
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
        self._checkpoint = checkpoint
        self._dtype = DTYPES[dtype]

    def vector(self, name: str, size: int) -> np.ndarray:
        """A norm's weight, `[1, size]` float32."""
        return self._tensor(name, (size,)).astype(np.float32)[None]

    def matrix(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """A matrix as the checkpoint has it, in the weights' dtype; float8 would need a scale."""
        dtype = DTYPES["bfloat16"] if self._dtype == FLOAT8 else self._dtype
        return self._tensor(name, shape).astype(dtype)

    def linear(
        self,
        modules: Sequence[str],
        inputs: int,
        outputs: Sequence[int],
        moments: np.ndarray | None = None,
    ) -> tkg.Linear:
        """Projections of the same inputs, side by side as one: weight `[inputs, sum(outputs)]`.

        With their inputs' second moments `[inputs, inputs]`, float8 weights are calibrated.
        """
        pairs = list(zip(modules, outputs, strict=True))
        parts = [self._tensor(f"{module}.weight", (width, inputs)) for module, width in pairs]
        bias = self._bias(modules, outputs)
        rows = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if self._dtype != FLOAT8:
            return tkg.Linear(np.ascontiguousarray(rows.astype(self._dtype, copy=False).T), bias)
        quantise = row_quantised if moments is None else Calibrated(moments)
        quantised, scale = quantise(rows)
        return tkg.Linear(
            np.ascontiguousarray(quantised.T),
            bias,
            tkg.QuantizationType.ROW,
            weight_scale=scale[None],
        )

    def _bias(self, modules: Sequence[str], outputs: Sequence[int]) -> np.ndarray | None:
        """Biases side by side, `[1, sum(outputs)]` float32, zero for a module without."""
        names = [f"{module}.bias" for module in modules]
        if not any(self._checkpoint.has(name) for name in names):
            return None
        parts = [
            self._tensor(name, (width,)) if self._checkpoint.has(name) else np.zeros(width)
            for name, width in zip(names, outputs, strict=True)
        ]
        return np.concatenate(parts).astype(np.float32)[None]

    def _tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor, path = self._checkpoint.tensor(name), self._checkpoint.path
        if tensor.shape != shape:
            raise ModelError(f"{path}: {name} must have shape {shape}; got {tensor.shape}")
        with np.errstate(invalid="ignore", over="ignore"):
            total = np.sum(tensor, dtype=np.float32)
        if not np.isfinite(total):
            raise ModelError(f"{path}: {name} holds values that are not finite: a damaged file")
        return tensor
