"""What the CPU backend cannot run, of what is legal."""

from __future__ import annotations

from tkg.contract.arrays import Array
from tkg.contract.block import BlockCall, Linear
from tkg.contract.cost import Call
from tkg.contract.keywords import BLOCK_NAMES
from tkg.contract.projection import PROJECTION_NAMES

MAX_D_HEAD = 512
MAX_TOKENS = 128
"""Largest d_head and most new tokens a row (docs/contract.md, limits)."""


def unsupported(call: Call) -> list[str]:
    """Every reason why this backend cannot run a legal call, in the words of the drop-in call."""
    if isinstance(call, BlockCall):
        return _block_reasons(call)
    return _weight_reasons(PROJECTION_NAMES["projection.weight"], call.projection)


def _block_reasons(call: BlockCall) -> list[str]:
    name, block, cache = BLOCK_NAMES, call.block, call.cache
    found = _weight_reasons(name["qkv.weight"], block.qkv)
    if block.out is not None:
        found += _weight_reasons(name["out.weight"], block.out)
    if block.heads.d_head > MAX_D_HEAD:
        found.append(f"d_head is at most {MAX_D_HEAD}; this is {block.heads.d_head}")
    if call.tokens > MAX_TOKENS:
        found.append(f"S_tkg is at most {MAX_TOKENS}; this is {call.tokens}")
    if not _innermost_contiguous(cache.k):
        inner = "S_max_ctx" if cache.transposed else "d_head"
        found.append(f"{name['cache.k']}'s innermost axis ({inner}) must be contiguous in memory")
    if not _innermost_contiguous(cache.v):
        found.append(f"{name['cache.v']}'s innermost axis (d_head) must be contiguous in memory")
    return found


def _weight_reasons(name: str, linear: Linear) -> list[str]:
    if _innermost_contiguous(linear.weight):
        return []
    return [
        f"{name}'s rows must be contiguous in memory (a transposed view is not; copy it once "
        "with numpy.ascontiguousarray or .contiguous())"
    ]


def _innermost_contiguous(array: Array) -> bool:
    if array.kind == "spec" or array.source is None or array.shape[-1] == 1:
        return True
    view = array.numpy()
    return view.strides[-1] == view.itemsize
