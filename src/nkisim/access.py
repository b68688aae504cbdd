"""What observers keep of an operand (`Access`), and an index known only at run time (`Dynamic`)."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tensor import NkiTensor


class Access:
    """The place that an operand touches: a box in its allocation, and the view's layout.

    The box is partitions p0..p1, rows r0..r1 and bytes c0..c1 within a row, where a row is the last
    dimension of the allocation. It covers the touched elements and may cover more.
    """

    __slots__ = ("allocation", "box", "dtype", "itemsize", "offset", "row", "shape", "strides")

    def __init__(self, tensor: NkiTensor):
        allocation = tensor.storage.allocation
        self.allocation = allocation
        self.shape = tensor.shape
        self.strides = tensor.strides
        self.offset = tensor.offset
        self.dtype = tensor.dtype
        self.itemsize = tensor.itemsize
        row, item = allocation.last_row_bytes, tensor.itemsize
        self.row = row if row > item else item
        self.box = self._box(self.row // item)

    def _box(self, length: int) -> tuple[int, int, int, int, int, int]:
        """`length`: elements of a row."""
        shape, strides, start, item = self.shape, self.strides, self.offset, self.itemsize
        allocation = self.allocation
        p0 = 0
        p1 = 1
        if allocation.on_chip:
            p0, start = divmod(start, allocation.row_bytes // item)
            p1 = p0 + shape[0]
            shape, strides = shape[1:], strides[1:]
        row, column = divmod(start, length)
        rows = columns = 0
        for size, step in zip(shape, strides):  # noqa: B905  (this is hot; they are equally long)
            if size == 1:
                continue
            if step == 1 and length > 1:
                columns += size - 1
            elif step % length:
                columns += (size - 1) * step
            else:
                rows += (size - 1) * (step // length)
        if column + columns >= length:
            last = start + rows * length + columns
            return p0, p1, row, last // length + 1, 0, self.row
        return p0, p1, row, row + rows + 1, column * item, (column + columns + 1) * item

    @property
    def per_partition(self) -> int:
        """Elements per partition (on chip)."""
        return prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize

    @property
    def span(self) -> tuple[int, int]:
        """First and last byte (exclusive) within the partition, or within the tensor (HBM)."""
        _, _, r0, r1, c0, c1 = self.box
        return r0 * self.row + c0, (r1 - 1) * self.row + c1


class Dynamic:
    """An index known only at run time: one register or element, or one index a partition."""

    __slots__ = ("dim", "index", "limit", "stride", "vector")

    def __init__(self, index: Any, stride: int, limit: int, dim: int, vector: bool):
        self.index = index
        self.stride = stride
        self.limit = limit
        self.dim = dim
        self.vector = vector
