"""`t[...]`, `ap`, and the views whose index is known only at run time."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from . import dtypes, views
from .enums import SBUF
from .registers import VirtualRegister

if TYPE_CHECKING:
    from .tensor import NkiTensor


class DynamicSlice(NamedTuple):
    """`nl.ds(start, size)`: `size` elements from `start`, which may be a register."""

    start: Any
    size: int


def whole_number(tensor: NkiTensor, operation: str, value: Any) -> int:
    try:
        return value.__index__()
    except (AttributeError, TypeError):
        raise tensor.refusal(
            operation, f"an index must be an integer, got {value!r}", "an int, a slice or nl.ds"
        ) from None


def refuse_gathered(tensor: NkiTensor, operation: str, dim: int) -> None:
    """The dimension that a run-time index selects cannot be cut again."""
    if tensor.dynamic is not None and tensor.dynamic.vector and dim == 0:
        raise tensor.refusal(operation, "dim 0 is chosen by an index vector", "another dim")


def index(tensor: NkiTensor, key: Any) -> NkiTensor:
    """NumPy-style static indexing. On chip an integer keeps partition dimension 0 (size 1), and the
    result has at least two dimensions; in HBM an integer drops its dimension."""
    keys = key if type(key) is tuple else (key,)
    plain = _plain(tensor, keys)
    if plain is not None:
        return plain
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        missing = len(tensor.shape) - len(keys) + 1
        keys = keys[:at] + (slice(None),) * missing + keys[at + 1 :]
    if len(keys) > len(tensor.shape):
        raise tensor.refusal("index", f"{len(keys)} indices for {tensor.ndim} dimensions", "fewer")
    on_chip = tensor.on_chip
    sizes: list[int] = []
    steps: list[int] = []
    offset = tensor.offset
    runtime: list[tuple[int, Any, int]] = []
    for dim, item in enumerate(keys):
        size, step = tensor.shape[dim], tensor.strides[dim]
        if item.__class__ is slice or item.__class__ is DynamicSlice:
            if item.__class__ is DynamicSlice and not isinstance(item.start, int):
                runtime.append((dim, item.start, item.size))
                count, start, stride = item.size, 0, 1
            else:
                start, count, stride = bounds(tensor, dim, item)
            if dim == 0 and on_chip and stride != 1:
                raise tensor.refusal("index", "partitions have no stride", "step 1 on dim 0")
            if tensor.dynamic is not None and (start or count != size):
                refuse_gathered(tensor, "index", dim)
            offset += start * step
            sizes.append(count)
            steps.append(step * stride)
        elif isinstance(item, VirtualRegister) or hasattr(item, "storage"):
            runtime.append((dim, item, 0))
        else:
            position = whole_number(tensor, "index", item)
            position += size if position < 0 else 0
            if not 0 <= position < size:
                raise tensor.refusal(
                    "index", f"{item} is outside dim {dim} of {size}", "one inside"
                )
            refuse_gathered(tensor, "index", dim)
            offset += position * step
            if on_chip and dim == 0:
                sizes.append(1)
                steps.append(step)
    sizes += tensor.shape[len(keys) :]
    steps += tensor.strides[len(keys) :]
    if on_chip and len(sizes) < 2 or not sizes:
        sizes.append(1)
        steps.append(1)
    result = tensor._view((tuple(sizes), tuple(steps)), offset)
    for dim, value, length in runtime:
        _attach(result, tensor, dim, value, max(length, 1))
    return result


def _plain(tensor: NkiTensor, keys: tuple) -> NkiTensor | None:
    """The common case, `t[a:b, c:d]` with one plain slice a dimension, without detours."""
    shape = tensor.shape
    if len(keys) != len(shape) or tensor.dynamic is not None:
        return None
    sizes = []
    strides = tensor.strides
    offset = tensor.offset
    for item, size, step in zip(keys, shape, strides):  # noqa: B905  (hot; equally long)
        if item.__class__ is not slice or item.step is not None:
            return None
        start, stop = item.start, item.stop
        if start is None:
            if stop is None:
                sizes.append(size)
                continue
            start = 0
        elif stop is None:
            stop = size
        if start.__class__ is not int or stop.__class__ is not int or not 0 <= start < stop <= size:
            return None
        offset += start * step
        sizes.append(stop - start)
    return tensor.__class__(tensor.storage, tuple(sizes), strides, offset, tensor.dtype)


def bounds(tensor: NkiTensor, dim: int, item: Any) -> tuple[int, int, int]:
    """(start, count, step) of a static slice; it must lie inside the dimension."""
    size = tensor.shape[dim]
    if item.__class__ is slice:
        start, stop, step = item.start, item.stop, item.step
        start = 0 if start is None else start
        stop = size if stop is None else stop
        step = 1 if step is None else step
    else:
        start, stop, step = item.start, item.start + item.size, 1
    start += size if start < 0 else 0
    stop += size if stop < 0 else 0
    if not (0 <= start < stop <= size and step >= 1):
        raise tensor.refusal(
            "index",
            f"slice {item.start}:{getattr(item, 'stop', stop)} is empty or leaves dim {dim}"
            f" of {size}",
            "bounds inside the dimension",
        )
    return start, -(-(stop - start) // step), step


def _attach(result: NkiTensor, tensor: NkiTensor, dim: int, value: Any, length: int = 1) -> None:
    from .tensor import Dynamic

    if result.dynamic is not None:
        raise tensor.refusal("index", "it has a run-time index already", "one index a view")
    if tensor.on_chip and dim == 0:
        raise tensor.refusal("index", "partitions have static addresses", "another dim")
    check_scalar(tensor, value)
    places = tensor.shape[dim] - length + 1
    result.dynamic = Dynamic(value, tensor.strides[dim], places, dim, vector=False)


def check_scalar(tensor: NkiTensor, value: Any) -> None:
    """A run-time index is a register or an SBUF tensor of one element."""
    if isinstance(value, VirtualRegister):
        return
    if not hasattr(value, "storage") or value.buffer is not SBUF or value.size != 1:
        raise tensor.refusal(
            "select", f"a run-time index must be a register or an SBUF (1, 1) tensor, got"
            f" {value!r}", "register_load or a (1, 1) tile",
        )  # fmt: skip


def select_dynamic(tensor: NkiTensor, dim: int, value: Any) -> NkiTensor:
    """One run-time position of a dimension, which is dropped."""
    result = tensor._view(
        (
            tensor.shape[:dim] + tensor.shape[dim + 1 :],
            tensor.strides[:dim] + tensor.strides[dim + 1 :],
        )
    )
    _attach(result, tensor, dim, value)
    return result


def check_vector(tensor: NkiTensor, dim: int, rows: Any) -> None:
    """The rules of one index a partition."""
    if tensor.on_chip or dim != 0:
        raise tensor.refusal(
            "vector_select", f"one index a partition needs an HBM tensor and dim 0, got dim {dim}",
            "ap(vector_offset=) on an HBM tensor",
        )  # fmt: skip
    if not hasattr(rows, "storage") or rows.buffer is not SBUF or rows.ndim != 2:
        raise tensor.refusal(
            "vector_select", f"the indices must be an SBUF tensor (partitions, n), got {rows!r}",
            "an int32 or uint32 tile",
        )  # fmt: skip
    if rows.dtype not in ("int32", "uint32"):
        raise tensor.refusal("vector_select", f"the indices are {rows.dtype}", "int32 or uint32")


def select_vector(tensor: NkiTensor, dim: int, rows: NkiTensor) -> NkiTensor:
    """Partition p of the result is row rows[p] of an HBM tensor."""
    from .tensor import Dynamic

    if tensor.dynamic is not None:
        raise tensor.refusal("vector_select", "it has a run-time index already", "one index a view")
    check_vector(tensor, dim, rows)
    result = tensor._view(((rows.shape[0],) + tensor.shape[1:], tensor.strides))
    result.dynamic = Dynamic(rows, tensor.strides[0], tensor.shape[0], 0, vector=True)
    return result


def access_pattern(
    tensor: NkiTensor, pattern: Any, offset: int | None, runtime: tuple[Any, Any, int], dtype: Any
) -> NkiTensor:
    """`ap`: a pattern on the storage itself, from the view's first element on; `offset` is added to
    that (docs/nkisim.md: the guides and the reference differ)."""
    from .tensor import Dynamic, NkiTensor

    allocation = tensor.storage.allocation
    dtype = tensor.dtype if dtype is None else dtypes.canonical(dtype)
    item = dtypes.ITEMSIZE[dtype]
    start = tensor.offset * tensor.itemsize // item + (0 if offset is None else offset)
    shape = tuple(int(count) for _, count in pattern)
    steps = tuple(int(step) for step, _ in pattern)
    if min(shape, default=0) < 1 or start < 0:
        raise tensor.refusal("ap", f"the pattern {pattern} at {start} is empty", "counts >= 1")
    row = allocation.row_bytes // item
    if tensor.on_chip and shape[0] > 1 and steps[0] != row:
        raise tensor.refusal(
            "ap", f"the first step is {steps[0]}: partitions have no stride", f"{row}"
        )
    result = NkiTensor(tensor.storage, shape, steps, start, dtype)
    scalar, vector, dim = runtime
    if scalar is not None or vector is not None:
        if scalar is not None and vector is not None:
            raise tensor.refusal("ap", "scalar_offset and vector_offset are both given", "one")
        base, size = _base(tensor)
        unit = prod(base[dim + 1 :]) * size // item
        if not 0 <= dim < len(base) or unit == 0:
            raise tensor.refusal(
                "ap", f"indirect_dim {dim} of shape {list(base)}", "one of its dims"
            )
        if vector is not None:
            check_vector(tensor, dim, vector)
        else:
            if tensor.on_chip and dim == 0:
                raise tensor.refusal("ap", "partitions have static addresses", "indirect_dim >= 1")
            check_scalar(tensor, scalar)
        index_ = scalar if vector is None else vector
        # One offset is an address: it may be any inside the tensor. An index of a row names a row.
        places = base[dim] if vector is not None else row // unit
        result.dynamic = Dynamic(index_, unit, places, dim, vector=vector is not None)
    _stay_inside(tensor, result, pattern)
    return result


def _base(tensor: NkiTensor) -> tuple[tuple[int, ...], int]:
    """The shape that `indirect_dim` counts in, and its element size: those of a whole tensor,
    reshaped or not, else the storage's."""
    allocation = tensor.storage.allocation
    whole = prod(tensor.shape) * tensor.itemsize == allocation.nbytes
    if whole and tensor.dynamic is None and views.is_dense(tensor.shape, tensor.strides):
        return tensor.shape, tensor.itemsize
    return allocation.shape, dtypes.ITEMSIZE[allocation.dtype]


def _stay_inside(tensor: NkiTensor, result: NkiTensor, pattern: Any) -> None:
    allocation = tensor.storage.allocation
    item = result.itemsize
    if tensor.on_chip:
        row = allocation.row_bytes // item
        partition, rest = divmod(result.offset, row)
        last = rest + views.last_element(result.shape[1:], result.strides[1:])
        if partition + result.shape[0] > allocation.partitions or last >= row:
            raise tensor.refusal(
                "ap", f"{pattern} at {result.offset} leaves {allocation.partitions} partitions of"
                f" {row} elements", "a pattern inside the tensor",
            )  # fmt: skip
        return
    vector = result.dynamic is not None and result.dynamic.vector
    shape, steps = (
        (result.shape[1:], result.strides[1:]) if vector else (result.shape, result.strides)
    )
    last = result.offset + views.last_element(shape, steps)
    if last * item >= allocation.nbytes:
        raise tensor.refusal(
            "ap", f"{pattern} at {result.offset} reaches element {last} of"
            f" {allocation.nbytes // item}", "a pattern inside the tensor",
        )  # fmt: skip


def reinterpret(tensor: NkiTensor, dtype: str) -> NkiTensor:
    from .tensor import NkiTensor

    old, new = tensor.itemsize, dtypes.ITEMSIZE[dtype]
    if tensor.dynamic is not None or tensor.strides[-1] != 1 and tensor.shape[-1] != 1:
        raise tensor.refusal("view", "the last dimension must be dense and static", "a dense view")
    last = tensor.shape[-1] * old
    places = [tensor.offset * old] + [step * old for step in tensor.strides[:-1]]
    if last % new or any(place % new for place in places):
        raise tensor.refusal(
            "view", f"rows of {last} bytes do not hold whole {dtype}", "its multiple"
        )
    start, *outer = [place // new for place in places]
    shape = tensor.shape[:-1] + (last // new,)
    return NkiTensor(tensor.storage, shape, (*outer, 1), start, dtype)
