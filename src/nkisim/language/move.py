"""Moving and rearranging data: `load`, `store`, copies, transposes, broadcasts, gathers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import dtypes, isa, rules
from ..enums import PSUM, SBUF
from ..enums import engine as Engine
from ..isa.ops import OPS
from ..tensor import NkiTensor
from .creation import ndarray

_BANK = 512  # float32 columns of one PSUM bank (TS)
_WIDE_INTEGERS = ("int32", "uint32")  # more bits than float32 keeps
_MATMUL_INPUTS = frozenset(
    ("float8_e4m3", "float8_e5m2", "bfloat16", "float16", "tfloat32", "float32")
)


def load(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile with the values of an HBM tensor (at most 128 rows)."""
    rules.tensors("load", src=src)
    if src.on_chip:
        rules.refuse("load", "src", f"{src!r} is not in HBM", "nl.copy")
    if src.ndim < 2:
        rules.refuse(
            "load",
            "src",
            f"{src!r} has one dimension, a tile has two",
            "reshape to (1, n) or (n, 1)",
        )
    tile = ndarray(src.shape, dtype or src.dtype)
    isa.dma_copy(tile, src)
    return tile


def store(dst: NkiTensor, value: NkiTensor) -> None:
    """HBM tensor `dst` takes the values of an SBUF tile."""
    rules.tensors("store", dst=dst, value=value)
    if dst.on_chip:
        rules.refuse("store", "dst", f"{dst!r} is not in HBM", "nl.copy, or nisa.tensor_copy")
    if value.buffer is not SBUF:
        rules.refuse("store", "value", f"{value!r} is not in SBUF", "nl.copy(value) first")
    isa.dma_copy(dst, value)


def load_transpose2d(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile (n, m) with the values of an (m, n) HBM tensor, transposed by the DMA."""
    rules.tensors("load_transpose2d", src=src)
    if src.on_chip or src.ndim != 2:
        rules.refuse("load_transpose2d", "src", f"{src!r}", "an HBM tensor of two dimensions")
    tile = ndarray((src.shape[1], src.shape[0]), src.dtype)
    isa.dma_transpose(tile, src)
    return cast(tile, dtype)


def copy(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile with the values of a tile in SBUF or PSUM, by the Vector engine."""
    rules.tensors("copy", x=x)
    tile = ndarray(x.shape, dtype or x.dtype)
    isa.tensor_copy(tile, x, Engine.vector)
    return tile


def cast(x: NkiTensor, dtype: Any) -> NkiTensor:
    """`x` itself where it has the dtype already (or None is asked for), else a copy in SBUF."""
    if dtype is None or dtypes.canonical(dtype) == x.dtype:
        return x
    return copy(x, dtype)


def transpose(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """(m, n) to (n, m) by the Tensor engine: a tile in PSUM, or in SBUF if `dtype` casts it."""
    rules.tensors("transpose", x=x)
    if x.ndim != 2 or not x.on_chip:
        rules.refuse("transpose", "x", f"{x!r}", "a tile of two dimensions on chip")
    source = x if x.buffer is SBUF else copy(x)
    tile = ndarray((x.shape[1], x.shape[0]), x.dtype, PSUM)
    isa.nc_transpose(tile, source, Engine.tensor)
    return cast(tile, dtype)


def expand_dims(x: NkiTensor, axis: int) -> NkiTensor:
    """A view with one more dimension, of size 1, at `axis`."""
    rules.tensors("expand_dims", x=x)
    return x.expand_dim(axis)


def broadcast_to(x: NkiTensor, shape: Sequence[int], dtype: Any = None) -> NkiTensor:
    """`x` repeated along its dimensions of size 1: a new SBUF tile, or `x` if nothing changes.

    Partitions are repeated by the Tensor engine (a column of ones times `x`), as the Mamba tutorial
    tells; 32-bit integers travel as two halves of 16 bits, so they stay exact.
    """
    rules.tensors("broadcast_to", x=x)
    shape = tuple(shape)
    wrong = len(shape) != x.ndim or any(
        old not in (1, new) for old, new in zip(x.shape, shape, strict=False)
    )
    if wrong or not x.on_chip:
        rules.refuse(
            "broadcast_to", "shape", f"{shape} from {x!r}", "the same rank, sizes kept or from 1"
        )
    if shape == x.shape:
        return cast(x, dtype)
    wide = x
    for dim in range(1, x.ndim):
        if x.shape[dim] != shape[dim]:
            wide = wide.broadcast(dim, shape[dim])
    if x.shape[0] == shape[0]:
        return copy(wide, dtype)
    flat = _flat_row(wide)
    if x.dtype in _WIDE_INTEGERS:
        # Halves of 16 bits are exact in float32.
        halves = ndarray((shape[0], 2 * flat.shape[1]), "uint16")
        _multiply(halves, flat.view("uint16"))
        return cast(halves.view(x.dtype).reshape(shape), dtype)
    tile = ndarray((shape[0], flat.shape[1]), dtype or x.dtype)
    _multiply(tile, flat)
    return tile.reshape(shape)


def _flat_row(x: NkiTensor) -> NkiTensor:
    """One partition as (1, n) in SBUF; a copy only where the layout asks for it."""
    if x.buffer is not SBUF or not x.is_contiguous():
        x = copy(x)
    return x.reshape((1, x.size))


def _multiply(tile: NkiTensor, row: NkiTensor) -> None:
    """Each partition of `tile` becomes `row`: ones(1, P).T @ row, a PSUM bank at a time."""
    if row.dtype not in _MATMUL_INPUTS:
        row = copy(row, "float32")
    column = ndarray((1, tile.shape[0]), row.dtype)
    isa.memset(column, 1.0, Engine.gpsimd)
    for start in range(0, row.shape[1], _BANK):
        end = min(start + _BANK, row.shape[1])
        bank = ndarray((tile.shape[0], end - start), "float32", PSUM)
        isa.nc_matmul(bank, column, row[:, start:end])
        isa.activation(tile[:, start:end], OPS["copy"], bank)


def gather_flattened(
    data: NkiTensor, indices: NkiTensor, axis: int = 0, dtype: Any = None
) -> NkiTensor:
    """result[p, i] = data[p].flatten()[indices[p, i]], in the shape of `indices`."""
    rules.tensors("gather_flattened", data=data, indices=indices)
    if axis != 0:
        rules.refuse(
            "gather_flattened", "axis", f"got {axis}", "0: indices are flat, a partition each"
        )
    if indices.dtype == "int32":
        indices = indices.view("uint32")
    elif indices.dtype != "uint32":
        indices = copy(indices, "uint32")
    tile = ndarray(indices.shape, data.dtype)
    isa.nc_n_gather(tile, data, indices)
    return cast(tile, dtype)


def where(condition: NkiTensor, x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x where `condition` is not 0, y elsewhere; x and y are tiles of one shape, or numbers."""
    rules.tensors("where", condition=condition)
    first = next((side for side in (x, y) if isinstance(side, NkiTensor)), condition)
    tile = ndarray(condition.shape, dtype or first.dtype)
    if isinstance(y, NkiTensor):
        isa.tensor_copy(tile, y)
    else:
        isa.memset(tile, y)
    if isinstance(x, NkiTensor):
        x = cast(x, tile.dtype)
    predicate = ndarray(condition.shape, "uint8")
    isa.tensor_scalar(predicate, condition, OPS["not_equal"], 0.0)
    isa.tensor_copy_predicated(tile, x, predicate)
    return tile
