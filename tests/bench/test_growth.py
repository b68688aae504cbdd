"""Growth of the time: the rows, the fitted lines, the picture, the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.bench.conftest import CEILINGS
from tests.bench.test_report import FACTS
from tkg.bench import growth, workloads
from tkg.cli import bench as module
from tkg.cli.commands import commands


def record(batch: int, context: int, ms: float | None, contestant: str = "tkg") -> dict[str, Any]:
    return {
        "contestant": contestant,
        "workload": "tiny",
        "dtype": "bf16",
        "batch": batch,
        "context": context,
        "ms": ms,
        "ms_q1": ms and ms * 0.9,
        "ms_q3": ms and ms * 1.2,
        "roofline_ms": 0.5 + 1e-4 * batch * context,
    }


LINES = [record(1, context, 2 + 3e-4 * context) for context in (8192, 256, 2048, 65536)]
LINES += [record(batch, 2048, 2 + 0.4 * batch) for batch in (4, 128)]
LINES += [record(1, 512, None), record(1, 1024, 99.0, "torch"), record(4, 512, 99.0)]


def test_the_rows_are_two_sweeps_that_share_one() -> None:
    rows = growth.rows("smollm2", "bf16")
    assert len({str(row) for row in rows}) == len(rows) == 9 + 8 - 1
    assert [row.context for row in rows if row.batch == 1] == [2**n for n in range(8, 17)]
    assert [row.batch for row in rows if row.context == 2048] == [2**n for n in range(8)]


def test_a_sweep_has_tkgs_timed_rows_in_order() -> None:
    assert [r["context"] for r in growth.sweep(LINES, "context")] == [256, 2048, 8192, 65536]
    assert [r["batch"] for r in growth.sweep(LINES, "batch")] == [1, 4, 128]


def test_a_line_through_points_on_a_line() -> None:
    line = growth.fit([1, 10, 1000, 4000], [2.5, 7.0, 502.0, 2002.0])
    assert (line.start, line.slope) == (pytest.approx(2.0), pytest.approx(0.5))
    assert line.worst == pytest.approx(0.0, abs=1e-9)


def test_growth_that_is_not_linear_shows() -> None:
    sizes = [1, 2, 4, 8, 16, 32]
    assert growth.fit(sizes, [0.1 * n**2 + 1 for n in sizes]).worst > 0.5


def test_a_line_needs_three_points() -> None:
    with pytest.raises(ValueError, match="three timed rows; got 2"):
        growth.fit([1, 2], [1, 2])


def test_the_summary_compares_the_slopes() -> None:
    context, batch = growth.summary(LINES)
    assert context.startswith("context: 2 ms + 0.3 us a token of context, 3.00 of the roofline's")
    assert "0.1 us" in context and "further than 0% from the line" in context
    # two points of three are 2 + 0.4 B; that of one row has the time of the other sweep
    assert batch.startswith("batch: ") and "us a row of the batch" in batch


def test_the_picture(tmp_path: Path) -> None:
    png, svg = growth.draw(LINES, FACTS, tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    text = svg.read_text(encoding="utf-8")
    for part in ("context, tokens (1 row)", "batch, rows (context 2048)", "ms a step", "65536"):
        assert part in text
    assert "roofline, 0.1 us a token of context" in text


def small(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(module, "ceilings", lambda: CEILINGS)
    monkeypatch.setattr(module, "measured_now", lambda: CEILINGS)
    monkeypatch.setattr(growth, "CONTEXTS", (20, 40, 80))
    monkeypatch.setattr(growth, "BATCHES", (1, 2, 4))
    monkeypatch.setattr(growth, "BATCH_CONTEXT", 40)
    given = ["bench", "--growth", "--seconds", "0.01", "--rounds", "2", *arguments]
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(commands, given)


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = small(monkeypatch, "--workload", "tiny", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert "us a token of context" in done.output and "us a row of the batch" in done.output
    assert {"growth.png", "growth.svg", "roofline.png"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "arguments", [["--quick"], ["--workload", "tiny,smollm2"], ["--dtype", "bf16,fp32"]]
)
def test_one_layer_at_a_time(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    done = small(monkeypatch, *arguments)
    assert done.exit_code == 2 and "--growth has its own rows" in done.output


def test_an_unknown_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    done = small(monkeypatch, "--workload", "nobody")
    assert done.exit_code == 2 and "workload must be one of" in done.output
    assert all(name in done.output for name in workloads.WORKLOADS)
