"""A part of the kernels alone inside a small kernel: operands in SBUF, results read from SBUF.

    def body(sbm, weight):                     # `weight` is an HBM tensor
        t = put(sbm, values)                   # an SBUF tile that holds `values`
        qk_norm_tkg(sbm, t, weight, 1e-6, "norm")
        return values_of(t)                    # a NumPy copy of its elements

    result, = on_cores(body, weight)           # one result a core

All checks of the simulator are on, and a part must close the scopes that it opens and leave nothing
on the heap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import nkisim.language as nl
from nkisim.tensor import NkiTensor
from tests.nkisim.harness import fill, observe, values_of
from tkg.backends.neuron.sbuf_manager import SbufManager

__all__ = ["close", "on_cores", "put", "rng", "rounded", "values_of"]


def on_cores(body: Callable[..., Any], *arrays: Any, lnc: int = 1) -> list[Any]:
    """What `body(SbufManager, *arrays in HBM)` returns on each of `lnc` cores."""
    results: dict[int, Any] = {}

    def kernel(*tensors: Any) -> None:
        manager = SbufManager()
        results[nl.program_id(0)] = body(manager, *tensors)
        assert manager.scopes == []
        assert manager.heap == []

    report = observe(kernel, *arrays, lnc=lnc).report
    assert report.findings == []
    return [results[core] for core in range(lnc)]


def put(sbm: SbufManager, values: np.ndarray, name: str = "operand") -> NkiTensor:
    """The values in a new SBUF tile."""
    return fill(sbm.stack(values.shape, dtype_of(values), name), values)


def dtype_of(values: np.ndarray) -> Any:
    return getattr(nl, values.dtype.name)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rounded(values: np.ndarray, dtype: Any) -> np.ndarray:
    """The nearest values of a dtype, as float64."""
    return np.asarray(values, np.float64).astype(np.float32).astype(dtype).astype(np.float64)


def close(got: np.ndarray, wanted: np.ndarray, relative: float = 2e-6) -> None:
    """Within `relative` of the largest element: sums cancel, so small elements lose digits.

    2e-6 is 32 units in the last place of float32, and much less than one of bfloat16.
    """
    assert got.shape == wanted.shape
    error = np.abs(got.astype(np.float64) - wanted)
    assert error.max() <= relative * np.abs(wanted).max(), error.max() / np.abs(wanted).max()
