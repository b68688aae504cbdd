"""`NkiTensor`: a view of a storage, and what an instruction may do with it.

Shapes, strides and offsets are in elements of the view's dtype, counted as if the tensor were one
dense row-major array (NKI's convention: on chip, the partition stride is the number of elements of
one partition). `array` turns them into a NumPy view of the bytes; `access` into what observers
keep.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from . import dtypes, indexing, running, views
from .access import Access, Dynamic
from .enums import MemoryRegion
from .errors import NkiValidationError
from .indexing import index
from .memory import Storage
from .registers import VirtualRegister


class NKIObject:
    """Base class of NKI's configuration objects; takes any keyword as an attribute."""

    def __init__(self, **kwargs: Any) -> None:
        for name, value in kwargs.items():
            setattr(self, name, value)


class NkiTensor(NKIObject):
    """A tensor of NKI: shape, dtype and a place in SBUF, PSUM or HBM. Views share the storage."""

    __slots__ = (
        "_access",
        "_array",
        "_legal",
        "dtype",
        "dynamic",
        "itemsize",
        "offset",
        "shape",
        "storage",
        "strides",
    )

    def __init__(
        self,
        storage: Storage,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        offset: int,
        dtype: str,
        dynamic: Dynamic | None = None,
    ):
        self.storage = storage
        self.shape = shape
        self.strides = strides
        self.offset = offset
        self.dtype = dtype
        self.itemsize = dtypes.ITEMSIZE[dtype]
        self.dynamic = dynamic
        self._array: np.ndarray | None = None
        self._access: Access | None = None
        self._legal = False

    # -- what a kernel may ask ------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.storage.allocation.name

    @property
    def buffer(self) -> MemoryRegion:
        return self.storage.allocation.buffer

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def on_chip(self) -> bool:
        return self.storage.allocation.on_chip

    def __repr__(self) -> str:
        name = self.name or "tensor"
        return f"<{name}: {self.buffer.value} {self.dtype}{list(self.shape)}>"

    def __bool__(self) -> bool:
        """True: a tensor has no value while the kernel is built, so its truth compares nothing."""
        running.current().program.note(f"the truth of {self!r} is always True; it compares nothing")
        return True

    def __len__(self) -> int:
        return self.shape[0]

    def is_contiguous(self) -> bool:
        """Whether the view is dense and row-major; on chip, within each partition."""
        first = 1 if self.on_chip else 0
        return views.is_dense(self.shape[first:], self.strides[first:])

    def get_pattern(self) -> list[list[int]]:
        """[[stride, count], ...], outermost first."""
        return [[step, size] for step, size in zip(self.strides, self.shape, strict=True)]

    def is_indirect(self) -> bool:
        return self.dynamic is not None

    # -- what the simulator asks ----------------------------------------------------------------

    @property
    def array(self) -> np.ndarray:
        """The elements as a NumPy view (its dtype from `dtypes.NUMPY`); the index must be
        static."""
        if self._array is None:
            storage, item, strides = self.storage, self.itemsize, self.strides
            row = storage.allocation.row_bytes
            if len(strides) == 2:
                steps = (strides[0] * item, strides[1] * item)
            else:
                steps = tuple([step * item for step in strides])
            if storage.pitch == row:
                place = storage.base + self.offset * item
            else:
                partition, rest = divmod(self.offset * item, row)
                place = storage.base + partition * storage.pitch + rest
                steps = (storage.pitch, *steps[1:])
            dtype = dtypes.NUMPY[self.dtype]
            self._array = np.ndarray(self.shape, dtype, storage.data, place, steps)
        return self._array

    @property
    def access(self) -> Access:
        if self._access is None:
            self._access = Access(self)
        return self._access

    @property
    def state(self) -> np.ndarray:
        """The shadow of the elements (see `memory`); only where the storage has one."""
        return self.storage.state(self.shape, self.strides, self.offset, self.itemsize)

    def refusal(self, operation: str, rule: str, fix: str) -> NkiValidationError:
        return NkiValidationError(f"{running.site()}: {operation} of {self!r}: {rule}; use {fix}")

    # -- views ----------------------------------------------------------------------------------

    def _view(self, layout: views.Layout, offset: int | None = None) -> NkiTensor:
        place = self.offset if offset is None else offset
        return NkiTensor(self.storage, *layout, place, self.dtype, self.dynamic)

    def _derive(self, operation: str, function: Any, *arguments: Any) -> NkiTensor:
        """A view whose layout `function` computes; its ValueError names the broken rule."""
        try:
            return self._view(function(self.shape, self.strides, *arguments))
        except ValueError as error:
            raise self.refusal(operation, str(error), "a legal view or a copy") from None

    def _dim(self, operation: str, dim: int, free: bool) -> int:
        """The dimension as an index >= 0; `free`: not the partition (or gathered) dimension."""
        count = len(self.shape)
        if not -count <= dim < count:
            raise self.refusal(operation, f"dim {dim} does not exist", f"0 to {count - 1}")
        dim %= count
        if free and dim == 0 and self.first_is_fixed:
            raise self.refusal(operation, "the partition dimension stays as it is", "dim >= 1")
        return dim

    @property
    def first_is_fixed(self) -> bool:
        """Dimension 0 is the partition dimension, or one index a partition chooses its rows."""
        return self.on_chip or (self.dynamic is not None and self.dynamic.vector)

    def __getitem__(self, key: Any) -> NkiTensor:
        return index(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        """`t[...] = tile` copies: by an engine on chip, by DMA where HBM takes part."""
        from . import isa

        target = index(self, key)
        if not isinstance(value, NkiTensor):
            raise target.refusal(
                "assignment", f"the value is {value!r}, not a tensor", "nisa.memset"
            )
        copy = isa.tensor_copy if target.on_chip and value.on_chip else isa.dma_copy
        copy(target, value)

    def slice(self, dim: int, start: int, end: int, step: int = 1) -> NkiTensor:
        dim = self._dim("slice", dim, free=False)
        if not (0 <= start < end <= self.shape[dim] and step >= 1):
            raise self.refusal(
                "slice",
                f"needs 0 <= start < end <= {self.shape[dim]} and step >= 1 on dim {dim}, got"
                f" start={start}, end={end}, step={step}",
                "bounds inside the dimension",
            )
        if dim == 0 and self.on_chip and step != 1:
            raise self.refusal("slice", "partitions have no stride", "step 1 on dim 0")
        indexing.refuse_gathered(self, "slice", dim)
        sizes, steps = list(self.shape), list(self.strides)
        offset = self.offset + start * steps[dim]
        sizes[dim] = -(-(end - start) // step)
        steps[dim] *= step
        return self._view((tuple(sizes), tuple(steps)), offset)

    def select(self, dim: int, index: Any) -> NkiTensor:
        dim = self._dim("select", dim, free=False)
        if isinstance(index, (NkiTensor, VirtualRegister)):
            return indexing.select_dynamic(self, dim, index)
        index = indexing.whole_number(self, "select", index)
        if not 0 <= index < self.shape[dim]:
            raise self.refusal(
                "select", f"index {index} is outside dim {dim} of {self.shape[dim]}", "one inside"
            )
        indexing.refuse_gathered(self, "select", dim)
        offset = self.offset + index * self.strides[dim]
        sizes = self.shape[:dim] + self.shape[dim + 1 :]
        steps = self.strides[:dim] + self.strides[dim + 1 :]
        if self.on_chip and dim == 0:
            sizes, steps = (1,) + self.shape[1:], self.strides
        return self._view((sizes, steps), offset)

    def vector_select(self, dim: int, vector_offset: NkiTensor) -> NkiTensor:
        return indexing.select_vector(self, dim, vector_offset)

    def permute(self, dims: tuple[int, ...]) -> NkiTensor:
        order = tuple(dims)
        if self.first_is_fixed and order[:1] != (0,):
            raise self.refusal("permute", f"dims {order} move the partition dimension", "dims[0]=0")
        return self._derive("permute", views.permute, order)

    def broadcast(self, dim: int, size: int) -> NkiTensor:
        dim = self._dim("broadcast", dim, free=True)
        if self.shape[dim] != 1:
            raise self.refusal(
                "broadcast", f"dim {dim} has size {self.shape[dim]}, not 1", "size 1"
            )
        sizes = self.shape[:dim] + (size,) + self.shape[dim + 1 :]
        return self._view((sizes, self.strides[:dim] + (0,) + self.strides[dim + 1 :]))

    def expand_dim(self, dim: int) -> NkiTensor:
        dim = dim % (len(self.shape) + 1)
        if dim == 0 and self.first_is_fixed:
            raise self.refusal("expand_dim", "the partition dimension stays first", "dim >= 1")
        sizes = self.shape[:dim] + (1,) + self.shape[dim:]
        return self._view((sizes, self.strides[:dim] + (0,) + self.strides[dim:]))

    def squeeze_dim(self, dim: int) -> NkiTensor:
        dim = self._dim("squeeze_dim", dim, free=True)
        if self.shape[dim] != 1:
            raise self.refusal("squeeze_dim", f"dim {dim} has size {self.shape[dim]}", "size 1")
        sizes = self.shape[:dim] + self.shape[dim + 1 :]
        return self._view((sizes, self.strides[:dim] + self.strides[dim + 1 :]))

    def reshape_dim(self, dim: int, shape: tuple[int, ...]) -> NkiTensor:
        trivial = len(shape) == 1
        dim = self._dim("reshape_dim", dim, free=not trivial)
        return self._derive("reshape_dim", views.split, dim, tuple(shape))

    def flatten_dims(self, start_dim: int, end_dim: int) -> NkiTensor:
        first = self._dim("flatten_dims", start_dim, free=True)
        last = self._dim("flatten_dims", end_dim, free=True)
        return self._derive("flatten_dims", views.merge, first, last)

    def reshape(self, shape: tuple[int, ...]) -> NkiTensor:
        shape = tuple(shape)
        if not self.first_is_fixed:
            return self._derive("reshape", views.reshape, shape)
        if shape[:1] != self.shape[:1]:
            raise self.refusal(
                "reshape", f"{shape} changes the partition dimension", "shape[0] kept"
            )

        def free_only(old: tuple, steps: tuple, new: tuple) -> views.Layout:
            sizes, inner = views.reshape(old[1:], steps[1:], new[1:])
            return old[:1] + sizes, steps[:1] + inner

        return self._derive("reshape", free_only, shape)

    def rearrange(
        self, src_pattern: tuple, dst_pattern: tuple, fixed_sizes: dict[str, int] | None = None
    ) -> NkiTensor:
        if self.first_is_fixed and src_pattern[:1] != dst_pattern[:1]:
            raise self.refusal("rearrange", "the partition dimension moves", "it first, unchanged")
        arguments = (tuple(src_pattern), tuple(dst_pattern), dict(fixed_sizes or {}))
        return self._derive("rearrange", views.rearranged, *arguments)

    def ap(
        self,
        pattern: list[list[int]],
        offset: int | None = None,
        scalar_offset: Any = None,
        vector_offset: NkiTensor | None = None,
        indirect_dim: int = 0,
        dtype: Any = None,
    ) -> NkiTensor:
        return indexing.access_pattern(
            self, pattern, offset, (scalar_offset, vector_offset, indirect_dim), dtype
        )

    def view(self, dtype: Any) -> NkiTensor:
        """The same bits as another dtype; the last dimension scales with the sizes."""
        return indexing.reinterpret(self, dtypes.canonical(dtype))

    reinterpret_cast = view

    def indirect(self, index: NkiTensor, num_elem: int | None = None) -> NkiTensor:
        raise self.refusal("indirect", "tensor indirection needs a NeuronCore-v4", "ap on gen3")


def dense(storage: Storage) -> NkiTensor:
    """The whole of a storage as a tensor."""
    allocation = storage.allocation
    shape = allocation.shape
    return NkiTensor(storage, shape, views.row_major(shape), 0, allocation.dtype)


class Shape(tuple):
    """The shape of a kernel argument: a tuple that also equals a list of the same sizes, as
    published kernels compare it."""

    def __eq__(self, other: object) -> bool:
        return (
            tuple.__eq__(self, tuple(other)) if isinstance(other, list) else super().__eq__(other)
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__
