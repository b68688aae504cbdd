"""The KV caches of a model's layers, for one sequence."""

from __future__ import annotations

import numpy as np

import tkg
from tkg.runner.config import ModelConfig

BLOCK_LEN = 16
LAYOUTS = ("flat", "block")
DTYPES = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float8": "float8_e4m3",
}
"""Names of the dtypes a cache may have, and what the contract calls them."""

FLOAT8_SCALE = tkg.KVScale.quantize(1.0, 1.0)
"""K and V are far below FP8's largest value, 240, in the models that the runner knows, and FP8
is a floating format: a scale would buy no precision. Larger values are clipped."""


def make_caches(
    config: ModelConfig, *, capacity: int, layout: str, dtype: str
) -> list[tkg.KVCache]:
    """A cache with room for `capacity` tokens for each layer.

    Args:
        layout: `"flat"`, or `"block"`: blocks of 16 tokens through one table for all layers.
        dtype: one of `DTYPES`.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    shape = {"kv_heads": config.heads.kv, "d_head": config.heads.d_head}
    kind = {"dtype": DTYPES[dtype], "scale": FLOAT8_SCALE if dtype == "float8" else None}
    if layout == "flat":
        return [
            tkg.KVCache.flat(batch=1, capacity=capacity, **shape, **kind)
            for _ in range(config.layers)
        ]
    blocks = -(-capacity // BLOCK_LEN)
    table = np.arange(blocks, dtype=np.int32)[None]
    return [
        tkg.KVCache.block(
            num_blocks=blocks, block_len=BLOCK_LEN, block_table=table, **shape, **kind
        )
        for _ in range(config.layers)
    ]
