"""The chips: sizes, clocks and costs, one frozen record each. Units stand in the names.

Sources are named by the keys of docs/nkisim.md ("A2": trainium_inferentia2_arch.rst, "A3":
trainium2_arch.rst, "TS": nki.language.tile_size.rst, ...). "M" after a key: read from a profiler
screenshot of that page, a single instruction or transfer. A number without a public source is
marked "assumed". No number was fitted to a kernel's total.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineTiming:
    """Vector, Scalar, GpSimd or Sync. An instruction of c data cycles holds its engine for
    max(min_cycles, c) cycles + gap_ns; its result is ready fixed_ns after its last data cycle."""

    ghz: float
    fixed_ns: float
    gap_ns: float
    min_cycles: int = 64  # MIN_II in the older ISA stubs


@dataclass(frozen=True)
class TensorTiming:
    """Tensor engine: a stationary load, hidden behind the multiply before it if it comes in time,
    then one moving column a cycle."""

    ghz: float
    fixed_ns: float  # from the last column to the result in PSUM
    load_ns: float  # of a stationary load, beyond its cycles
    load_speedup: int = 4  # A2: up to 4 columns a cycle
    min_cycles: int = 64  # PERF: MM_INIT_LATENCY
    float32_cycles: int = 4  # A2: cycles a column
    float32_transpose_cycles: int = 4
    ramp_ns: float = 0.0  # time and window of the clock ramp; 0: none
    cold_speed: float = 1.0  # clock while it ramps, of the full one


@dataclass(frozen=True)
class Trigger:
    """One way to start a DMA: its sequencer is held for issue_ns; the first byte moves start_ns
    after the trigger began."""

    issue_ns: float
    start_ns: float


@dataclass(frozen=True)
class DmaTiming:
    """The 16 DMA engines of a core."""

    bytes_per_ns: float  # of one engine
    static: Trigger  # descriptors prepared in HBM
    software: Trigger  # descriptors written by GpSimd
    hardware: Trigger | None  # a descriptor generation block, behind Sync or Scalar
    engines: int = 16  # DOV
    partitions_per_engine: int = 8  # DOV
    row_ns: float = 7.0  # DOV M, PERF M: least time of one contiguous piece (a 4-byte write)
    stagger_ns: float = 20.0  # DOV M: 16 engines start within about 300 ns
    finish_ns: float = 300.0  # DOV M: 270 (software) to 300 (static) from last byte to the waiter
    descriptor_ns: float = 4.7  # assumed: each row beyond 128, as 603 ns / 128
    compute_slowdown: float = 2.0  # A3: about half the throughput of a copy
    transpose_hbm: float = 0.9  # A3: of the copy throughput, at best
    transpose_sbuf: float = 0.5  # A3: same, from SBUF


@dataclass(frozen=True)
class SyncTiming:
    """What waiting, branching and talking cost."""

    semaphore_ns: float  # from an engine's result to another engine's start
    register_ns: float = 50.0  # assumed: about 64 cycles of a sequencer
    register_memory_ns: float = 1000.0  # assumed: a register read from or written to memory
    branch_ns: float = 100.0  # assumed
    barrier_ns: float = 1000.0  # assumed: a semaphore write into the other core, and its wait
    gpsimd_bytes_per_ns: float = 153.0  # A3: GpSimd's own DMA, each way
    gpsimd_start_ns: float = 500.0  # assumed
    hop_ns: float = 1500.0  # collectives docs: 1 to 2 us a hop within a node
    link_bytes_per_ns: float = (
        100.0  # assumed: one direction of a chip's links, as one core sees it
    )


@dataclass(frozen=True)
class Chip:
    """One NeuronCore generation, as one core sees it."""

    name: str
    generation: int
    partitions: int  # A2, A3
    sbuf_partition_bytes: int  # usable; 16 KiB a partition are kept by the compiler
    psum_partition_bytes: int  # A2, A3
    psum_bank_bytes: int  # A2, TS
    tensor: TensorTiming
    vector: EngineTiming
    scalar: EngineTiming
    gpsimd: EngineTiming
    dma: DmaTiming
    sync: SyncTiming
    table_load_ns: float  # Scalar's activation table
    stack_bytes_per_ns: float  # the HBM stack that two cores share
    tflops: float  # A2, A3: dense bfloat16; the peak that MFU counts against


TRN1 = Chip(
    name="trn1",
    generation=2,
    partitions=128,
    sbuf_partition_bytes=176 * 1024,
    psum_partition_bytes=16 * 1024,
    psum_bank_bytes=2048,
    # A2: 2.8 GHz. PERF M: a bfloat16 multiply of 128 columns takes 188 to 219 ns, a stationary
    # load of one column 67 ns.
    tensor=TensorTiming(ghz=2.8, fixed_ns=158, load_ns=67),
    # A2: 1.12 GHz, N cycles (one input) or 2N. PERF M: N = 8192, two inputs: 14,968 ns.
    vector=EngineTiming(ghz=1.12, fixed_ns=340, gap_ns=0),
    # A2: 1.4 GHz. PERF M: one element takes 159 ns.
    scalar=EngineTiming(ghz=1.4, fixed_ns=158, gap_ns=0),
    gpsimd=EngineTiming(ghz=1.4, fixed_ns=107, gap_ns=107),  # older stubs: 150 cycles + data
    dma=DmaTiming(
        bytes_per_ns=17.0,  # DBW
        static=Trigger(issue_ns=154, start_ns=1000),  # assumed as on trn2
        software=Trigger(issue_ns=603, start_ns=1535),  # assumed as on trn2
        hardware=None,  # A3: new on trn2
    ),
    sync=SyncTiming(semaphore_ns=30),  # PERF M: 189 ns between starts of 159 ns instructions
    table_load_ns=368,  # PROF M, another profile
    stack_bytes_per_ns=410,  # PERF M: the profiler's denominator; 820 GB/s for two cores
    tflops=92,
)

TRN2 = Chip(
    name="trn2",
    generation=3,
    partitions=128,
    sbuf_partition_bytes=208 * 1024,
    psum_partition_bytes=16 * 1024,
    psum_bank_bytes=2048,
    # A3: 2.4 GHz. KOPT M: float32 128x128x512 takes 429 ns a pass and 2 passes, result 170 ns after
    # the pass (600 - 429); its stationary load 197 ns, 53 of them 128 cycles. A3: a float32
    # transpose is 2x faster than a multiply. Neuron Explorer: half clock for about 3 us after a
    # 3 us window of less than 50 % use.
    tensor=TensorTiming(
        ghz=2.4, fixed_ns=170, load_ns=144, float32_transpose_cycles=2, ramp_ns=3000, cold_speed=0.5
    ),
    # A3: 0.96 GHz. KOPT M: PSUM to SBUF copy of 512 floats 701 ns; 70 ns between instructions.
    vector=EngineTiming(ghz=0.96, fixed_ns=165, gap_ns=70),
    # A3: 1.2 GHz. DOV M: exp of 128 columns 400 ns, of 4096 3,709 ns. Gap assumed as on Vector.
    scalar=EngineTiming(ghz=1.2, fixed_ns=293, gap_ns=70),
    gpsimd=EngineTiming(ghz=1.2, fixed_ns=125, gap_ns=125),  # older stubs: 150 cycles + data
    dma=DmaTiming(
        bytes_per_ns=23.0,  # DBW, DOV M
        static=Trigger(issue_ns=154, start_ns=1000),  # DOV M: 86 + 68 ns, 1.0 us to data
        # KOPT M: a trigger each 603 ns; DOV M: 870 ns from wait to trigger, then 590 (store) to
        # 740 ns (load) to the first byte.
        software=Trigger(issue_ns=603, start_ns=1535),
        # DGE: about 600 ns; then as long to the first byte as after the other triggers (DOV M).
        hardware=Trigger(issue_ns=600, start_ns=1280),
    ),
    sync=SyncTiming(semaphore_ns=20),  # DOV M, KOPT M: 7 to 31 ns
    table_load_ns=1286,  # DOV M
    stack_bytes_per_ns=716,  # KOPT M: the profiler's denominator, one stack
    tflops=78.6,
)

CHIPS = {
    "trn1": TRN1,
    "inf2": TRN1,
    "gen2": TRN1,
    "trn2": TRN2,
    "gen3": TRN2,
}
