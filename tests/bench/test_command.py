"""`tkg bench` from end to end on a tiny layer."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.bench.conftest import CEILINGS
from tkg.bench import report, rotation
from tkg.bench.peers import ours, torch_eager
from tkg.cli import bench as module
from tkg.cli.commands import commands

ROOT = Path(__file__).parents[2]
SMALL = ["--batch", "2", "--context", "40", "--seconds", "0.01", "--rounds", "2"]


@pytest.fixture(autouse=True)
def fixed_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ceilings", lambda: CEILINGS)
    monkeypatch.setattr(module, "measured_now", lambda: CEILINGS)


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(
        commands, ["bench", *arguments]
    )


def run_tiny(*arguments: str) -> Result:
    return run("--workload", "tiny", "--dtype", "bf16", *SMALL, *arguments)


def test_a_row_with_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    done = run_tiny("--peer", "torch,onnxruntime,openvino", "--out", str(folder))
    assert done.exit_code == 0, done.output
    assert "tiny, bf16, B 2, context 40, S_tkg 1, flat cache" in done.output
    assert "not asked for: torch.compile (--peer all)" in done.output
    assert max(map(len, done.output.replace(str(folder), "").splitlines())) <= 120
    names = {"bench.csv", "bench.json", "bench.md", "roofline.png", "roofline.svg"}
    assert {path.name for path in folder.iterdir()} == names
    rows = json.loads((folder / "bench.json").read_text())["rows"]
    assert [row["contestant"] for row in rows] == ["tkg", "torch", "onnxruntime", "openvino"]
    assert [row["computes_in"] for row in rows] == ["bf16", "bf16", "fp32", "bf16"]
    for row in rows:
        assert row["state"] == "ok" and 0 <= row["error_budget_used"] <= 1
        assert row["contestant"] == "tkg" or row["error_budget_used"] > 0
        assert row["copies"] > 1 and row["calls"] >= 4
        assert 0 < row["ms_q1"] <= row["ms"] <= row["ms_q3"]
        assert row["times_tkg"] == 1 if row["contestant"] == "tkg" else row["times_tkg"] > 0
    with (folder / "bench.csv").open(newline="") as file:
        assert tuple(next(csv.reader(file))) == report.FIELDS


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for share, told in ((0.05, False), (0.4, True)):
        monkeypatch.setattr(module.Noise, "others", lambda self, share=share: share)
        done = run_tiny("--peer", "none")
        assert f"others used {share:.0%} of the processors" in done.output
        assert ("measure again on a quiet machine" in done.output) == told


def planted(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    right = kind.answer

    def wrong(self: Any) -> Any:
        answer = right(self)
        out = answer.out.copy()
        out[-1, 5] += out.dtype.type(1)
        return dataclasses.replace(answer, out=out)

    monkeypatch.setattr(kind, "answer", wrong)


@pytest.mark.parametrize(
    ("kind", "name"), [(ours.Ours, "tkg"), (torch_eager.Torch, "torch")], ids=["tkg", "torch"]
)
def test_a_wrong_answer_is_reported_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Any, name: str
) -> None:
    planted(monkeypatch, kind)
    done = run_tiny("--peer", "torch", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert "wrong: out is off by" in done.output and "1 FAILED" in done.output
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    for row in rows:
        assert (row["state"] == "wrong") == (row["ms"] is None) == (row["contestant"] == name)
        assert (row["error_budget_used"] > 1) == (row["contestant"] == name)


def test_a_peer_that_breaks_fails_the_run_and_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(setup: Any) -> Any:
        raise RuntimeError("the abacus is jammed")

    monkeypatch.setattr(torch_eager, "build", broken)
    done = run_tiny("--peer", "torch")
    assert done.exit_code == 1
    assert "error: RuntimeError: the abacus is jammed" in done.output
    assert " 1.00" in done.output  # tkg was timed


def test_a_peer_that_is_not_installed_has_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name)
    )
    done = run_tiny("--peer", "openvino", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert "absent: install openvino: pip install openvino" in done.output
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert rows[1]["state"] == "absent" and rows[1]["ms"] is None
    assert "absent: install openvino" in run("--list").output.replace("\n", " ")


def test_a_row_that_a_peer_cannot_run_has_a_line() -> None:
    done = run("--workload", "tiny-sink", "--dtype", "bf16", *SMALL, "--peer", "openvino")
    assert done.exit_code == 0, done.output
    assert "refused: ScaledDotProductAttention" in done.output


def test_a_row_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "free_memory", lambda: 100_000)
    done = run_tiny("--peer", "none")
    assert done.exit_code == 0, done.output
    assert "refused: needs 0.0 GiB of memory; 0.0 are free" in done.output


def test_the_lists_on_the_command_line_are_multiplied() -> None:
    done = run(
        *("--workload", "tiny,tiny-norm", "--dtype", "bf16,fp8-row-kv8", "--batch", "1,2"),
        *("--context", "40,64", "--s-tkg", "1,3", "--cache", "flat,block", "--peer", "none"),
        *("--seconds", "0.01", "--rounds", "1"),
    )
    assert done.exit_code == 0, done.output
    assert done.output.count("time / tkg's") == 2**6


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--workload", "gpt-5"], "workload must be one of"),
        (["--peer", "jax"], "peer must be one of"),
        (["--batch", "many"], "batch must be numbers, comma-separated; got 'many'"),
        (["--quick", "--workload", "tiny"], "--quick has its own rows"),
    ],
)
def test_a_wrong_request_is_exit_code_2(arguments: list[str], text: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert text in done.output and "Traceback" not in done.output


def test_without_the_core_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ceilings", lambda: "the C++ core is not built")
    done = run_tiny()
    assert done.exit_code == 2
    assert "the ceilings cannot be measured: the C++ core is not built" in done.output


def test_list_names_everything() -> None:
    text = run("--list").output
    for name in ("llama3-8b-tp8", "fp8-static-kv8", "torch.compile", "tiny-sink", "QK norm"):
        assert name in text


def test_the_test_group_has_what_the_extra_has() -> None:
    """So that the suite runs every peer that a user gets with `pip install 'tkg[bench]'`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extra = set(project["project"]["optional-dependencies"]["bench"]) - {"tkg[run]"}
    assert extra and extra <= set(project["dependency-groups"]["test"])
