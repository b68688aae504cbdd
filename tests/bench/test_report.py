"""Figures from times, and the files."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from tests.bench.conftest import CEILINGS
from tkg.bench import report, roofline
from tkg.bench.peers import find
from tkg.bench.run import Result
from tkg.bench.timing import Times, Turn
from tkg.bench.workloads import Row
from tkg.contract.cost import Cost
from tkg.machine import Ceilings

COMMAND = ["tkg", "bench", "--out", "a folder"]
FACTS = {
    "processor": "Abacus 9000",
    "threads": 2,
    "isa": "avx2",
    "last_level_cache_bytes": 32 * 2**20,
    "read_gb_per_s": 20.0,
    "fma_gflop_per_s": 300.0,
    "tkg": "9.9",
    "peers": {"torch": "1.2"},
}


def result(name: str, *milliseconds: float, state: str = "ok", note: str = "") -> Result:
    cost = Cost({"weights": 38_000_000}, {"out": 2_000_000}, 60_000_000)
    seconds = tuple(ms / 1e3 for ms in milliseconds)
    times = Times(seconds, len(seconds), (Turn(median(seconds)),) if seconds else ())
    timed = {"cost": cost, "times": times, "copies": 7, "used": 0.25} if milliseconds else {}
    return Result(Row("tiny", context=64), find(name), state, note, **timed)


def lines() -> list[report.Record]:
    return report.records(
        [
            result("tkg", 4.0, 3.0, 5.0),
            result("torch", 16.0),
            result("openvino", state="absent", note="install openvino: pip install openvino"),
        ],
        CEILINGS,
    )


def test_the_figures_of_a_row() -> None:
    """40 MB and 60 MFLOP in 4 ms on a machine with 20 GB/s and 300 GFLOP/s: 2 ms at the least."""
    line = lines()[0]
    assert (line["ms"], line["ms_q1"], line["ms_q3"]) == pytest.approx((4.0, 3.5, 4.5))
    assert line["gb_per_s"] == pytest.approx(10.0)
    assert line["bandwidth_share"] == pytest.approx(0.5)
    assert line["gflop_per_s"] == pytest.approx(15.0)
    assert line["fma_share"] == pytest.approx(0.05)
    assert line["roofline_ms"] == pytest.approx(2.0)
    assert line["roofline_share"] == pytest.approx(0.5)
    assert line["times_tkg"] == pytest.approx(1.0)
    assert (line["bytes"], line["flops"], line["calls"]) == (40_000_000, 60_000_000, 3)


def test_arithmetic_can_be_the_limit() -> None:
    """1 MB and 900 MFLOP: 3 ms of arithmetic, 0.05 ms of memory."""
    rates = report.rates(1_000_000, 900_000_000, 6e-3, CEILINGS)
    assert rates["roofline_ms"] == pytest.approx(3.0)
    assert rates["roofline_share"] == rates["fma_share"] == pytest.approx(0.5)
    assert rates["bandwidth_share"] == pytest.approx(1 / 120)


def test_a_peer_is_compared_with_tkg_of_the_same_row() -> None:
    assert lines()[1]["times_tkg"] == pytest.approx(4.0)
    alone = report.records([result("torch", 16.0)], CEILINGS)
    assert alone[0]["times_tkg"] is None


def turning(name: str, *turns: tuple[float, float]) -> Result:
    """A result of turns, each of so many milliseconds while memory gave so many GB/s."""
    done = result(name, *(ms for ms, _ in turns))
    assert done.times is not None
    own = tuple(Turn(ms / 1e3, read * 1e9) for ms, read in turns)
    return replace(done, times=replace(done.times, turns=own))


def test_a_turns_share_is_of_what_memory_gave_then() -> None:
    """40 MB in 4 ms at 12.5 GB/s, in 2 ms at 25: 80% each time, though memory changed."""
    line = report.records([turning("tkg", (4.0, 12.5), (2.0, 25.0), (2.0, 25.0))], CEILINGS)[0]
    assert line["read_gb_per_s"] == pytest.approx(25)
    assert line["bandwidth_share"] == line["roofline_share"] == pytest.approx(0.8)
    assert line["roofline_ms"] == pytest.approx(1.6)
    assert line["ms"] == pytest.approx(2.0)
    assert report.heading(line).endswith("; read 25.0 GB/s")


def test_times_are_compared_round_by_round() -> None:
    ours = turning("tkg", (4.0, 12.5), (2.0, 25.0), (2.0, 25.0))
    theirs = turning("torch", (12.0, 12.5), (12.0, 12.5), (6.0, 25.0))
    assert report.records([ours, theirs], CEILINGS)[1]["times_tkg"] == pytest.approx(3.0)


def test_the_better_ceilings() -> None:
    assert Ceilings(1.0, 9.0).better(Ceilings(2.0, 3.0)) == Ceilings(2.0, 9.0)


def test_csv_and_json_hold_the_same() -> None:
    table = list(csv.DictReader(io.StringIO(report.as_csv(lines()))))
    whole = json.loads(report.as_json(lines(), FACTS, COMMAND))
    assert whole["command"] == "tkg bench --out 'a folder'"
    assert whole["machine"] == FACTS
    assert len(table) == len(whole["rows"]) == 3
    for text, line in zip(table, whole["rows"], strict=True):
        assert tuple(text) == tuple(line) == report.FIELDS
        for name in report.FIELDS:
            assert text[name] == ("" if line[name] is None else str(line[name]))
    assert whole["rows"][2]["ms"] is None and whole["rows"][2]["state"] == "absent"


def test_markdown() -> None:
    text = report.as_markdown(lines(), FACTS, COMMAND)
    assert "tkg bench --out 'a folder'" in text
    assert "Abacus 9000; 2 threads, avx2, last-level cache 32 MiB; ceilings 20.0 GB/s" in text
    assert "**tiny, bf16, B 1, context 64, S_tkg 1, flat cache; read 20.0 GB/s**" in text
    table = [row for row in text.splitlines() if row.startswith("| t") or row.startswith("| o")]
    assert "| 4.000 | 3.500 to 4.500 | 10.0 | 50% | 15.0 | 5% | 50% | 1.00 |" in table[0]
    assert "absent: install openvino: pip install openvino" in table[2]
    assert len({row.count("|") for row in table}) == 1


def test_the_picture(tmp_path: Path) -> None:
    png, svg = roofline.draw(lines(), FACTS, tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    text = svg.read_text(encoding="utf-8")
    for part in ("tkg", "torch", "20.0 GB/s read", "300 GFLOP/s float32", "tiny bf16 B=1 64"):
        assert f">{part}<" in text or part in text
    assert "openvino" not in text  # it was not timed


def test_no_picture_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        roofline.draw(lines()[2:], FACTS, tmp_path)
