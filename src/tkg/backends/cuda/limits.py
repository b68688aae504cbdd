"""What the CUDA backend cannot run, of what is legal."""

from __future__ import annotations

from tkg.contract.arrays import Array, Float8E4M3
from tkg.contract.block import BlockCall, Linear
from tkg.contract.cost import Call
from tkg.contract.keywords import BLOCK_NAMES
from tkg.contract.projection import PROJECTION_NAMES

MAX_D_HEAD = 512
MAX_TOKENS = 128
"""Largest d_head and most new tokens a row (docs/contract.md, limits)."""


def unsupported(call: Call) -> list[str]:
    """Every reason why this backend cannot run a legal call, in the words of the drop-in call."""
    first = next(iter(call.arrays.values()))
    if first.kind == "numpy":
        return ["it works on torch tensors; these are NumPy arrays (see torch.from_numpy)"]
    if isinstance(call, BlockCall):
        return _block_reasons(call)
    return _weight_reasons(PROJECTION_NAMES["projection.weight"], call.projection)


def _block_reasons(call: BlockCall) -> list[str]:
    name, block = BLOCK_NAMES, call.block
    found = _weight_reasons(name["qkv.weight"], block.qkv)
    if block.out is not None:
        found += _weight_reasons(name["out.weight"], block.out)
    if block.heads.d_head > MAX_D_HEAD:
        found.append(f"d_head is at most {MAX_D_HEAD}; this is {block.heads.d_head}")
    if call.tokens > MAX_TOKENS:
        found.append(f"S_tkg is at most {MAX_TOKENS}; this is {call.tokens}")
    inner = "S_max_ctx" if call.cache.transposed else "d_head"
    for field, array, axis in (
        ("cache.k", call.cache.k, inner),
        ("cache.v", call.cache.v, "d_head"),
    ):
        if not _innermost_contiguous(array):
            found.append(f"{name[field]}'s innermost axis ({axis}) must be contiguous in memory")
    return found


def _weight_reasons(name: str, linear: Linear) -> list[str]:
    if _innermost_contiguous(linear.weight):
        return []
    return [
        f"{name}'s rows must be contiguous in memory (a transposed view is not; copy it once "
        "with .contiguous())"
    ]


def _innermost_contiguous(array: Array) -> bool:
    if array.kind == "spec" or array.shape[-1] == 1:
        return True
    source = array.source.bits if isinstance(array.source, Float8E4M3) else array.source
    return source.stride(-1) == 1
