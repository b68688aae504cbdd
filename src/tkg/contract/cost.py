"""What a call must move and compute, whatever runs it.

Each weight, and each K and V element that some token attends to, is read once a call; what is
written is the output and the new K and V. The roofline time of a machine follows from these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tkg.contract import dtypes
from tkg.contract.block import BlockCall, Linear
from tkg.contract.projection import ProjectionCall

Call = BlockCall | ProjectionCall


@dataclass(frozen=True)
class Cost:
    """Least work of one call.

    Attributes:
        read_bytes, written_bytes: by what is read or written.
        flops: floating-point operations (a multiply-add counts as 2) of the matrix products.
    """

    read_bytes: dict[str, int]
    written_bytes: dict[str, int]
    flops: int

    @property
    def bytes(self) -> int:
        """All bytes that must move."""
        return sum(self.read_bytes.values()) + sum(self.written_bytes.values())

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """Roofline time: the larger of the time to move the bytes and to do the arithmetic."""
        return max(self.bytes / bytes_per_second, self.flops / flops_per_second)


def cost(call: Call) -> Cost:
    """The least bytes and FLOPs of a call. Positions that cannot be read count as all valid."""
    return _block_cost(call) if isinstance(call, BlockCall) else _projection_cost(call)


def _projection_cost(call: ProjectionCall) -> Cost:
    rows = call.attention.shape[1] * call.attention.shape[3]
    read = {name: array.nbytes for name, array in call.arrays.items()}
    out = int(np.prod(call.out_shape())) * dtypes.itemsize(call.attention.dtype)
    return Cost(read, {"out": out}, _matmul(call.projection, rows))


def _block_cost(call: BlockCall) -> Cost:
    block, heads, rows = call.block, call.block.heads, call.batch * call.tokens
    read = {name: array.nbytes for name, array in call.arrays.items()}
    if block.hidden_dim_actual:
        share = block.hidden_dim_actual / block.qkv.weight.shape[0]
        for name in ("x", "qkv.weight"):
            read[name] = round(read[name] * share)
    slots, pairs = _visible(call)
    slot_bytes = heads.kv * heads.d_head * dtypes.itemsize(call.cache.v.dtype)
    read |= {"cache.k": slots * slot_bytes, "cache.v": slots * slot_bytes}
    written = {"out": int(np.prod(call.out_shape())) * dtypes.itemsize(call.x.dtype)}
    new = _written_tokens(call) * slot_bytes
    written |= {"K_out": new, "V_out": new}
    flops = _matmul(block.qkv, rows) + 4 * pairs * heads.q * heads.d_head
    if block.out is not None:
        flops += _matmul(block.out, rows)
    return Cost(read, written, flops)


def _matmul(linear: Linear, rows: int) -> int:
    return 2 * rows * linear.weight.shape[0] * linear.weight.shape[1]


def _written_tokens(call: BlockCall) -> int:
    if call.slots is None:
        return call.batch * call.tokens
    return int((call.slots >= 0).sum())


def _visible(call: BlockCall) -> tuple[int, int]:
    """Cache slots that some token of their row attends to, and (token, position) pairs a head."""
    tokens, batch = call.tokens, call.batch
    if call.block.skip_attention:
        return 0, 0
    if call.mask is not None and call.mask.on_host:
        mask = call.mask.numpy() != 0
        slots = int(mask[: call.prior].any(axis=(2, 3)).sum())
        return slots, round(int(mask.sum()) / call.block.heads.q)
    start = call.start if call.start is not None else np.full(batch, call.prior)
    valid = np.maximum(start, 0)
    window = call.block.sliding_window
    if window is not None:
        valid = np.minimum(valid, window - 1)
    causal = tokens * (tokens + 1) // 2
    return int(valid.sum()), int(valid.sum()) * tokens + causal * int((start >= 0).sum())
