"""The figures of a profile: modelled times beside their bounds, HBM bytes beside the least."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from nkisim.chips import Chip
from nkisim.report import Report
from tkg.contract import dtypes
from tkg.contract.block import BlockCall
from tkg.contract.cost import Call, cost
from tkg.contract.keywords import BLOCK_NAMES
from tkg.contract.projection import PROJECTION_NAMES

COME_FIRST = (
    "attention", "weight", "X", "rmsnorm_X_gamma", "W_qkv", "bias_qkv", "weight_dequant_scale_qkv",
    "rmsnorm_QK_pre_rope_W_Q", "rmsnorm_QK_pre_rope_W_K", "rmsnorm_QK_post_rope_W_Q",
    "rmsnorm_QK_post_rope_W_K", "cos", "sin", "active_blocks_table", "attention_mask", "pos_ids",
    "k_scale", "v_scale", "W_out",
)  # fmt: skip
"""What the last multiply waits for, besides the cached slots, each by the name of its tensor: what
it multiplies, and what that is computed from. Not a sink, nor the projection's bias and scale,
which may come after it."""

KEEPS_CLOCK = "clock"
"""What the multiplies write that keep the tensor engine's clock up: no work of the call's."""


@dataclass(frozen=True)
class Traffic:
    """HBM bytes of one tensor, as the simulator counted them; `least`: what the call needs."""

    tensor: str
    read: int
    written: int
    least: int

    @property
    def times(self) -> float:
        """Bytes moved, in units of the least."""
        return (self.read + self.written) / self.least if self.least else float("inf")


@dataclass(frozen=True)
class Figures:
    """Times in microseconds, all modelled.

    Attributes:
        modelled: from the first instruction to the last result.
        dma_bound: the least HBM bytes of the call at `bytes_per_us`, all DMA engines busy.
        latency_bound: the bytes that the last multiply waits for at that rate, and the latencies
            before the first and after the last of them, which no order of the transfers hides.
        engine, engine_bound: the busiest engine and the time that its instructions hold it.
        tensors: HBM traffic, most bytes first; `total` is their sum.
    """

    modelled: float
    dma_bound: float
    latency_bound: float
    bytes_per_us: float
    engine: str
    engine_bound: float
    tensors: tuple[Traffic, ...]
    total: Traffic

    @property
    def bound(self) -> float:
        """No schedule of these instructions and bytes takes less."""
        return max(self.dma_bound, self.engine_bound)

    @property
    def ratio(self) -> float:
        return self.modelled / self.bound


def figures(call: Call, report: Report) -> Figures:
    """The figures of a run of one call on one device."""
    least = least_bytes(call)
    moved = {
        tensor.allocation.name: (tensor.read_bytes, tensor.written_bytes)
        for tensor in report.tensors
    }
    tensors = [
        Traffic(name, *moved.get(name, (0, 0)), least.get(name, 0)) for name in {**least, **moved}
    ]
    tensors.sort(key=lambda tensor: -(tensor.read + tensor.written))
    read, written = sum(t.read for t in tensors), sum(t.written for t in tensors)
    total = Traffic("all", read, written, sum(least.values()))
    rate = dma_bytes_per_us(report.program.chip, len(report.program.cores))
    name, needed = busiest_engine(report)
    return Figures(
        report.latency_us, total.least / rate, latency_bound(call, report.program.chip, rate), rate,
        name, needed, tuple(tensors), total,
    )  # fmt: skip


def busiest_engine(report: Report) -> tuple[str, float]:
    """The engine with the most work that the answer needs, and how long that holds it, in us."""
    idle = defaultdict[tuple[int, str], float](float)
    timeline = report.timeline
    for record, start, held in zip(timeline.records, timeline.start, timeline.held, strict=True):
        if record.writes and record.writes[0].allocation.name == KEEPS_CLOCK:
            idle[record.core, "Tensor"] += held - start
    busy = {
        (use.core, use.engine): use.busy_us - idle[use.core, use.engine] / 1000
        for use in report.engines
    }
    core, engine = max(busy, key=lambda key: busy[key])
    several = len(report.program.cores) > 1
    return engine + (f" (core {core})" if several else ""), busy[core, engine]


def latency_bound(call: Call, chip: Chip, rate: float) -> float:
    """The time of what must happen one after the other, in us: the first transfer's start; at
    `rate` all bytes that the last multiply waits for, in whatever order; of the last one its
    completion, a multiply, a copy out of PSUM, and the output's transfer.

    Each term is the least that the chip's record has for any such step. Whichever bytes come last,
    the output still waits for a multiply: of W_out, or of the activations that it meets.
    """
    dma, tensor, vector = chip.dma, chip.tensor, chip.vector
    least, written = least_bytes(call), cost(call).written_bytes
    awaited = sum(least.get(name, 0) for name in COME_FIRST)
    for x in "KV":
        awaited += max(0, least.get(f"{x}_cache", 0) - written.get(f"{x}_out", 0))
    start = min(way.start_ns for way in (dma.static, dma.software, dma.hardware) if way)
    multiply = tensor.load_ns + tensor.min_cycles / tensor.ghz + tensor.fixed_ns
    copy = vector.min_cycles / vector.ghz + vector.fixed_ns
    after = dma.finish_ns + multiply + copy + start + dma.row_ns + dma.finish_ns
    waits = 2 * chip.sync.semaphore_ns
    return awaited / rate + (start + after + waits) / 1000


def dma_bytes_per_us(chip: Chip, cores: int) -> float:
    """What the DMA engines of a device's cores move; the cores share an HBM stack."""
    return 1000 * min(cores * chip.dma.engines * chip.dma.bytes_per_ns, chip.stack_bytes_per_ns)


def least_bytes(call: Call) -> dict[str, int]:
    """Bytes that must pass HBM, by the name that the kernel's tensor has.

    Inputs count once, outputs and the new K and V once. Of a cache its S_ctx slots count, whatever
    `pos_ids`, the mask or a window let be attended to: they are not known when the kernel is built.
    """
    least = cost(call)
    names = BLOCK_NAMES if isinstance(call, BlockCall) else PROJECTION_NAMES
    found = {names.get(name, name): count for name, count in least.read_bytes.items()}
    if not isinstance(call, BlockCall):
        return found | least.written_bytes
    if not call.block.skip_attention:
        heads = call.block.heads
        slot = heads.kv * heads.d_head * dtypes.itemsize(call.cache.v.dtype)
        found["K_cache"] = found["V_cache"] = call.batch * call.context * slot
    if call.cache.scale is not None:
        found |= {"k_scale": 4, "v_scale": 4}
    updated = call.slot_ids is not None
    places = {"out": "out"} | {f"{x}_out": f"{x}_{'cache' if updated else 'new'}" for x in "KV"}
    for name, count in least.written_bytes.items():
        found[places[name]] = found.get(places[name], 0) + count
    return found
