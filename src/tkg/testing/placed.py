"""Calls that are stated as NumPy arrays, run on any backend; answers as NumPy arrays again.

The backends on the host take NumPy arrays as they are. Those of `TORCH_ONLY` take torch tensors on
their device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import tkg
from tkg.backends import registry
from tkg.contract.arrays import as_array
from tkg.contract.dtypes import BFLOAT16, FLOAT8_E4M3, FLOAT8_E4M3FN

TORCH_ONLY = ("cuda",)
"""Backends that take torch tensors and nothing else."""

_BITS = {BFLOAT16: "int16", FLOAT8_E4M3: "uint8", FLOAT8_E4M3FN: "uint8"}
"""Integers as which torch takes NumPy arrays of these dtypes."""


def device_of(backend: str) -> str | None:
    """Torch device of a backend's tensors; `None` if it takes NumPy arrays.

    Raises:
        ValueError: no backend has that name.
    """
    row = registry.find(backend, "device_of")
    return registry.device_of(row) if backend in TORCH_ONLY else None


def on(backend: str, value: Any) -> Any:
    """An argument, a tuple of them or a whole call, in the kind of array that a backend takes.

    NumPy arrays become tensors of the same dtype, shape and strides (float8_e4m3 a
    `tkg.Float8E4M3`), on the host with the array's memory; tensors move to the device. Everything
    else, and everything for a backend that takes NumPy arrays, stays as it is.
    """
    device = device_of(backend)
    if device is None:
        return value
    if isinstance(value, dict):
        return {name: on(backend, one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(on(backend, one) for one in value)
    if isinstance(value, np.ndarray):
        return tensor(value, device)
    return value.to(device) if hasattr(value, "to") else value


def back(value: Any) -> Any:
    """A backend's array as a NumPy array, and a tuple of them likewise; views on the host."""
    if isinstance(value, tuple):
        return tuple(map(back, value))
    if isinstance(value, tkg.Float8E4M3):
        value = tkg.Float8E4M3(value.bits.cpu())
    elif not isinstance(value, np.ndarray):
        value = value.cpu()
    array = as_array(value)
    assert array is not None
    return array.numpy()


def attention_block(call: dict[str, Any], backend: str) -> tuple[Any, Any, Any]:
    """What `tkg.attention_block_tkg(**call)` returns, NumPy arrays; the caches given stay."""
    return back(tkg.attention_block_tkg(**on(backend, own_caches(call)), backend=backend))


def output_projection(call: dict[str, Any], backend: str) -> np.ndarray:
    """What `tkg.output_projection_tkg(**call)` returns, a NumPy array."""
    return back(tkg.output_projection_tkg(**on(backend, call), backend=backend))


def own_caches(call: dict[str, Any]) -> dict[str, Any]:
    """The call with copies of the caches, so that the original stays as it was."""
    return call | {"K_cache": call["K_cache"].copy(), "V_cache": call["V_cache"].copy()}


def tensor(array: np.ndarray, device: str) -> Any:
    """A torch tensor, or a `tkg.Float8E4M3`, of an array's dtype, shape and strides.

    Args:
        array: of a dtype that calls may have.
        device: torch's name of it; on "cpu" the tensor shares the array's memory.
    """
    import torch

    bits = _BITS.get(array.dtype.name)
    result = torch.from_numpy(array if bits is None else array.view(bits))
    if device != "cpu":  # `to` by itself would close the gaps between strided rows
        steps = zip(result.shape, result.stride(), strict=True)
        span = 1 + sum((length - 1) * step for length, step in steps)
        flat = result.as_strided((span,), (1,)).to(device)
        result = flat.as_strided(result.shape, result.stride())
    if array.dtype.name == FLOAT8_E4M3:
        return tkg.Float8E4M3(result)
    return result if bits is None else result.view(getattr(torch, array.dtype.name))
