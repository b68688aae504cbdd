"""The definition of the right answer, in NumPy.

It reads like the formulas: no tiling, no flags, float64 unless asked otherwise. Slow on purpose.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tkg.backends.reference.block import BlockResult, attention_block_values
from tkg.backends.reference.projection import output_projection_values, rounded
from tkg.contract.block import BlockCall
from tkg.contract.cost import Call
from tkg.contract.output import BlockOutput
from tkg.contract.projection import ProjectionCall

__all__ = [
    "BlockResult",
    "attention_block",
    "attention_block_values",
    "output_projection",
    "output_projection_values",
    "prepare",
    "unavailable",
    "unsupported",
]


def unavailable() -> str | None:
    """It always runs."""
    return None


def unsupported(call: Call) -> list[str]:
    """It runs every legal call."""
    del call
    return []


def prepare(part: Any) -> Any:
    """It needs nothing prepared."""
    return part


def attention_block(call: BlockCall) -> BlockOutput:
    """Run a block call in float64 and round the outputs."""
    result = attention_block_values(call, np.float64)
    out = rounded(result.out, call.x.dtype)
    if call.slots is None:
        return BlockOutput(out, result.k_new, result.v_new)
    _write(call.slots, call.cache.k_slots, result.k_new, call.cache.block_table is not None)
    _write(call.slots, call.cache.v_slots, result.v_new, call.cache.block_table is not None)
    return BlockOutput(out)


def _write(slots: np.ndarray, cache: np.ndarray, new: np.ndarray, physical: bool) -> None:
    """Put `new` `[B, S_tkg, kv_heads, d_head]` into `cache` `[outer, length, kv_heads, d_head]`."""
    for (b, s), slot in np.ndenumerate(slots):
        if slot >= 0:
            place = divmod(slot, cache.shape[1]) if physical else (b, slot)
            cache[place] = new[b, s]


def output_projection(call: ProjectionCall) -> np.ndarray:
    """Run a projection call in float64 and round the output."""
    return rounded(output_projection_values(call, np.float64), call.attention.dtype)
