"""Memory: what is allocated (`Allocation`), its bytes (`Storage`), and what is known of each
element.

A storage keeps one state an element ("shadow"): 0 never written, 1 written, 2 written by a matmul
(PSUM accumulation may continue only there). `shadow is None` means that every element is written.
Tensors with an explicit address share the bytes of one array a memory (`Arena`); writing one of
them takes the overlapped elements of the others away.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from . import dtypes
from .enums import PSUM, SBUF, MemoryRegion
from .errors import NkiValidationError

WRITTEN, BY_MATMUL = 1, 2
_GARBAGE = 0xFF  # NaN in every float type, -1 in the signed integers


class Site(NamedTuple):
    """A line of the kernel."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(eq=False, slots=True)
class Allocation:
    """One tensor's place, without its bytes. Observers keep these, so a run's records stay small.

    `row_bytes` is the size in one partition (on chip) or of the whole tensor (HBM). `address` is
    (partition, byte offset in the partition); None until the tensor is placed.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    buffer: MemoryRegion
    site: Site
    core: int
    row_bytes: int
    partitions: int
    address: tuple[int, int] | None = None
    explicit: bool = False
    kind: str = "temporary"  # or "input", "output", "constant"
    last_row_bytes: int = 0  # of the last dimension
    on_chip: bool = field(init=False)

    def __post_init__(self) -> None:
        self.on_chip = self.buffer is SBUF or self.buffer is PSUM

    @property
    def nbytes(self) -> int:
        return self.row_bytes * self.partitions

    def __str__(self) -> str:
        return f"{self.name or 'tensor'} {self.buffer.value} {self.dtype}{list(self.shape)}"


class Storage:
    """The bytes of one allocation, and the state of each element.

    `pitch` is the distance in bytes between partitions (on chip), `base` the first byte's place.
    """

    __slots__ = ("__weakref__", "allocation", "base", "by_matmul", "data", "granule",
                 "neighbours", "pitch", "shadow", "taken_by", "written")  # fmt: skip

    def __init__(
        self, allocation: Allocation, data: np.ndarray, pitch: int, base: int, tracked: bool
    ):
        self.allocation = allocation
        self.data = data
        self.pitch = pitch
        self.base = base
        self.granule = dtypes.ITEMSIZE[allocation.dtype]
        elements = allocation.nbytes // self.granule
        self.shadow: np.ndarray | None = np.zeros(elements, np.uint8) if tracked else None
        self.by_matmul = False
        self.written = False
        # Weak, so that a tensor that the kernel has dropped is dropped here too.
        self.neighbours: list[weakref.ref[Storage]] = []
        self.taken_by: Allocation | None = None

    def refine(self, itemsize: int) -> None:
        """Track smaller elements: a view reinterprets the storage as a narrower dtype."""
        if self.shadow is not None and itemsize < self.granule:
            self.shadow = np.repeat(self.shadow, self.granule // itemsize)
        self.granule = min(itemsize, self.granule)

    def state(self, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, itemsize: int):
        """The shadow seen through a view (strides and offset in elements of `itemsize` bytes)."""
        if itemsize < self.granule:
            self.refine(itemsize)
        ratio = itemsize // self.granule
        steps = tuple(step * ratio for step in strides)
        if ratio > 1:
            shape, steps = (*shape, ratio), (*steps, 1)
        return np.ndarray(shape, np.uint8, self.shadow, offset * ratio, steps)

    def state_of_all(self) -> None:
        """Make the shadow explicit again, for a storage that was wholly written."""
        if self.shadow is None:
            state = BY_MATMUL if self.by_matmul else WRITTEN
            self.shadow = np.full(self.allocation.nbytes // self.granule, state, np.uint8)

    def take(self, partitions: tuple[int, int], span: tuple[int, int]) -> None:
        """These partitions and bytes (both within this storage) are being written: what they cover
        of the neighbours is theirs no longer, and reading it there is a use after free."""
        address = self.allocation.address
        assert address is not None
        first, last = partitions[0] + address[0], partitions[1] + address[0]
        low, high = span[0] + address[1], span[1] + address[1]
        for reference in self.neighbours:
            other = reference()
            if other is not None:
                other.lose(self.allocation, (first, last, low, high))

    def lose(self, taker: Allocation, area: tuple[int, int, int, int]) -> None:
        """`area`: first and last partition, first and last byte, of the whole memory."""
        mine = self.allocation
        assert mine.address is not None
        first, last = area[0] - mine.address[0], area[1] - mine.address[0]
        low, high = area[2] - mine.address[1], area[3] - mine.address[1]
        if last <= 0 or first >= mine.partitions or high <= 0 or low >= mine.row_bytes:
            return
        self.state_of_all()
        assert self.shadow is not None
        rows = self.shadow.reshape(mine.partitions, -1)
        columns = slice(max(low, 0) // self.granule, -(-high // self.granule))
        rows[max(first, 0) : last, columns] = 0
        self.taken_by = taker


@dataclass(eq=False)
class Arena:
    """One on-chip memory of one core: real bytes, used by the tensors with an explicit address."""

    region: MemoryRegion
    partitions: int
    partition_bytes: int
    storages: list[weakref.ref[Storage]] = field(default_factory=list)
    data: np.ndarray | None = None

    def place(self, allocation: Allocation, tracked: bool) -> Storage:
        """Storage at the allocation's own address; raises if it leaves the memory."""
        assert allocation.address is not None
        partition, offset = allocation.address
        if partition < 0 or partition + allocation.partitions > self.partitions:
            raise NkiValidationError(
                f"{allocation.site}: ndarray: address: {allocation} would use partitions"
                f" {partition} to {partition + allocation.partitions - 1}; {self.region.value} has"
                f" {self.partitions}"
            )
        if offset < 0 or offset + allocation.row_bytes > self.partition_bytes:
            raise NkiValidationError(
                f"{allocation.site}: ndarray: address: {allocation} would use bytes {offset} to"
                f" {offset + allocation.row_bytes - 1} of each partition; {self.region.value} has"
                f" {self.partition_bytes}"
            )
        if self.data is None:
            self.data = np.full(self.partitions * self.partition_bytes, _GARBAGE, np.uint8)
        base = partition * self.partition_bytes + offset
        storage = Storage(allocation, self.data, self.partition_bytes, base, tracked)
        if tracked:
            self._meet(storage)
        return storage

    def _meet(self, storage: Storage) -> None:
        """Neighbours are all storages, older or not, that share a byte with this one."""
        me = weakref.ref(storage)
        self.storages = [reference for reference in self.storages if reference() is not None]
        for reference in self.storages:
            other = reference()
            if other is not None and overlap(storage.allocation, other.allocation):
                storage.neighbours.append(reference)
                other.neighbours.append(me)
        self.storages.append(me)


def overlap(a: Allocation, b: Allocation) -> bool:
    """Whether two placed allocations of one memory share a byte."""
    assert a.address is not None and b.address is not None
    return (
        a.address[0] < b.address[0] + b.partitions
        and b.address[0] < a.address[0] + a.partitions
        and a.address[1] < b.address[1] + b.row_bytes
        and b.address[1] < a.address[1] + a.row_bytes
    )


def own_storage(allocation: Allocation, tracked: bool) -> Storage:
    """Storage with bytes of its own, for a tensor whose place is chosen after the run."""
    data = np.empty(allocation.nbytes, np.uint8)
    if tracked:
        data.fill(_GARBAGE)
    return Storage(allocation, data, allocation.row_bytes, 0, tracked)
