"""The picture: every timed row under the machine's roof, and how much of it each one reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tkg.bench.report import Record

COLOURS = ("#c1121f", "#1d6fb8", "#7a9e3a", "#8a5fb0", "#c98a1b", "#4d4d4d")
MARKERS = ("o", "s", "D", "^", "v", "P")
"""Of the contestants in their order; tkg is the first."""


def draw(lines: Sequence[Record], facts: Record, folder: Path) -> list[Path]:
    """Write roofline.png and roofline.svg; returns their paths.

    Args:
        lines: records; those that were not timed are left out.
        facts: of the machine, as `report.machine` gives them.
        folder: where to; must exist.

    Raises:
        ValueError: no record was timed.
    """
    timed = [line for line in lines if line["ms"] is not None]
    if not timed:
        raise ValueError("roofline: at least one row must have been timed; got none")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(line["contestant"] for line in timed))
    looks = {n: (COLOURS[i % 6], MARKERS[i % 6]) for i, n in enumerate(names)}
    keys = list(dict.fromkeys(_row(line) for line in timed))
    pyplot.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "tkg"})
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(13, max(4.8, 1.4 + 0.3 * len(keys))), layout="constrained"
    )
    _roof(left, timed, facts, looks, keys)
    _shares(right, timed, looks, keys)
    figure.suptitle(f"The attention block on {facts['processor']}, {facts['threads']} threads")
    paths = [folder / "roofline.png", folder / "roofline.svg"]
    for path in paths:
        figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return paths


def _row(line: Record) -> str:
    tokens = "" if line["s_tkg"] == 1 else f" S={line['s_tkg']}"
    layout = "" if line["cache"] == "flat" else f" {line['cache']}"
    size = f"B={line['batch']} {line['context']}"
    return f"{line['workload']} {line['dtype']} {size}{tokens}{layout}"


def _roof(axes: Any, lines: Sequence[Record], facts: Record, looks: Any, keys: list[str]) -> None:
    """FLOPs a second against FLOPs a byte, both logarithmic, under the two ceilings."""
    bandwidth, fma = facts["read_gb_per_s"], facts["fma_gflop_per_s"]
    ridge = fma / bandwidth
    intensities = [line["flops"] / line["bytes"] for line in lines]
    low, high = min(intensities) / 2, max(*intensities, ridge) * 3
    x = np.array([low, ridge, high])
    axes.plot(x, np.minimum(x * bandwidth, fma), color="black", linewidth=1.5)
    axes.annotate(
        f"{fma:.0f} GFLOP/s float32", (high, fma), (-6, 4), textcoords="offset points", ha="right"
    )
    middle = (low * ridge) ** 0.5
    axes.annotate(
        f"{bandwidth:.1f} GB/s read",
        (middle, middle * bandwidth),
        (-8, 4),
        textcoords="offset points",
        ha="right",
    )
    for line, intensity in zip(lines, intensities, strict=True):
        colour, marker = looks[line["contestant"]]
        axes.plot(intensity, line["gflop_per_s"], marker, color=colour, markersize=5, alpha=0.8)
        if line["contestant"] == next(iter(looks)):
            number = str(keys.index(_row(line)) + 1)
            axes.annotate(
                number,
                (intensity, line["gflop_per_s"]),
                xytext=(5, -9),
                textcoords="offset points",
                color=colour,
                fontsize=8,
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(None, fma * 2),
        xlabel="FLOPs a byte that must move",
        ylabel="GFLOP/s",
    )
    axes.grid(which="major", color="#dddddd", linewidth=0.6)


def _shares(axes: Any, lines: Sequence[Record], looks: Any, keys: list[str]) -> None:
    """Share of the roofline of each contestant, one line a row of the benchmark."""
    seen = set()
    for line in lines:
        name = line["contestant"]
        colour, marker = looks[name]
        axes.plot(
            line["roofline_share"] * 100,
            keys.index(_row(line)),
            marker,
            color=colour,
            markersize=6,
            alpha=0.85,
            label=None if name in seen else name,
        )
        seen.add(name)
    axes.set_yticks(range(len(keys)), [f"{i + 1}  {key}" for i, key in enumerate(keys)])
    axes.set_ylim(len(keys) - 0.5, -0.5)
    axes.set_xlim(0, max(105, 105 * max(line["roofline_share"] for line in lines)))
    axes.axvline(100, color="black", linewidth=1)
    axes.set_xlabel("% of the roofline, each in the number format that it computes in")
    axes.grid(axis="both", color="#dddddd", linewidth=0.6)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(looks), frameon=False)
