"""Projections and their quantisation, as in docs/contract.md and docs/fp8.md."""

from __future__ import annotations

from typing import Any

import numpy as np

from tkg.contract import dtypes
from tkg.contract.block import Linear
from tkg.contract.projection import ProjectionCall
from tkg.contract.quantization import QuantizationType

Precision = Any
"""A NumPy float type: the arithmetic's."""


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round to an element type, once; overflow gives infinity, as in hardware."""
    with np.errstate(over="ignore"):
        if dtype not in (dtypes.FLOAT32, dtypes.FLOAT16):  # NumPy's own round once
            values = _odd_float32(values)
        return values.astype(dtypes.NUMPY[dtype])


def _odd_float32(values: np.ndarray) -> np.ndarray:
    """float64 as float32 "rounded to odd": what is inexact is cut off and its last bit set.

    ml_dtypes rounds float64 by way of float32, that is, twice. Rounded to odd on the way, the
    second rounding sees on which side of a tie the value was (Boldo and Melquiond, 2008).
    """
    narrow = values.astype(np.float32)
    bits = narrow.view(np.uint32)
    bits -= np.abs(narrow) > np.abs(values)
    bits |= narrow != values
    return narrow


def fp8(values: np.ndarray, dtype: str = dtypes.FLOAT8_E4M3) -> np.ndarray:
    """`fp8(clip(x, +-240))`."""
    return rounded(np.clip(values, -dtypes.FP8_MAX, dtypes.FP8_MAX), dtype)


def project(x: np.ndarray, linear: Linear, sections: tuple[int, ...]) -> np.ndarray:
    """`y = x @ W + bias` for `x` `[..., in]`, in x's precision, quantised as `linear` says.

    Rows of W beyond x's features are padding.
    """
    precision = x.dtype.type
    if linear.quantization is QuantizationType.STATIC:
        x = fp8(x / precision(linear.input_scale_value())).astype(precision)
    y = x @ linear.weight.numpy()[: x.shape[-1]].astype(precision)
    scale = linear.column_scale(sections, precision)
    if scale is not None:
        y = y * scale
    if linear.bias is not None:
        y = y + linear.bias.numpy()[0].astype(precision)
    return y


def output_layout(y: np.ndarray, transposed: bool, lnc: int) -> np.ndarray:
    """`[rows, H]` as it is, or as `[128, lnc, H // lnc // 128, rows]`."""
    if not transposed:
        return y
    rows, hidden = y.shape
    return y.reshape(rows, lnc, 128, hidden // lnc // 128).transpose(2, 1, 3, 0).copy()


def output_projection_values(call: ProjectionCall, precision: Precision) -> np.ndarray:
    """`out[b*S + s, h] = sum_{n,d} attention[d, b, n, s] * weight[n*D + d, h] + bias[h]`."""
    attention = call.attention.numpy().astype(precision)
    d_head, batch, heads, tokens = attention.shape
    rows = attention.transpose(1, 3, 2, 0).reshape(batch * tokens, heads * d_head)
    y = project(rows, call.projection, (call.projection.weight.shape[1],))
    return output_layout(y, call.transposed_out, call.lnc)
