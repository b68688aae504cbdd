"""The KV cache of a call: four layouts, one canonical view."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tkg.contract import dtypes
from tkg.contract.arrays import AnyArray, Array, as_array, handle, own_handle
from tkg.contract.errors import Rules, is_whole
from tkg.contract.memory import CACHE_LINE, zeroed
from tkg.contract.once import once
from tkg.contract.quantization import KVScale


class Geometry(NamedTuple):
    """What a cache's shapes mean.

    Attributes:
        outer: rows of the batch (flat) or physical blocks (block cache).
        length: slots in each of them.
        kv_heads, d_head: heads, and elements a head.
    """

    outer: int
    length: int
    kv_heads: int
    d_head: int


@dataclass(frozen=True)
class KVCache:
    """K and V of the tokens so far; a call updates the arrays in place.

    - flat: `[B, S_max_ctx, d_head]`, or `[B, kv_heads, S_max_ctx, d_head]`; with `transposed`, K
      is `[B, d_head, S_max_ctx]` or `[B, kv_heads, d_head, S_max_ctx]`.
    - block (`block_table` given): `[num_blocks, block_len, d_head]`, or
      `[num_blocks, block_len, kv_heads, d_head]`.

    Attributes:
        k, v: NumPy arrays or torch tensors, both of one dtype: float32, float16, bfloat16,
            float8_e4m3 or float8_e4m3fn.
        transposed: K's two innermost axes are swapped.
        block_table: `[B, n]` int32 or uint32, logical block to physical block.
        scale: the quantisation scale; given for FP8 caches and only for them.
    """

    k: AnyArray
    v: AnyArray
    transposed: bool = False
    block_table: AnyArray = None
    scale: KVScale | None = None

    def __post_init__(self) -> None:
        for field, value in (("k", self.k), ("v", self.v), ("block_table", self.block_table)):
            if value.__class__ is not Array and (value is not None or field != "block_table"):
                own_handle(self, field, value)

    @classmethod
    def flat(
        cls,
        *,
        batch: int,
        capacity: int,
        kv_heads: int,
        d_head: int,
        dtype: str = dtypes.BFLOAT16,
        transposed: bool = False,
        scale: KVScale | None = None,
    ) -> KVCache:
        """A zeroed NumPy cache with `capacity` slots for each of `batch` rows.

        It lies in huge pages where the system has them (docs/design.md, memory).

        Raises:
            ValueError, TypeError: a size is no whole number of at least 1, or the dtype is none
                that a cache may have.
        """
        sizes = {"batch": batch, "kv_heads": kv_heads, "capacity": capacity, "d_head": d_head}
        k, v = _zeroed_pair(Rules("KVCache.flat"), sizes, dtype)
        if transposed:
            k = k.reshape(batch, kv_heads, d_head, capacity)
        return cls(as_given(k), as_given(v), transposed=transposed, scale=scale)

    @classmethod
    def block(
        cls,
        *,
        num_blocks: int,
        block_len: int,
        kv_heads: int,
        d_head: int,
        block_table: np.ndarray,
        dtype: str = dtypes.BFLOAT16,
        scale: KVScale | None = None,
    ) -> KVCache:
        """A zeroed NumPy cache of `num_blocks` blocks, addressed through `block_table`.

        The table is kept, not copied: writing into it changes what the next call reads.

        Raises:
            ValueError, TypeError: as `flat`; the table is no array.
        """
        rules = Rules("KVCache.block")
        if block_table is None:
            rules.broken("block_table", "must be given", "None")
        table = handle(rules, "block_table", block_table)
        sizes = {
            "num_blocks": num_blocks,
            "block_len": block_len,
            "kv_heads": kv_heads,
            "d_head": d_head,
        }
        k, v = _zeroed_pair(rules, sizes, dtype)
        return cls(as_given(k), as_given(v), block_table=table, scale=scale)

    @property
    def layout(self) -> str:
        """`"flat"`, `"flat, K transposed"` or `"block"`."""
        if self.block_table is not None:
            return "block"
        return "flat, K transposed" if self.transposed else "flat"

    @once
    def is_sound(self) -> bool:
        """Whether the cache by itself breaks no rule."""
        rules = Rules("KVCache")
        check_cache(rules, self)
        return rules.unbroken

    @once
    def geometry(self) -> Geometry:
        """What the shapes mean. Only for a cache whose shapes are right."""
        shape = self.v.shape
        if self.block_table is not None:
            outer, length = shape[:2]
            return Geometry(outer, length, shape[2] if len(shape) == 4 else 1, shape[-1])
        kv_heads = shape[1] if len(shape) == 4 else 1
        return Geometry(shape[0], shape[-2], kv_heads, shape[-1])

    @once
    def sources(self) -> tuple[Any, Any, Any]:
        """The user's own K, V and block table."""
        table = self.block_table
        return self.k.source, self.v.source, None if table is None else table.source

    # Made anew each time: a copy of the cache, or a tensor that is given other memory, must not be
    # left with views of the old memory.
    @property
    def k_slots(self) -> np.ndarray:
        """K as a view `[outer, length, kv_heads, d_head]` of the user's memory."""
        return self._slots(self.k.numpy(), self.transposed)

    @property
    def v_slots(self) -> np.ndarray:
        """V as a view `[outer, length, kv_heads, d_head]` of the user's memory."""
        return self._slots(self.v.numpy(), False)

    def _slots(self, array: np.ndarray, transposed: bool) -> np.ndarray:
        if self.block_table is not None:
            return array if array.ndim == 4 else array[:, :, None, :]
        if array.ndim == 3:
            array = array[:, None]
        return array.transpose(0, 3, 1, 2) if transposed else array.transpose(0, 2, 1, 3)


def _zeroed_pair(
    rules: Rules, sizes: Mapping[str, int], dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """K and V of such a shape, in huge pages if both together are large enough."""
    for name, size in sizes.items():
        if not (is_whole(size) and size >= 1):
            rules.broken(name, "must be a whole number, at least 1", repr(size))
    if not (isinstance(dtype, str) and dtype in dtypes.NUMPY):
        rules.broken("dtype", f"must be one of {', '.join(dtypes.NUMPY)}", repr(dtype))
    rules.raise_broken()
    number, shape = dtypes.NUMPY[dtype], tuple(int(size) for size in sizes.values())
    size = math.prod(shape) * number.itemsize
    second = -(-size // CACHE_LINE) * CACHE_LINE
    memory = zeroed(second + size)
    k, v = memory[:size], memory[second:]
    return k.view(number).reshape(shape), v.view(number).reshape(shape)


def as_given(array: np.ndarray) -> Array:
    """`as_array` for a value that is certainly there."""
    handle = as_array(array)
    assert handle is not None
    return handle


def check_cache(rules: Rules, cache: KVCache) -> Geometry | None:
    """Check a cache by itself. Returns its geometry if the shapes make sense."""
    k, v = cache.k, cache.v
    _check_dtypes(rules, cache)
    if cache.transposed and cache.block_table is not None:
        rule = f"must be False for a block cache ({rules.name('cache.block_table')} is given)"
        rules.broken("cache.transposed", rule, True)
    if k.source is v.source:
        rule = f"must not be the same array as {rules.name('cache.k')}"
        rules.broken("cache.v", rule, "one array for both")
    if v.ndim not in (3, 4) or min(v.shape) == 0:
        rule = f"must be {_expected(cache)}, all sizes at least 1"
        rules.broken("cache.v", rule, f"shape {v.shape}")
        return None
    k_shape = v.shape
    if cache.transposed and cache.block_table is None:
        k_shape = (*v.shape[:-2], v.shape[-1], v.shape[-2])
    if k.shape != k_shape:
        rule = f"must have shape {k_shape} to go with {rules.name('cache.v')} of shape {v.shape}"
        rules.broken("cache.k", f"{rule} ({cache.layout} cache)", f"shape {k.shape}")
        return None
    geometry = cache.geometry
    if geometry.d_head % 2:
        rules.broken("cache.v", "must have an even d_head", geometry.d_head)
    return geometry


def _check_dtypes(rules: Rules, cache: KVCache) -> None:
    k, v, scale = cache.k, cache.v, cache.scale
    if scale is not None and not isinstance(scale, KVScale):
        kind = type(scale).__name__
        rules.broken("cache.scale", "must be a tkg.KVScale", kind, about_type=True)
    elif scale is not None:
        for field, value in (("cache.scale.k", scale.k), ("cache.scale.v", scale.v)):
            # NaN stands for the scale of a description without data.
            if isinstance(value, (int, float)) and (math.isinf(value) or value <= 0):
                rules.broken(field, "must be positive and finite", value)
    if v.dtype not in dtypes.FLOATS + dtypes.FP8:
        rule = f"must have dtype {', '.join(dtypes.FLOATS + dtypes.FP8)}"
        rules.broken("cache.v", rule, v.dtype, about_type=True)
    if k.dtype != v.dtype:
        rule = f"must have the dtype of {rules.name('cache.v')} ({v.dtype})"
        rules.broken("cache.k", rule, k.dtype, about_type=True)
    elif v.dtype in dtypes.FP8 and cache.scale is None:
        rule = f"({_scales(rules)}) must be given for an FP8 cache"
        fix = "They are multipliers applied before the cast to FP8 (see docs/fp8.md)"
        rules.broken("cache.scale", rule, "None", fix)
    elif v.dtype in dtypes.FLOATS and cache.scale is not None:
        rule = f"({_scales(rules)}) goes with an FP8 cache only"
        rules.broken("cache.scale", rule, f"a scale and a {v.dtype} cache")


def _scales(rules: Rules) -> str:
    return f"{rules.name('cache.scale.k')} and {rules.name('cache.scale.v')}"


def _expected(cache: KVCache) -> str:
    if cache.block_table is not None:
        return "[num_blocks, block_len, d_head] or [num_blocks, block_len, kv_heads, d_head]"
    return "[B, S_max_ctx, d_head] or [B, kv_heads, S_max_ctx, d_head]"
