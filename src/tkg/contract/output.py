"""What a backend returns, and how it becomes what the caller gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tkg.contract.block import BlockCall


@dataclass(frozen=True)
class BlockOutput:
    """What a backend returns for a block call.

    Attributes:
        out: the output, in X's dtype and the contract's shape; a NumPy array, or a torch tensor
            from a backend on a device.
        k_new, v_new: the new tokens' K and V `[B, S_tkg, kv_heads, d_head]` in the cache's dtype
            (a tensor of float8_e4m3: its bytes as uint8),
            for a call that does not update the cache; otherwise `None`, and the cache is updated.
    """

    out: Any
    k_new: Any = None
    v_new: Any = None


def caches(call: BlockCall, output: BlockOutput) -> tuple[Any, Any]:
    """`K_out` and `V_out` as the caller gets them.

    The caller's own caches if they were updated; otherwise the new tokens as
    `[d_head, B, S_tkg]` (more than one KV head: `[kv_heads, d_head, B, S_tkg]`) and
    `[B, kv_heads, S_tkg, d_head]`.
    """
    if call.slot_ids is not None:
        return call.cache.k.source, call.cache.v.source
    k, v = permuted(output.k_new, (2, 3, 0, 1)), permuted(output.v_new, (0, 2, 1, 3))
    k = k[0] if call.block.heads.kv == 1 else k
    return call.x.like(k), call.x.like(v)


def permuted(array: Any, axes: tuple[int, ...]) -> Any:
    """A contiguous copy of a NumPy array or torch tensor with its axes in another order."""
    if isinstance(array, np.ndarray):
        return array.transpose(axes).copy()
    return array.permute(axes).contiguous()
