"""One simulated core while its program runs: where tensors are allocated and instructions
issued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from . import dtypes, running
from .enums import ON_CHIP, PSUM, SBUF, SHARED_HBM, MemoryRegion
from .enums import engine as Engine
from .errors import NkiValidationError
from .memory import Allocation, Arena, Storage, own_storage
from .record import NkiInstruction, Record
from .tensor import NkiTensor, dense

if TYPE_CHECKING:
    from .program import Program

_QUIET = NkiInstruction(None)


class Core:
    """The state of one core: memories, accumulator registers, the records of what ran.

    `program_id` and `programs` are the kernel's place in its launch (LNC); `rank` its device in a
    multi-rank run.
    """

    def __init__(self, program: Program, index: int, program_id: int, programs: int, rank: int):
        chip = program.chip
        self.program = program
        self.chip = chip
        self.index = index
        self.program_id = program_id
        self.programs = programs
        self.rank = rank
        self.checks = program.options.checks != "off"
        self.records: list[Record] | None = [] if program.options.observe else None
        self.arenas = {
            SBUF: Arena(SBUF, chip.partitions, chip.sbuf_partition_bytes),
            PSUM: Arena(PSUM, chip.partitions, chip.psum_partition_bytes),
        }
        # Engine registers that persist between instructions; each engine's file owns its keys.
        self.registers: dict[str, np.ndarray] = {}
        self.loop: tuple[int, ...] = ()
        self.loops_seen = 0
        self.no_reorder = 0
        self.shared_seen = 0

    # -- tensors --------------------------------------------------------------------------------

    def allocate(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        buffer: MemoryRegion,
        name: str,
        address: tuple[int, int] | None = None,
    ) -> NkiTensor:
        """A new tensor, uninitialised. The k-th shared HBM tensor is the same on all programs."""
        shape = self._shape(shape, buffer)
        if buffer is SHARED_HBM:
            return self.program.shared_tensor(self, shape, dtypes.canonical(dtype), name)
        allocation = self.describe(shape, dtype, buffer, name, address)
        tracked = self.checks or buffer is PSUM
        if address is not None and allocation.on_chip:
            self._on_a_bank(allocation)
            return dense(self.arenas[buffer].place(allocation, tracked))
        self._fits(allocation)
        return dense(own_storage(allocation, tracked))

    def describe(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        buffer: MemoryRegion,
        name: str,
        address: tuple[int, int] | None = None,
    ) -> Allocation:
        """The allocation's record, numbered and known to the program."""
        dtype = dtypes.canonical(dtype)
        on_chip = buffer in ON_CHIP
        row = dtypes.ITEMSIZE[dtype]
        for size in shape[1:] if on_chip else shape:
            row *= size
        allocations = self.program.allocations
        allocation = Allocation(
            index=len(allocations),
            name=name,
            shape=shape,
            dtype=dtype,
            buffer=buffer,
            site=running.site(),
            core=self.index,
            row_bytes=row,
            partitions=shape[0] if on_chip else 1,
            address=address,
            explicit=address is not None,
            last_row_bytes=shape[-1] * dtypes.ITEMSIZE[dtype],
        )
        allocations.append(allocation)
        return allocation

    def _shape(self, shape: Any, buffer: MemoryRegion) -> tuple[int, ...]:
        if not isinstance(buffer, MemoryRegion):
            raise NkiValidationError(
                f"{running.site()}: ndarray: buffer: must be nl.sbuf, nl.psum, nl.private_hbm or"
                f" nl.shared_hbm, got {buffer!r}"
            )
        if isinstance(shape, int):
            shape = (shape,)
        shape = tuple([size.__index__() for size in shape])
        if shape == (1,) and buffer in ON_CHIP:
            shape = (1, 1)  # published kernels name a single element so
        if not shape or min(shape) < 1 or (buffer in ON_CHIP and len(shape) < 2):
            raise NkiValidationError(
                f"{running.site()}: ndarray: shape: {shape} on {buffer.value}: every size must be"
                " at least 1, and on-chip tensors have two or more dimensions (partitions first)"
            )
        if buffer in ON_CHIP and shape[0] > self.chip.partitions:
            raise NkiValidationError(
                f"{running.site()}: ndarray: shape: {shape} has {shape[0]} partitions;"
                f" {buffer.value} has {self.chip.partitions}; tile dimension 0"
            )
        return shape

    def _on_a_bank(self, allocation: Allocation) -> None:
        """An explicit address in PSUM is that of a bank (migration guide, "allocation API")."""
        assert allocation.address is not None
        offset, bank = allocation.address[1], self.chip.psum_bank_bytes
        if allocation.buffer is PSUM and offset % bank:
            raise NkiValidationError(
                f"{allocation.site}: ndarray: address: {allocation} at byte {offset} of PSUM; a"
                f" tensor starts where a bank does; use a multiple of {bank}"
            )

    def _fits(self, allocation: Allocation) -> None:
        """A tensor that no placement could hold is refused at its own line."""
        if not allocation.on_chip:
            return
        room = self.arenas[allocation.buffer].partition_bytes
        if allocation.row_bytes > room:
            raise NkiValidationError(
                f"{allocation.site}: ndarray: {allocation} needs {allocation.row_bytes} bytes a"
                f" partition; {allocation.buffer.value} has {room}; tile its free dimensions"
            )

    # -- instructions ---------------------------------------------------------------------------

    def issue(
        self,
        op: str,
        engine: Engine,
        reads: tuple[NkiTensor, ...],
        writes: tuple[NkiTensor, ...],
        name: str | None = None,
        /,
        **work: Any,
    ) -> NkiInstruction:
        """Note an executed instruction for the observers; its semantics are done."""
        records = self.records
        if records is None:
            return _QUIET
        if self.no_reorder:
            work["ordered"] = True
        record = Record(
            len(records),
            op,
            engine,
            self.index,
            running.site(),
            tuple([t._access or t.access for t in reads]),
            tuple([t._access or t.access for t in writes]),
            work,
            name,
            self.loop,
        )
        records.append(record)
        return NkiInstruction(record)

    @contextmanager
    def device_loop(self) -> Iterator[None]:
        """Instructions issued inside belong to a new device loop."""
        self.loops_seen += 1
        self.loop = (*self.loop, self.loops_seen)
        try:
            yield
        finally:
            self.loop = self.loop[:-1]


def storage_of_input(allocation: Allocation, data: np.ndarray) -> Storage:
    """Storage that holds a copy of a kernel argument; wholly initialised."""
    storage = Storage(allocation, np.array(data, order="C").view(np.uint8).reshape(-1), 0, 0, False)
    storage.pitch = allocation.row_bytes
    return storage
