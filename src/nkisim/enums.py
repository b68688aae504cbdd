"""The enumerations of `nki.isa` and `nki.language`, with NKI's own names and values."""

from __future__ import annotations

from enum import Enum


class engine(Enum):
    """Engines of a NeuronCore that an instruction may be sent to."""

    unknown = 0
    tensor = 1
    scalar = 2
    gpsimd = 3
    dma = 4
    vector = 5
    sync = 6


class reduce_cmd(Enum):
    """What an instruction does with an engine's accumulator registers."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


class dge_mode(Enum):
    """Who makes the DMA descriptors: unknown, GpSimd's software, the hardware, nobody."""

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class oob_mode(Enum):
    """What a dynamic DMA does with an index outside the tensor."""

    error = 0
    skip = 1


class matmul_perf_mode(Enum):
    """Performance mode of `nc_matmul`."""

    none = "none"
    double_row = "double_row"


class nc_version(Enum):
    """NeuronCore generation: trn1/inf2, trn2, trn3."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


class dma_engine(Enum):
    """What moves the data of a `sendrecv`."""

    dma = 1
    gpsimd_dma = 2


class MemoryRegion(Enum):
    """Where a tensor lives."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"


# An Enum member is found by attribute on its class, which costs a call; these are plain globals.
SBUF = MemoryRegion.sbuf
PSUM = MemoryRegion.psum
PRIVATE_HBM = MemoryRegion.private_hbm
SHARED_HBM = MemoryRegion.shared_hbm
ON_CHIP = frozenset((SBUF, PSUM))
