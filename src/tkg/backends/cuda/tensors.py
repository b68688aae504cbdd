"""The tensors of a call as kernels take them."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from tkg.contract import dtypes
from tkg.contract.arrays import Array, Float8E4M3
from tkg.contract.cache import KVCache

TORCH = {
    dtypes.FLOAT32: torch.float32,
    dtypes.FLOAT16: torch.float16,
    dtypes.BFLOAT16: torch.bfloat16,
    dtypes.FLOAT8_E4M3: torch.uint8,
    dtypes.FLOAT8_E4M3FN: torch.uint8,
}
"""torch's dtype of each element type; FP8 as its bytes."""

COMPUTE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def tensor(array: Array) -> torch.Tensor:
    """The user's memory; FP8 and bool as bytes."""
    source = array.source.bits if isinstance(array.source, Float8E4M3) else array.source
    source = source.detach()
    if array.dtype in (dtypes.FLOAT8_E4M3FN, "bool"):
        return source.view(torch.uint8)
    return source


def in_words(data: torch.Tensor) -> torch.Tensor | None:
    """Bytes as int32 words of four along the last axis, where they lie so; else None."""
    lies = data.dtype == torch.uint8 and data.stride(-1) == 1 and data.shape[-1] % 4 == 0
    outer = (data.data_ptr(), data.storage_offset(), *data.stride()[:-1])
    return data.view(torch.int32) if lies and not any(n % 4 for n in outer) else None


def as_stored(data: torch.Tensor, dtype: str) -> torch.Tensor:
    """A workspace of the contract's `dtype` as torch has it: e4m3fn has a type, e4m3 is bytes."""
    return data.view(torch.float8_e4m3fn) if dtype == dtypes.FLOAT8_E4M3FN else data


def vector(array: Array | None) -> torch.Tensor | None:
    """All elements of a small array, in order, contiguous; of a [128, n] scale the first row."""
    return None if array is None else tensor(array).contiguous()


def product_dtype(x: str, other: str) -> torch.dtype:
    """The dtype of products of `x` with `other`: of 16 bits where both are exact in it."""
    exact = other in (x, *dtypes.FP8)
    return TORCH[x] if x != dtypes.FLOAT32 and exact else torch.float32


def slot_strides(cache: KVCache, view: torch.Tensor, swapped: bool) -> tuple[int, int, int, int]:
    """Strides of K or V as `[outer, slot, kv_head, d]`; `swapped`: its two innermost axes are."""
    if cache.block_table is not None:
        outer, slot, *middle, d = view.stride()
    else:
        outer, *middle, slot, d = view.stride()
    if swapped:
        slot, d = d, slot
    return outer, slot, middle[0] if middle else 0, d


def pointer_or_value(scale: Any) -> Any:
    """A cache scale: a tensor where it is an array on the device, else a float."""
    return tensor(scale) if isinstance(scale, Array) else scale
