"""Indices known only at run time, worked out when the instruction runs.

`resolve` turns a view with one run-time index (a register, or a one-element tile) into the static
view it means now. `rows` does the same for one index a partition: the rows of an HBM tensor that a
gather reads or a scatter writes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import operands, rules, running, views
from .enums import oob_mode as OobMode
from .errors import NkiValidationError
from .memory import WRITTEN
from .registers import VirtualRegister
from .tensor import Dynamic, NkiTensor

Index = tuple[NkiTensor, ...]  # the tile that holds the index, or nothing for a register


def resolve(
    op: str, argument: str, tensor: NkiTensor, oob: OobMode = OobMode.error
) -> NkiTensor | None:
    """The static view that a view with one run-time index means now; a static one as it is.

    Raises NkiValidationError where the index leaves the tensor; None with `oob_mode.skip`.
    """
    dynamic = tensor.dynamic
    if dynamic is None:
        return tensor
    if dynamic.vector:
        rules.refuse(op, argument, "has one index a partition", "one run-time index at most")
    index = _scalar(op, argument, dynamic)
    offset = tensor.offset + index * dynamic.stride
    if 0 <= index < dynamic.limit and _inside(tensor, offset):
        return NkiTensor(tensor.storage, tensor.shape, tensor.strides, offset, tensor.dtype)
    if oob is OobMode.skip:
        return None
    raise NkiValidationError(
        f"{running.site()}: {op}: {argument}: {tensor!r}: run-time index {index} is out of bounds;"
        f" this view of {tensor.storage.allocation} may start at 0 to {dynamic.limit - 1}; use an"
        " index inside, or oob_mode.skip in a DMA"
    )


def index_tiles(*tensors: NkiTensor) -> Index:
    """The tiles that the run-time indices of these operands are read from."""
    found = [t.dynamic.index for t in tensors if t.dynamic is not None]
    return tuple([index for index in found if isinstance(index, NkiTensor)])


def _scalar(op: str, argument: str, dynamic: Dynamic) -> int:
    index = dynamic.index
    if isinstance(index, VirtualRegister):
        if index.value is None:
            rules.refuse(op, argument, "its register was never written", "register_move before")
        return index.value
    return int(operands.value(op, f"{argument}'s index", index).reshape(-1)[0])


def _inside(tensor: NkiTensor, offset: int) -> bool:
    """Whether the view, moved to `offset`, stays in its storage (on chip: in its partitions)."""
    allocation = tensor.storage.allocation
    row = allocation.row_bytes // tensor.itemsize
    shape, strides = tensor.shape, tensor.strides
    if tensor.on_chip:
        shape, strides, offset = (
            shape[1:],
            strides[1:],
            offset - tensor.offset + tensor.offset % row,
        )
    return 0 <= offset and offset + views.last_element(shape, strides) < row


class Rows(NamedTuple):
    """A resolved index vector: `all` is the static view of every row that an index may name, row r
    of the operand is `all`'s row `index[r]` where `good[r]`, and is left alone elsewhere."""

    all: NkiTensor
    index: np.ndarray
    good: np.ndarray

    @property
    def chosen(self) -> np.ndarray:
        """Indices of the rows that are really moved."""
        return self.index[self.good]


def rows(op: str, argument: str, tensor: NkiTensor, index: np.ndarray, oob: OobMode) -> Rows:
    """The rows that `index` (one a row of `tensor`) names. Raises NkiValidationError where one lies
    outside the tensor, unless `oob` is `oob_mode.skip`."""
    dynamic = tensor.dynamic
    assert dynamic is not None
    inner_shape, inner_strides = tensor.shape[1:], tensor.strides[1:]
    last = tensor.offset + views.last_element(inner_shape, inner_strides)
    size = tensor.storage.allocation.nbytes // tensor.itemsize
    # An offset into the row may push the last row's end out of the tensor.
    count = min(dynamic.limit, (size - 1 - last) // dynamic.stride + 1)
    index = index.astype(np.int64)
    good = (index >= 0) & (index < count)
    if oob is not OobMode.skip and not good.all():
        at = int(np.argmin(good))
        raise NkiValidationError(
            f"{running.site()}: {op}: {argument}: {tensor!r}: index {index[at]} of row {at} is out"
            f" of bounds; {tensor.storage.allocation} has rows 0 to {count - 1} for this view; use"
            " an index inside, or oob_mode.skip"
        )
    whole = NkiTensor(
        tensor.storage, (count, *inner_shape), (dynamic.stride, *inner_strides), tensor.offset,
        tensor.dtype,
    )  # fmt: skip
    return Rows(whole, index, good)


def gathered(op: str, argument: str, found: Rows) -> np.ndarray:
    """The rows as a new array, one for each good index, in their own dtype."""
    table = found.all
    if table.storage.shadow is not None:
        state = table.state[found.chosen]
        if not state.all():
            operands.unwritten(op, argument, table, state)
    return table.array[found.chosen]


def scatter(found: Rows, values: np.ndarray) -> None:
    """Store one row of `values` (in the tensor's dtype) for each good index."""
    table = found.all
    chosen = found.chosen
    table.array[chosen] = values
    storage = table.storage
    storage.written = True
    if storage.shadow is not None:
        table.state[chosen] = WRITTEN


def refuse_collisions(op: str, argument: str, found: Rows) -> None:
    """Two rows of a scatter that share an element: which one stays is not defined."""
    table, chosen = found.all, found.chosen
    width = views.last_element(table.shape[1:], table.strides[1:]) + 1
    if width <= table.strides[0]:
        places = np.sort(chosen)
    else:
        inner = np.zeros(1, np.int64)
        for size, step in zip(table.shape[1:], table.strides[1:], strict=True):
            inner = (inner[:, None] + np.arange(size, dtype=np.int64) * step).reshape(-1)
        places = np.sort((chosen[:, None] * table.strides[0] + np.unique(inner)).reshape(-1))
    same = places[1:][places[1:] == places[:-1]]
    if len(same):
        row = int(same[0]) if width <= table.strides[0] else int(same[0]) // table.strides[0]
        operands.hazard(
            "duplicate scatter index",
            f"{running.site()}: {op}: {argument}: {table.storage.allocation}: several indices name"
            f" row {row}; the order of their writes is not defined; make the indices unique",
        )


def refuse_overlap(op: str, found: Rows, other: NkiTensor) -> None:
    """The chosen rows and the other operand of one DMA must lie apart: their order is not
    defined."""
    table = found.all
    if other.storage is not table.storage:
        return
    # One flag for each byte of the tensor, set where the rows are.
    flags = np.zeros(table.storage.allocation.nbytes, bool)
    _bytes_of(flags, table)[found.chosen] = True
    if _bytes_of(flags, other).any():
        operands.hazard(
            "overlap within one DMA",
            f"{running.site()}: {op}: dst and src share bytes of {table.storage.allocation}; their"
            " order is not defined; copy through another tensor",
        )


def _bytes_of(flags: np.ndarray, tensor: NkiTensor) -> np.ndarray:
    item = tensor.itemsize
    steps = tuple(step * item for step in tensor.strides)
    return np.ndarray((*tensor.shape, item), bool, flags, tensor.offset * item, (*steps, 1))


def write_some(tensor: NkiTensor, values: np.ndarray, good: np.ndarray) -> None:
    """Store rows of `values` into a static destination whose elements, in order, are len(good)
    equal rows; only those where `good` is set. `values` has one row for each of them, in its
    dtype."""
    width = tensor.size // len(good)
    mask = np.repeat(good, width).reshape(tensor.shape)
    tensor.array[mask] = values.reshape(-1)
    mark_some(tensor, mask)


def mark_some(tensor: NkiTensor, mask: np.ndarray) -> None:
    """The masked elements are written now; overlapped tensors lose the whole area."""
    storage = tensor.storage
    storage.written = True
    if storage.by_matmul:
        storage.state_of_all()
    if storage.shadow is not None:
        tensor.state[mask] = WRITTEN
    if storage.neighbours and mask.any():
        storage.take(tensor.access.box[:2], tensor.access.span)
