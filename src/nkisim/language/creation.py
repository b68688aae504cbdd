"""Tensors made by `nki.language`: empty, filled, random, constant."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dtypes, isa, rules, running
from ..core import storage_of_input
from ..enums import ON_CHIP, SBUF, SHARED_HBM, MemoryRegion
from ..isa.ops import OPS
from ..tensor import NkiTensor, dense
from .sizes import is_hbm

# Element types of a constant (LANG, shared_constant).
_CONSTANTS = frozenset(
    ("float32", "float16", "bfloat16", "float8_e4m3", "float8_e4m3fn", "float8_e5m2")
) | dtypes.INTEGERS | {"float8_e8m0fnu"}  # fmt: skip
# Random bits that fill a float's significand, so that rounding never makes 1.0.
_RANDOM_BITS = {
    "float32": 24, "tfloat32": 11, "float16": 11, "bfloat16": 8, "float8_e4m3": 4, "float8_e5m2": 3,
}  # fmt: skip


def ndarray(
    shape: Sequence[int],
    dtype: Any,
    buffer: MemoryRegion = SBUF,
    name: str = "",
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """An uninitialised tensor. `address` is (partition, byte offset in it), on chip only.

    A single element may be (1,) on chip too, and is (1, 1) then.
    """
    shape = tuple(shape)
    if buffer in ON_CHIP and shape == (1,):
        shape = (1, 1)
    if address is not None:
        address = _address(address, buffer)
    return running.current().allocate(shape, dtype, buffer, name, address)


def _address(address: Any, buffer: MemoryRegion) -> tuple[int, int]:
    if is_hbm(buffer):
        rules.refuse("ndarray", "address", f"{address} in HBM", "buffer=nl.sbuf or nl.psum")
    try:
        partition, offset = (int(number.__index__()) for number in address)
    except (AttributeError, TypeError, ValueError):
        rules.refuse("ndarray", "address", f"got {address!r}", "(partition, byte offset)")
    return partition, offset


def full(
    shape: Sequence[int],
    fill_value: float,
    dtype: Any,
    buffer: MemoryRegion = SBUF,
    name: str = "",
) -> NkiTensor:
    """A tensor filled with a number; in HBM by a DMA from a filled SBUF tile."""
    tensor = ndarray(shape, dtype, buffer, name)
    if is_hbm(buffer):
        _fill_hbm(tensor, fill_value)
    else:
        isa.memset(tensor, fill_value)
    return tensor


def _fill_hbm(tensor: NkiTensor, number: float) -> None:
    """One DMA that reads a small tile again and again."""
    count = tensor.size
    partitions = _divisor(count, 128)
    columns = _divisor(count // partitions, 4096)
    repeats = count // (partitions * columns)
    tile = ndarray((partitions, 1, columns), tensor.dtype)
    isa.memset(tile, number)
    isa.dma_copy(tensor.reshape((partitions, repeats, columns)), tile.broadcast(1, repeats))


def _divisor(count: int, limit: int) -> int:
    """The largest divisor of `count` up to `limit`."""
    return next(size for size in range(min(count, limit), 0, -1) if count % size == 0)


def _number(value: int, dtype: Any) -> float:
    """The number as memset wants it: an int for an integer tile, a float for a float tile."""
    return value if dtypes.canonical(dtype) in dtypes.INTEGERS else float(value)


def zeros(
    shape: Sequence[int], dtype: Any, buffer: MemoryRegion = SBUF, name: str = ""
) -> NkiTensor:
    return full(shape, _number(0, dtype), dtype, buffer, name)


def ones(
    shape: Sequence[int], dtype: Any, buffer: MemoryRegion = SBUF, name: str = ""
) -> NkiTensor:
    return full(shape, _number(1, dtype), dtype, buffer, name)


def zeros_like(
    x: NkiTensor, dtype: Any = None, buffer: MemoryRegion | None = None, name: str = ""
) -> NkiTensor:
    """Zeros in the shape of `x`; in SBUF unless `buffer` says otherwise."""
    return zeros(x.shape, dtype or x.dtype, buffer or SBUF, name)


def empty_like(
    x: NkiTensor, dtype: Any = None, buffer: MemoryRegion | None = None, name: str = ""
) -> NkiTensor:
    """Uninitialised, in the shape, dtype and memory of `x` unless told otherwise."""
    return ndarray(x.shape, dtype or x.dtype, buffer or x.buffer, name)


def rand(
    shape: Sequence[int], dtype: Any, buffer: MemoryRegion = SBUF, name: str = ""
) -> NkiTensor:
    """Uniform random numbers in [0, 1): bits of the Vector engine's generator, scaled."""
    dtype = dtypes.canonical(dtype)
    if dtype not in _RANDOM_BITS:
        rules.refuse("rand", "dtype", f"got {dtype}", "a float dtype")
    if is_hbm(buffer):
        rules.refuse("rand", "buffer", f"got {buffer}", "nl.sbuf, then nl.store")
    tensor = ndarray(shape, dtype, buffer, name)
    count = _RANDOM_BITS[dtype]
    bits = ndarray(shape, "uint32")
    isa.rng(bits)
    isa.tensor_scalar(bits, bits, OPS["right_shift"], 32 - count)
    isa.tensor_scalar(tensor, bits, OPS["multiply"], 2.0**-count)
    return tensor


def random_seed(seed: NkiTensor) -> None:
    """Seed the Vector engine's generator with a (1, 1) tensor of 32 bits."""
    rules.tensors("random_seed", seed=seed)
    isa.set_rng_seed(seed)


def shared_constant(constant: Any) -> NkiTensor:
    """A tensor in shared HBM that holds an array, or the array of a .npy file, from the start.

    Equal constants of one device share their storage.
    """
    if isinstance(constant, str):
        constant = np.load(constant, allow_pickle=False)
    if not isinstance(constant, np.ndarray):
        rules.refuse("shared_constant", "constant", f"got {constant!r}", "an array or a .npy path")
    dtype = dtypes.canonical(constant.dtype)
    if dtype not in _CONSTANTS or not constant.ndim:
        rules.refuse(
            "shared_constant", "constant", f"got {dtype} of shape {constant.shape}",
            f"an array of at least one dimension of {', '.join(sorted(_CONSTANTS))}",
        )  # fmt: skip
    core = running.current()
    digest = hashlib.sha256(constant.tobytes()).digest()
    key = (core.rank, dtype, constant.shape, digest)
    storage = core.program.constants.get(key)
    if storage is None:
        allocation = core.describe(constant.shape, dtype, SHARED_HBM, "constant")
        allocation.kind = "constant"
        storage = storage_of_input(allocation, constant)
        core.program.constants[key] = storage
    return dense(storage)


def shared_identity_matrix(n: int, dtype: Any = "uint8", dst: NkiTensor | None = None) -> NkiTensor:
    """The (n, n) identity in SBUF (in `dst` if given), loaded from one constant a dtype."""
    dtype = dtypes.canonical(dtype) if dst is None else dst.dtype
    if dst is None:
        dst = ndarray((n, n), dtype)
    identity = shared_constant(np.eye(n, dtype=np.float32).astype(dtypes.NUMPY[dtype]))
    if identity.dtype != dtype:
        # A dtype that shares its NumPy type with another, such as bool with uint8.
        identity = identity.view(dtype)
    isa.dma_copy(dst, identity)
    return dst
