"""Pictures of a report: the timeline of the engines, and what lay where in on-chip memory when."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .costs import LANES
from .enums import PSUM, SBUF
from .placement import Life, Memory
from .trace import data_end

if TYPE_CHECKING:
    from .report import Report

# Colour-blind safe (Okabe and Ito; one of Tol), then lighter ones.
_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#332288", "#F0E442",
    "#7FB2D9", "#F2CE7F", "#7FCEB9", "#E5BBD3",
)  # fmt: skip
_GREY = "#BBBBBB"
_MOST_NAMES = 11

Piece = tuple[float, float, str]  # start, end (us), what it is


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg", force=False)
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "nkisim's pictures need matplotlib; install it, or use trace()"
        ) from error
    return pyplot


# -- timeline -------------------------------------------------------------------------------------


def plot_timeline(report: Report, path: str) -> None:
    """A row an engine and one for DMA data, time from left to right, coloured by instruction."""
    pyplot = _pyplot()
    rows = _rows(report)
    colours = _palette(Counter(piece[2] for _, pieces in rows for piece in pieces))
    height = 1.5 + 0.45 * len(rows)
    figure, axes = pyplot.subplots(figsize=(12, height), layout="constrained")
    end = report.latency_us or 1.0
    for row, (_, pieces) in enumerate(rows):
        for name, spans in _by_name(pieces, end / 3000).items():
            axes.broken_barh(spans, (row - 0.4, 0.8), color=colours.get(name, _GREY), linewidth=0)
    labels = [f"{name}\n{_covered_share(pieces, end):.0%} busy" for name, pieces in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, end)
    axes.set_xlabel("modelled time (us)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{report.name} on {report.program.chip.name}: {report.latency_us:,.2f} us modelled,"
        f" bound by {report.bound}",
        loc="left", fontsize=10,
    )  # fmt: skip
    _legend(figure, colours)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _rows(report: Report) -> list[tuple[str, list[Piece]]]:
    timeline = report.timeline
    rows: dict[tuple[int, int], list[Piece]] = {}
    for number, record in enumerate(timeline.records):
        lane = timeline.costs[number].lane
        is_dma = timeline.moving[number] >= 0
        name = "DMA trigger" if is_dma else record.op
        span = timeline.start[number] / 1000, timeline.held[number] / 1000, name
        rows.setdefault((record.core, lane), []).append(span)
        if is_dma:
            moving = timeline.moving[number] / 1000, data_end(report, number) / 1000
            rows.setdefault((record.core, len(LANES)), []).append((*moving, _direction(record)))
    several = len(report.program.cores) > 1
    names = (*LANES, "DMA data")
    return [
        (f"{names[lane]}{f' (core {core})' if several else ''}", sorted(pieces))
        for (core, lane), pieces in sorted(rows.items())
    ]


def _direction(record: Any) -> str:
    if not record.writes[0].allocation.on_chip:
        return "store"
    return "move on chip" if record.reads[0].allocation.on_chip else "load"


def _by_name(pieces: list[Piece], least: float) -> dict[str, list[tuple[float, float]]]:
    """Spans as (start, length) by name; pieces closer than `least` of one name are drawn as one."""
    spans: dict[str, list[list[float]]] = {}
    for start, end, name in pieces:
        mine = spans.setdefault(name, [])
        if mine and start - mine[-1][1] < least:
            mine[-1][1] = max(mine[-1][1], end)
        else:
            mine.append([start, end])
    return {
        name: [(start, max(end - start, least / 2)) for start, end in mine]
        for name, mine in spans.items()
    }


def _covered_share(pieces: list[Piece], whole: float) -> float:
    covered = reach = 0.0
    for start, end, _ in pieces:
        covered += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return covered / whole


# -- memory ---------------------------------------------------------------------------------------


def plot_memory(report: Report, path: str) -> None:
    """Address by time, a panel a memory and core, coloured by tensor name (or line); the names that
    take most bytes for most time have a colour of their own."""
    pyplot = _pyplot()
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    memories = [
        m for region in (SBUF, PSUM) for m in report.placement.memories if m.region is region
    ]
    memories = [memory for memory in memories if memory.lives] or memories[:1]
    colours = _palette(_occupied(report, memories))
    figure, panels = pyplot.subplots(
        len(memories), 1, figsize=(12, 1 + 3 * len(memories)), layout="constrained", squeeze=False,
        sharex=True,
    )  # fmt: skip
    for axes, memory in zip(panels[:, 0], memories, strict=True):
        boxes: list[Any] = []
        shades: list[str] = []
        for life in memory.lives:
            if life.allocation.address is None:
                continue
            start, end = _lifetime(report, life)
            size = life.allocation.row_bytes / 1024
            low = life.allocation.address[1] / 1024
            boxes.append(Rectangle((start, low), max(end - start, 1e-4), size))
            shades.append(colours.get(_label(life), _GREY))
        edge = 0.3 if len(boxes) < 300 else 0.0
        axes.add_collection(
            PatchCollection(boxes, facecolor=shades, edgecolor="white", linewidth=edge)
        )
        _frame(axes, memory, report)
    panels[-1, 0].set_xlabel("modelled time (us)")
    _legend(figure, colours)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _frame(axes: Any, memory: Memory, report: Report) -> None:
    capacity = memory.capacity / 1024
    axes.set_xlim(0, report.latency_us or 1.0)
    axes.set_ylim(0, capacity)
    axes.set_ylabel("KiB in the partition")
    if memory.region is PSUM:
        bank = report.program.chip.psum_bank_bytes / 1024
        axes.set_yticks([k * bank for k in range(int(capacity / bank) + 1)])
        axes.grid(axis="y", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    core = f", core {memory.core}" if len(report.program.cores) > 1 else ""
    axes.set_title(
        f"{memory.region.value.upper()}{core}: needs {memory.peak / 1024:,.1f} of {capacity:g}"
        f" KiB ({memory.peak / memory.capacity:.0%}); {len(memory.lives):,} tensors",
        loc="left", fontsize=10,
    )  # fmt: skip


def _lifetime(report: Report, life: Life) -> tuple[float, float]:
    """From the start of the first instruction that touches a tensor to the end of the last, us."""
    timeline = report.timeline
    base = timeline.base[life.allocation.core]
    return timeline.start[base + life.first] / 1000, timeline.done[base + life.last] / 1000


def _label(life: Life) -> str:
    """A tensor's name without a number at its end: the tiles of a ring look alike."""
    allocation = life.allocation
    return re.sub(r"[._]\d+$", "", allocation.name) or f"line {allocation.site.line}"


def _occupied(report: Report, memories: Sequence[Memory]) -> Counter[str]:
    """Bytes times time, as a share of the memory's, by label."""
    found: Counter[str] = Counter()
    for memory in memories:
        for life in memory.lives:
            start, end = _lifetime(report, life)
            area = life.allocation.row_bytes * (end - start) / memory.capacity
            found[_label(life)] += area  # type: ignore[assignment]
    return found


# -- both -----------------------------------------------------------------------------------------


def _palette(weights: Counter[str]) -> dict[str, str]:
    """A colour a name, the weightiest first; the rest are grey."""
    common = [name for name, _ in weights.most_common()]
    colours: dict[str, str] = dict(zip(common[:_MOST_NAMES], _COLOURS, strict=False))
    if len(common) > _MOST_NAMES:
        colours["others"] = _GREY
    return colours


def _legend(figure: Any, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    if patches:
        figure.legend(
            handles=patches, loc="outside lower left", ncols=min(6, len(patches)), fontsize=8,
            frameon=False,
        )  # fmt: skip
