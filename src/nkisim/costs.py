"""What each instruction costs, from its record and the chip's numbers (`chips`).

Formulas in cycles an element are those of the facts sheet's instruction tables: N is the largest
number of elements a partition of its operands, and an engine takes one a cycle unless said here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from .chips import Chip, DmaTiming, Trigger
from .enums import PSUM, SBUF
from .enums import dge_mode as DgeMode
from .enums import engine as Engine
from .record import Record
from .tensor import Access

TENSOR, VECTOR, SCALAR, GPSIMD, SYNC, SCALAR_DMA = range(6)
LANES = ("Tensor", "Vector", "Scalar", "GpSimd", "Sync", "Scalar DMA")

_LANE = {"tensor": TENSOR, "vector": VECTOR, "scalar": SCALAR, "gpsimd": GPSIMD, "sync": SYNC}
_SIXTEEN_BITS = frozenset(("bfloat16", "float16"))
_FLOAT32 = frozenset(("float32",))


class Cost(NamedTuple):
    """`hold_ns`: how long its engine is taken; `latency_ns`: from its start to its result;
    `lead_ns`: a part that may run before its turn: a stationary load, or an activation table (if
    `table` is not the one loaded last)."""

    lane: int
    hold_ns: float
    latency_ns: float
    lead_ns: float = 0.0
    table: str | None = None
    flops: float = 0.0


class Transfer(NamedTuple):
    """A DMA: who triggers it, the DMA engines it uses (first to last - 1), for how long each."""

    lane: int
    trigger: Trigger
    first: int
    last: int
    service_ns: float
    nbytes: int
    hbm: bool


def cost(record: Record, chip: Chip) -> Cost | Transfer:
    """The cost of one instruction (of a meeting: nothing but the lane that it holds)."""
    if "meeting" in record.work:
        return Cost(_LANE.get(record.engine.name, SYNC), 0.0, 0.0)
    if record.engine is Engine.dma and record.reads and record.writes:
        return transfer(record, chip)
    if record.op in ("nc_matmul", "nc_transpose") and record.engine is Engine.tensor:
        return _matmul(record, chip)
    lane = _LANE.get(record.engine.name, GPSIMD if record.op in _ON_GPSIMD else VECTOR)
    if lane == SYNC or record.engine is Engine.dma:
        return _sequencer(record, chip)
    return _elementwise(record, chip, lane)


# -- compute engines ------------------------------------------------------------------------------


def _matmul(record: Record, chip: Chip) -> Cost:
    """max(moving columns, 64, stationary columns / 4) cycles, 4 times that for float32. Tiles that
    use a part of the array run beside others: they hold that part of it (assumed)."""
    work, timing = record.work, chip.tensor
    transpose = record.op == "nc_transpose" or bool(work.get("transpose"))
    if record.op == "nc_transpose":
        moving, stationary = work["k"], work["n"]
    else:
        moving, stationary = work["n"], work["m"]
    cycles = 1
    if work.get("dtype") in _FLOAT32:
        cycles = timing.float32_transpose_cycles if transpose else timing.float32_cycles
        if work.get("onezero"):
            cycles = max(1, cycles // 2)
    load = stationary * cycles / timing.load_speedup
    data = max(moving * cycles, timing.min_cycles)
    hold = max(data, load)
    tile = work.get("tile")
    if tile and not transpose:
        hold = max(timing.min_cycles, hold * tile[2] * tile[3] / (128 * 128))
    flops = 0.0
    if not transpose:
        flops = 2.0 * work["k"] * work["m"] * work["n"] * (2 if work.get("double_row") else 1)
    return Cost(
        TENSOR, hold / timing.ghz, data / timing.ghz + timing.fixed_ns,
        timing.load_ns + load / timing.ghz, None, flops,
    )  # fmt: skip


def _elementwise(record: Record, chip: Chip, lane: int) -> Cost:
    """Vector, Scalar and GpSimd instructions."""
    timing = (chip.tensor, chip.vector, chip.scalar, chip.gpsimd)[lane]
    accesses = record.reads + record.writes
    count = max((access.per_partition for access in accesses), default=1)
    special = _SPECIAL.get(record.op)
    cycles = special(record, count) if special else float(count)
    if lane == VECTOR:
        cycles /= _speed_up(record, chip)
        if record.op == "reciprocal":
            cycles *= 8
    if any(_sparse(access) for access in accesses):
        cycles *= 2  # A2: an innermost stride above 16 bytes halves the bandwidth
    data = max(cycles, timing.min_cycles)
    latency = data / timing.ghz + timing.fixed_ns
    hold = data / timing.ghz + getattr(timing, "gap_ns", 0.0)
    table = record.work.get("op") if record.op.startswith("activation") else None
    lead = 0.0 if table is None or table in _IN_EVERY_TABLE else chip.table_load_ns
    return Cost(lane, hold, latency, lead, table if lead else None)


def _sparse(access: Access) -> bool:
    return (
        len(access.shape) > 1
        and access.shape[-1] > 1
        and access.strides[-1] * access.itemsize > 16
        and access.allocation.on_chip
    )


def _speed_up(record: Record, chip: Chip) -> float:
    """Vector's performance modes (A3): 16-bit copies within SBUF 4x, strided or with one side in
    PSUM 2x, others within SBUF 2x (KOPT M). gen2: only memset of 16 bits or 0, 2x (older stubs)."""
    if record.op not in ("tensor_copy", "tensor_scalar", "memset"):
        return 1.0
    tensors = [record.writes[0], *record.reads[:1]]
    short = all(access.dtype in _SIXTEEN_BITS for access in tensors)
    in_psum = sum(access.allocation.buffer is PSUM for access in tensors)
    if chip.generation < 3:
        return 2.0 if record.op == "memset" and (short or record.work.get("value") == 0) else 1.0
    if in_psum == 2 or (in_psum and not short):
        return 1.0
    dense = all(access.strides[-1] in (0, 1) for access in tensors)
    if short:
        return (2.0 if dense else 1.0) if in_psum else (4.0 if dense else 2.0)
    return 2.0 if record.op != "tensor_scalar" else 1.0


def _two_inputs(record: Record, count: int) -> float:
    """2N; N if one input is in PSUM, or all tensors are 16-bit in SBUF."""
    tensors = record.reads[:2] + record.writes
    if record.engine is Engine.gpsimd:
        return 2.0 * count
    in_psum = any(access.allocation.buffer is PSUM for access in record.reads[:2])
    if in_psum or all(access.dtype in _SIXTEEN_BITS for access in tensors):
        return float(count)
    return 2.0 * count


def _one_in_psum(record: Record, count: int) -> float:
    in_psum = any(access.allocation.buffer is PSUM for access in record.reads + record.writes)
    return float(count) if in_psum else 2.0 * count


def _reduction(record: Record, count: int) -> float:
    short = all(access.dtype in _SIXTEEN_BITS for access in record.reads[:1] + record.writes)
    return count / 2 if short and record.work.get("op") in ("add", "maximum", "max") else count


def _local_gather(record: Record, count: int) -> float:
    """n / C for n gathered elements, C = ((28 + 4k) / 4k) / min(4 / itemsize, k) for pieces of k
    elements (older stubs)."""
    each = record.work.get("each", 1)
    rate = ((28 + 4 * each) / (4 * each)) / min(4 / record.writes[0].itemsize, each)
    return record.writes[0].per_partition / rate


def _partition_reduce(record: Record, count: int) -> float:
    """Assumed: each GpSimd core adds its 16 partitions one after the other."""
    return 16.0 * count


_SPECIAL: dict[str, Callable[[Record, int], float]] = {
    "tensor_tensor": _two_inputs,
    "scalar_tensor_tensor": _two_inputs,
    "tensor_tensor_scan": lambda record, count: 2.0 * count,
    "select_reduce": lambda record, count: 2.0 * count,  # assumed
    "tensor_copy_predicated": _one_in_psum,
    "tensor_reduce": _reduction,
    "tensor_scalar_reduce": lambda record, count: count + 64.0,
    "bn_aggr": lambda record, count: 13.0 * count / 3,
    "activation_read": lambda record, count: 64.0,
    "local_gather": _local_gather,
    "tensor_partition_reduce": _partition_reduce,
    "topk": lambda record, count: 4.0 * count,
}
_ON_GPSIMD = frozenset(
    ("iota", "affine_select", "local_gather", "nc_n_gather", "tensor_partition_reduce", "topk",
     "nonzero_with_count", "sequence_bounds")
)  # fmt: skip
# Assumed: these need no table of their own; which functions share one is not published.
_IN_EVERY_TABLE = frozenset(("copy", "identity", "square", "relu", "abs", "sign", "bypass"))


# -- sequencers, meetings -------------------------------------------------------------------------


def _sequencer(record: Record, chip: Chip) -> Cost:
    """Registers, branches, and what cores do together (`schedule` adds the waiting)."""
    sync = chip.sync
    word = record.op
    hold = sync.register_ns
    if word in ("register_load", "register_store"):
        hold = sync.register_memory_ns
    elif word == "branch":
        hold = sync.branch_ns
    return Cost(SYNC, hold, hold)


def meeting_ns(record: Record, chip: Chip, ranks: int) -> float:
    """From the last participant's arrival to everyone's going on."""
    sync = chip.sync
    nbytes = sum(access.nbytes for access in record.reads)
    if record.op == "core_barrier":
        return sync.barrier_ns
    if record.op == "sendrecv":
        if record.work.get("trigger") is Engine.gpsimd:
            return sync.gpsimd_start_ns + nbytes / sync.gpsimd_bytes_per_ns
        dma = chip.dma
        speed = dma.engines * dma.bytes_per_ns
        return dma.static.start_ns + nbytes / speed + dma.finish_ns + sync.barrier_ns
    return max(1, ranks - 1) * (sync.hop_ns + nbytes / max(1, ranks) / sync.link_bytes_per_ns)


# -- DMA ------------------------------------------------------------------------------------------


def transfer(record: Record, chip: Chip) -> Transfer:
    """bytes / bandwidth on each DMA engine it uses, at least 7 ns a contiguous piece."""
    dma, work = chip.dma, record.work
    dst, src = record.writes[0], record.reads[0]
    gathered = work.get("indirect") == "vector"
    elements = min(prod(dst.shape), prod(src.shape))
    if gathered and src.allocation.on_chip:
        src_side, dst_side = _piece(src, 1), _piece(dst, 1)
    else:
        src_side, dst_side = _piece(src, int(gathered)), _piece(dst, 0)
    nbytes = elements * max(dst.itemsize, src.itemsize)
    pieces = elements / min(src_side, dst_side)
    first, last = _engines(dst, src, dma)
    each = max(nbytes / dma.bytes_per_ns, pieces * dma.row_ns) / (last - first)
    if record.op == "dma_transpose":
        first, last = 0, dma.engines
        share = dma.transpose_sbuf if src.allocation.on_chip else dma.transpose_hbm
        each = nbytes / dma.bytes_per_ns / dma.engines / share
    elif record.op == "dma_compute":
        each *= dma.compute_slowdown * max(1.0, len(record.reads) / 2)
    lane, trigger = trigger_of(record, chip, pieces)
    hbm = not (src.allocation.on_chip and dst.allocation.on_chip)
    return Transfer(lane, trigger, first, last, each + dma.row_ns, nbytes, hbm)


def trigger_of(record: Record, chip: Chip, pieces: float) -> tuple[int, Trigger]:
    """Who starts a DMA and what that costs. With the mode left open, what the compiler chooses is
    not published; here: an index vector means software descriptors, a cast prepared ones, the rest
    hardware ones behind Sync (prepared ones where there is no such block)."""
    dma, work = chip.dma, record.work
    mode = work.get("mode", DgeMode.unknown)
    if mode is DgeMode.unknown:
        same = record.reads[0].dtype == record.writes[0].dtype
        if work.get("indirect") == "vector":
            mode = DgeMode.swdge
        else:
            mode = DgeMode.hwdge if same and dma.hardware else DgeMode.none
    if mode is DgeMode.swdge:
        extra = max(0.0, pieces - 128) * dma.descriptor_ns
        software = dma.software
        return GPSIMD, Trigger(software.issue_ns + extra, software.start_ns + extra)
    if mode is DgeMode.hwdge and dma.hardware:
        # Behind Scalar the block works beside the engine's own pipeline (A3).
        lane = SCALAR_DMA if work.get("trigger") is Engine.scalar else SYNC
        return lane, dma.hardware
    return SYNC, dma.static


def _piece(access: Access, skip: int) -> int:
    """Elements in a row without a gap; on chip within a partition."""
    length = 1
    skip = max(skip, 1 if access.allocation.on_chip else 0)
    pairs = zip(reversed(access.shape[skip:]), reversed(access.strides[skip:]), strict=True)
    for size, step in pairs:
        if size == 1:
            continue
        if step != length:
            break
        length *= size
    return length


def _engines(dst: Access, src: Access, dma: DmaTiming) -> tuple[int, int]:
    """Each engine serves 8 partitions of the SBUF side; HBM to HBM uses all."""
    side = dst if dst.allocation.buffer is SBUF else src
    if side.allocation.buffer is not SBUF:
        return 0, dma.engines
    low, high = side.box[0], side.box[1]
    each = dma.partitions_per_engine
    return low // each, min(dma.engines, -(-high // each))


def kind(record: Record) -> tuple[Any, ...]:
    """Records of equal kind cost the same."""
    parts: list[Any] = [record.op, record.engine._value_, *record.work.values()]
    for accesses in (record.reads, record.writes):
        for a in accesses:
            parts += (a.shape, a.strides, a.dtype, a.allocation.buffer._value_, a.box[0])
        parts.append(0)
    return tuple(parts)
