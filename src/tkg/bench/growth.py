"""How the time of a step grows with context and with batch, beside the roofline's growth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tkg.bench.report import Record
from tkg.bench.workloads import Row

CONTEXTS = tuple(2**n for n in range(8, 17))
"""256 to 65536 tokens, at a batch of one row."""

BATCHES = tuple(2**n for n in range(8))
"""1 to 128 rows, each with a context of `BATCH_CONTEXT` tokens."""

BATCH_CONTEXT = 2048
UNITS = {"context": "token of context", "batch": "row of the batch"}


@dataclass(frozen=True)
class Line:
    """A straight line through times, `start + slope * size`, both in ms.

    Attributes:
        start, slope: of the line.
        worst: largest distance of a time from the line, as a share of the line.
    """

    start: float
    slope: float
    worst: float

    def at(self, sizes: np.ndarray) -> np.ndarray:
        return self.start + self.slope * sizes


def rows(workload: str, dtype: str) -> list[Row]:
    """The rows of both sweeps; the one that they share stands once."""
    contexts = [Row(workload, dtype, 1, context) for context in CONTEXTS]
    return contexts + [Row(workload, dtype, batch, BATCH_CONTEXT) for batch in BATCHES[1:]]


def sweep(lines: Sequence[Record], what: str) -> list[Record]:
    """tkg's timed records in which only "context" or only "batch" changes, in its order."""
    key, value = ("batch", 1) if what == "context" else ("context", BATCH_CONTEXT)
    chosen = [line for line in lines if line["contestant"] == "tkg" and line[key] == value]
    return sorted((line for line in chosen if line["ms"] is not None), key=lambda r: r[what])


def fit(sizes: Sequence[float], times: Sequence[float]) -> Line:
    """The line with the least squares of relative distances: short and long times count alike.

    Raises:
        ValueError: there are fewer than three points.
    """
    if len(sizes) < 3:
        raise ValueError(f"growth: a line needs at least three timed rows; got {len(sizes)}")
    x, y = np.array(sizes, float), np.array(times, float)
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    worst = float(np.abs(y / (start + slope * x) - 1).max())
    return Line(float(start), float(slope), worst)


def fits(lines: Sequence[Record], what: str) -> tuple[Line, Line]:
    """The lines through the measured medians and through the roofline's times of a sweep."""
    found = sweep(lines, what)
    sizes = [line[what] for line in found]
    measured = fit(sizes, [line["ms"] for line in found])
    return measured, fit(sizes, [line["roofline_ms"] for line in found])


def summary(lines: Sequence[Record]) -> list[str]:
    """A sentence for each sweep."""
    texts = []
    for what, unit in UNITS.items():
        measured, roof = fits(lines, what)
        texts.append(
            f"{what}: {measured.start:.3g} ms + {measured.slope * 1e3:.3g} us a {unit}, "
            f"{measured.slope / roof.slope:.2f} of the roofline's {roof.slope * 1e3:.3g} us; "
            f"no median is further than {measured.worst:.0%} from the line"
        )
    return texts


def draw(lines: Sequence[Record], facts: Record, folder: Path) -> list[Path]:
    """Write growth.png and growth.svg into an existing folder; returns their paths.

    Raises:
        ValueError: too few rows of a sweep were timed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "tkg"})
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axes, what in zip(panels, UNITS, strict=True):
        _panel(axes, lines, what)
    first = lines[0]
    figure.suptitle(
        f"A step of {first['workload']} {first['dtype']} on {facts['processor']}, "
        f"{facts['threads']} threads"
    )
    paths = [folder / "growth.png", folder / "growth.svg"]
    for path in paths:
        figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return paths


def _panel(axes: Any, lines: Sequence[Record], what: str) -> None:
    """Medians with their quartiles, the line through them, and the roofline."""
    found, (measured, roof) = sweep(lines, what), fits(lines, what)
    sizes = np.array([line[what] for line in found], float)
    ms, low, high = (np.array([r[n] for r in found]) for n in ("ms", "ms_q1", "ms_q3"))
    axes.errorbar(
        sizes,
        ms,
        (ms - low, high - ms),
        fmt="o",
        color="#c1121f",
        capsize=3,
        label="tkg, quartiles",
    )
    fine = np.geomspace(sizes[0], sizes[-1], 200)
    unit = UNITS[what]
    axes.plot(
        fine,
        measured.at(fine),
        "--",
        color="#c1121f",
        linewidth=1,
        label=f"{measured.start:.2g} ms + {measured.slope * 1e3:.3g} us a {unit}",
    )
    axes.plot(
        sizes,
        [line["roofline_ms"] for line in found],
        color="black",
        linewidth=1.5,
        label=f"roofline, {roof.slope * 1e3:.3g} us a {unit}",
    )
    fixed = "1 row" if what == "context" else f"context {BATCH_CONTEXT}"
    label = "context, tokens" if what == "context" else "batch, rows"
    axes.set(xscale="log", yscale="log", xlabel=f"{label} ({fixed})", ylabel="ms a step")
    axes.set_xticks(sizes, [f"{int(size)}" for size in sizes], rotation=45)
    axes.minorticks_off()
    axes.set_ylim(min(r["roofline_ms"] for r in found) / 2, high.max() * 2)
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.legend(loc="upper left", frameon=False)
