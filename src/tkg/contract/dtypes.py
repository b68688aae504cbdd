"""The element types of the contract, by their NumPy names.

FP8 "e4m3" is NKI's format: exponent bias 7, largest finite value 240, with infinities
(`ml_dtypes.float8_e4m3`). "e4m3fn" is the OCP format (largest 448, no infinities). Up to 240 the
bytes of the two are equal; what the block writes is clipped to +-240, so it writes the same bytes
in either format.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

FLOAT32, FLOAT16, BFLOAT16 = "float32", "float16", "bfloat16"
FLOAT8_E4M3, FLOAT8_E4M3FN = "float8_e4m3", "float8_e4m3fn"

FLOATS = (FLOAT32, FLOAT16, BFLOAT16)
FP8 = (FLOAT8_E4M3, FLOAT8_E4M3FN)

FP8_MAX = 240.0
"""Values are clipped to +-FP8_MAX before every cast to FP8, whichever of the two formats."""

SKIP_SLOT = 2**32 - 1
"""`kv_cache_update_idx` and `pos_ids` value for "no token here"; signed arrays may hold -1."""

NUMPY: dict[str, np.dtype] = {
    FLOAT32: np.dtype(np.float32),
    FLOAT16: np.dtype(np.float16),
    BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    FLOAT8_E4M3: np.dtype(ml_dtypes.float8_e4m3),
    FLOAT8_E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
}
"""NumPy dtype of each element type that holds tensors of a model."""


def itemsize(name: str) -> int:
    """Bytes an element, for any dtype name of the contract, integers and bool included."""
    return (NUMPY.get(name) or np.dtype(name)).itemsize
