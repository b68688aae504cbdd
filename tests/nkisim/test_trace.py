"""The Chrome trace: valid JSON whose slices and arrows agree with the timeline."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from nkisim.report import Report
from tests.nkisim.scripts import Script
from tests.nkisim.test_report import tiled_matmul

Events = list[dict[str, Any]]


def traced(report: Report, folder: Path) -> Events:
    path = folder / "out.json"
    report.trace(str(path))
    return json.loads(path.read_text())["traceEvents"]


@pytest.fixture
def matmul(tmp_path: Path) -> tuple[Report, Events]:
    report = tiled_matmul(256, 128, 1024).report()
    return report, traced(report, tmp_path)


def test_lanes_have_names(matmul: tuple[Report, Events]) -> None:
    _, events = matmul
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"Tensor", "Vector", "Sync", "DMA of Sync"} <= set(named.values())
    used = {(e["pid"], e["tid"]) for e in events if e["ph"] != "M"}
    assert used == set(named)


def test_each_instruction_has_its_slice(matmul: tuple[Report, Events]) -> None:
    report, events = matmul
    records = report.program.cores[0].records or []
    slices = [e for e in events if e["ph"] == "X"]
    moved = sum(1 for record in records if record.op == "dma_copy")
    assert len(slices) == len(records) + moved
    by_index = defaultdict(list)
    for event in slices:
        by_index[event["args"]["index"]].append(event)
    for record in records:
        details = by_index[record.index][0]["args"]
        assert details["at"] == str(record.site)
        shapes = " ".join(details.get("writes", []) + details.get("reads", []))
        assert all(str(list(a.shape)) in shapes for a in record.reads + record.writes)
    loads = [
        e for e in slices if e["name"] == "dma_copy" and e["args"].get("bytes") == 128 * 512 * 4
    ]
    assert loads and all("rhs" in str(e["args"]) or "out" in str(e["args"]) for e in loads)
    end = max(e["ts"] + e["dur"] for e in slices)
    assert end <= report.latency_us


def test_slices_of_a_lane_do_not_overlap(matmul: tuple[Report, Events]) -> None:
    lanes = defaultdict(list)
    for event in matmul[1]:
        if event["ph"] == "X":
            lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in lanes.values():
        spans.sort()
        for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
            assert start >= end - 1e-6


def test_arrows_start_and_end_in_slices(matmul: tuple[Report, Events]) -> None:
    _, events = matmul
    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert starts and set(starts) == set(ends)
    for number, start in starts.items():
        assert start["ts"] <= ends[number]["ts"]
        for point in (start, ends[number]):
            spans = slices[point["pid"], point["tid"]]
            assert any(begin <= point["ts"] <= end for begin, end in spans)


def test_two_cores_are_two_processes(tmp_path: Path) -> None:
    script = Script(cores=2, checks="off")
    for core in script.program.cores:
        script.core = core
        script.memset(script.sbuf((128, 64)))
    events = traced(script.report(), tmp_path)
    assert {e["pid"] for e in events} == {0, 1}
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {
        "script, core 0", "script, core 1"
    }  # fmt: skip


def test_transfers_at_the_same_time_get_lanes_of_their_own(tmp_path: Path) -> None:
    """Small tiles of different partitions move on different DMA engines."""
    script = Script()
    source = script.hbm((128, 8192))
    for first in range(0, 128, 8):
        tile = script.sbuf((128, 8192))
        script.dma(tile[first : first + 8], source[first : first + 8])
        script.copy(script.sbuf((8, 4)), tile[first : first + 8, 0:4])
    events = traced(script.report(), tmp_path)
    names = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"DMA of Sync", "DMA of Sync 1", "DMA of Sync 2"} <= names
