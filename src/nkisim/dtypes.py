"""NKI's dtypes: strings in NKI, NumPy or ml_dtypes underneath, with the hardware's casts.

Rounding is to nearest even. A float that does not fit a float type becomes infinite, or NaN where
the type has no infinity (float8_e4m3: beyond 240; float8_e4m3fn: beyond 448). A float cast to an
integer is rounded, then saturated (NKI 0.6.0 release notes).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

NUMPY: dict[str, np.dtype] = {
    "bool": np.dtype(np.uint8),
    "int8": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "uint8": np.dtype(np.uint8),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "tfloat32": np.dtype(np.float32),
    "float32": np.dtype(np.float32),
    "float8_e4m3": np.dtype(ml_dtypes.float8_e4m3),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
    "float8_e5m2_x4": np.dtype(np.uint32),
    "float8_e4m3fn_x4": np.dtype(np.uint32),
    "float4_e2m1fn_x4": np.dtype(np.uint16),
}
ITEMSIZE: dict[str, int] = {name: dtype.itemsize for name, dtype in NUMPY.items()}
INTEGERS = frozenset(("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32"))
FLOAT8 = frozenset(("float8_e4m3", "float8_e4m3fn", "float8_e5m2"))
PACKED = frozenset(("float8_e5m2_x4", "float8_e4m3fn_x4", "float4_e2m1fn_x4"))

_FLOAT32 = np.dtype(np.float32)
_INTEGER_LIMITS = {
    name: (float(np.iinfo(NUMPY[name]).min), float(np.iinfo(NUMPY[name]).max)) for name in INTEGERS
}
_BY_NUMPY = {
    dtype: name
    for name, dtype in NUMPY.items()
    if name not in ("bool", "tfloat32") and name not in PACKED
}
_BY_NUMPY[np.dtype(np.bool_)] = "bool"
_ALIASES = {"bool_": "bool", "float8e4": "float8_e4m3", "float8e5": "float8_e5m2"}


def canonical(dtype: Any) -> str:
    """NKI's name of a dtype given as that name, a NumPy or ml_dtypes type, or a torch dtype.

    Raises TypeError for anything NKI has no name for.
    """
    if type(dtype) is str and dtype in NUMPY:
        return dtype
    text = str(dtype)
    if text.startswith("torch."):
        text = text[len("torch.") :]
    text = _ALIASES.get(text, text)
    if text in NUMPY:
        return text
    try:
        name = _BY_NUMPY.get(np.dtype(dtype))
    except TypeError:
        name = None
    if name is None:
        raise TypeError(f"{dtype!r} is not a dtype of NKI; use one of {', '.join(sorted(NUMPY))}")
    return name


def to_float32(values: np.ndarray) -> np.ndarray:
    """The values as float32 (exact for all of NKI's floats; 32-bit integers are rounded)."""
    return values if values.dtype == _FLOAT32 else values.astype(np.float32)


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 `values` in NKI's `dtype`, as the hardware casts at an instruction's destination."""
    if dtype == "float32":
        return to_float32(values)
    if dtype in INTEGERS:
        return _to_integer(values, dtype)
    if dtype == "tfloat32":
        return _to_tfloat32(to_float32(values))
    return to_float32(values).astype(NUMPY[dtype])


def _to_integer(values: np.ndarray, dtype: str) -> np.ndarray:
    if values.dtype == NUMPY[dtype]:
        return values
    low, high = _INTEGER_LIMITS[dtype]
    # float64 holds every limit; float32 does not hold 2^31 - 1.
    rounded = np.rint(to_float32(values).astype(np.float64))
    return np.nan_to_num(np.clip(rounded, low, high), nan=0.0).astype(NUMPY[dtype])


def _to_tfloat32(values: np.ndarray) -> np.ndarray:
    """float32 rounded to 10 stored mantissa bits, nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)
