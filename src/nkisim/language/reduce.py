"""Reductions over the last free dimensions, and what is made of them: softmax, RMS norm."""

from __future__ import annotations

import builtins
from math import prod as product_of
from typing import Any

from .. import dtypes, isa, rules
from ..enums import PSUM
from ..isa.ops import OPS, Op, define
from ..tensor import NkiTensor
from .creation import ndarray
from .move import broadcast_to, copy

_BN = 512  # elements that one bn_stats takes (TS)


def _axes(name: str, x: NkiTensor, axis: Any) -> tuple[int, ...]:
    """The reduced dimensions, ascending; they must be the last ones and not the partitions."""
    rules.tensors(name, x=x)
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    axes = tuple(sorted(int(dim) % x.ndim if -x.ndim <= dim < x.ndim else dim for dim in given))
    if not axes or axes != tuple(range(x.ndim - len(axes), x.ndim)) or axes[0] == 0:
        rules.refuse(
            name, "axis", f"got {axis!r} for shape {list(x.shape)}",
            "the last free dimensions, in one piece",
        )  # fmt: skip
    return axes


def _shape(x: NkiTensor, axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """The result's shape; a tile keeps two dimensions."""
    left = x.shape[: axes[0]] + ((1,) * len(axes) if keepdims else ())
    return left if len(left) > 1 else (*left, 1)


def _reduced(name: str, op: Op, x: NkiTensor, axis: Any, dtype: Any, keepdims: bool) -> NkiTensor:
    axes = _axes(name, x, axis)
    tile = ndarray(_shape(x, axes, keepdims), dtype or x.dtype)
    isa.tensor_reduce(tile, op, x, axes, keepdims=keepdims)
    return tile


def sum(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    return _reduced("sum", OPS["add"], x, axis, dtype, keepdims)


def prod(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    return _reduced("prod", OPS["multiply"], x, axis, dtype, keepdims)


def all(x: NkiTensor, axis: Any, dtype: Any = None) -> NkiTensor:
    """1 where no element is 0."""
    return _reduced("all", OPS["logical_and"], x, axis, dtype, False)


def _max(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    return _reduced("max", OPS["maximum"], x, axis, dtype, keepdims)


def _min(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    return _reduced("min", OPS["minimum"], x, axis, dtype, keepdims)


max = define("max", function=_max)
min = define("min", function=_min)


def mean(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """float32 inside."""
    axes = _axes("mean", x, axis)
    total = _reduced("mean", OPS["add"], x, axis, "float32", keepdims)
    tile = ndarray(total.shape, dtype or x.dtype)
    count = product_of(x.shape[dim] for dim in axes)
    isa.tensor_scalar(tile, total, OPS["multiply"], 1.0 / count)
    return tile


def var(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """The population variance, by bn_stats and bn_aggr, one run for each kept free position. The
    reduced dimensions stay as size 1, whatever `keepdims` says (NKI ignores it)."""
    axes = _axes("var", x, axis)
    kept = product_of(x.shape[1 : axes[0]])
    columns = x.size // (x.shape[0] * kept)
    rows = x if x.is_contiguous() else copy(x)
    rows = rows.reshape((x.shape[0], kept, columns))
    tile = ndarray(_shape(x, axes, True), dtype or x.dtype)
    flat = tile.reshape((x.shape[0], kept))
    for position in range(kept):
        _variance(flat[:, position : position + 1], rows[:, position, :])
    return tile


def _variance(result: NkiTensor, row: NkiTensor) -> None:
    chunks = -(-row.shape[1] // _BN)
    statistics = ndarray((row.shape[0], 6 * chunks), "float32")
    for chunk in range(chunks):
        start = chunk * _BN
        part = row.slice(1, start, builtins.min(start + _BN, row.shape[1]))
        isa.bn_stats(statistics[:, 6 * chunk : 6 * chunk + 6], part)
    moments = ndarray((row.shape[0], 2), "float32")
    isa.bn_aggr(moments, statistics)
    isa.tensor_copy(result, moments[:, 1:2])


def softmax(x: NkiTensor, axis: Any = -1, dtype: Any = None) -> NkiTensor:
    """exp(x - max) / sum, float32 inside; `axis`: the last free dimensions."""
    axes = _axes("softmax", x, axis)
    tile = ndarray(x.shape, dtype or x.dtype)
    highest = ndarray(_shape(x, axes, True), "float32")
    powers = ndarray(x.shape, "float32")
    total = ndarray(highest.shape, "float32")
    isa.tensor_reduce(highest, OPS["maximum"], x, axes, negate=True, keepdims=True)
    if axes[0] == 1:
        isa.activation_reduce(
            powers, OPS["exp"], x, OPS["add"], total.reshape((x.shape[0], 1)),
            bias=highest.reshape((x.shape[0], 1)),
        )  # fmt: skip
        isa.reciprocal(total, total)
        isa.tensor_scalar(tile, powers, OPS["multiply"], total.reshape((x.shape[0], 1)))
        return tile
    isa.tensor_tensor(powers, x, _spread(highest, x.shape), OPS["add"])
    isa.activation(powers, OPS["exp"], powers)
    isa.tensor_reduce(total, OPS["add"], powers, axes, keepdims=True)
    isa.reciprocal(total, total)
    isa.tensor_tensor(tile, powers, _spread(total, x.shape), OPS["multiply"])
    return tile


def _spread(x: NkiTensor, shape: tuple[int, ...]) -> NkiTensor:
    """A view that repeats the free dimensions of size 1."""
    for dim in range(1, len(shape)):
        if x.shape[dim] != shape[dim]:
            x = x.broadcast(dim, shape[dim])
    return x


def rms_norm(
    x: NkiTensor, w: NkiTensor, axis: Any, n: int, epsilon: float = 1e-6, dtype: Any = None,
    compute_dtype: Any = None,
) -> NkiTensor:  # fmt: skip
    """x / sqrt(sum(x^2) / n + epsilon) * w; `axis`: all free dimensions, `w`: of the shape of
    x or one partition. x / rms is rounded to `compute_dtype` (float32) before w multiplies it."""
    axes = _axes("rms_norm", x, axis)
    rules.tensors("rms_norm", w=w)
    if axes[0] != 1:
        rules.refuse(
            "rms_norm", "axis", f"{axis!r} for shape {list(x.shape)}", "all free dimensions"
        )
    if w.shape[1:] != x.shape[1:] or w.shape[0] not in (1, x.shape[0]):
        rules.refuse(
            "rms_norm", "w", f"shape {list(w.shape)}", f"{list(x.shape)}, or one partition"
        )
    inner = "float32" if compute_dtype is None else dtypes.canonical(compute_dtype)
    normal = ndarray(x.shape, inner)
    total = ndarray((x.shape[0], 1), "float32")
    isa.activation_reduce(normal, OPS["square"], x, OPS["add"], total)
    isa.tensor_scalar(total, total, OPS["multiply"], 1.0 / n, False, OPS["add"], epsilon)
    scale = OPS["rsqrt"](total)
    isa.tensor_scalar(normal, x, OPS["multiply"], scale)
    tile = ndarray(x.shape, dtype or x.dtype)
    isa.tensor_tensor(tile, normal, broadcast_to(w, x.shape), OPS["multiply"])
    return tile


def matmul(x: NkiTensor, y: NkiTensor, transpose_x: bool = False) -> NkiTensor:
    """x.T @ y in PSUM, float32; x (k, m), y (k, n) with k, m up to 128 and n up to 512. NKI refuses
    transpose_x=False (release notes)."""
    rules.tensors("matmul", x=x, y=y)
    if not transpose_x:
        rules.refuse(
            "matmul", "transpose_x", "got False", "transpose_x=True and x already transposed"
        )
    tile = ndarray((product_of(x.shape[1:]), product_of(y.shape[1:])), "float32", PSUM)
    isa.nc_matmul(tile, x, y)
    return tile
