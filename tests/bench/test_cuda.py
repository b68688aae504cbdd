"""What of the GPU's benchmark needs no GPU: rows, arguments, refusals, arithmetic."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import tkg
from tkg.bench import workloads
from tkg.bench.cuda import device
from tkg.bench.cuda.__main__ import main, parser, peers_of, rows_of
from tkg.bench.cuda.report import HEADINGS, cells
from tkg.bench.peers import CUDA_PEERS
from tkg.bench.report import Record, rates
from tkg.bench.workloads import Row
from tkg.cli.commands import commands
from tkg.contract.cost import cost
from tkg.machine import Ceilings

H100_SPECIFIED = 3.35e12
"""Bytes a second, NVIDIA's data sheet of the H100 SXM."""


def bytes_of(row: Row) -> int:
    """The least that must move in a row whose positions are the last ones."""
    case, half = row.case(row.batch), "bfloat16"
    fp8 = case.cache_dtype or half
    spec = tkg.ArraySpec
    columns = (case.q_heads + 2 * case.kv_heads) * case.d_head
    cache = spec((row.batch, case.kv_heads, row.context, case.d_head), fp8)
    call: dict[str, Any] = {
        "X": spec((row.batch, 1, case.hidden), half),
        "W_qkv": spec((case.hidden, columns), fp8),
        "W_out": spec((case.q_heads * case.d_head, case.hidden), fp8),
        "K_cache": cache,
        "V_cache": spec(cache.shape, fp8),
        "pos_ids": spec((row.batch, 1), "int32"),
    }
    if fp8 != half:
        for which, width in (("qkv", columns), ("out", case.hidden)):
            call[f"quantization_type_{which}"] = tkg.QuantizationType.ROW
            call[f"weight_dequant_scale_{which}"] = spec((1, width), "float32")
        call |= {name: spec((1, 1), "float32") for name in ("k_scale", "v_scale")}
    return cost(tkg.describe(tkg.attention_block_tkg, **call)).bytes


@pytest.mark.parametrize(
    ("row", "megabytes", "microseconds"),
    [
        (workloads.H100[0], 100.7, 30.1),
        (workloads.H100[1], 151, 45.1),
        (workloads.H100[2], 353, 105),
        (workloads.H100[3], 1158, 346),
        (workloads.H100[4], 50.3, 15.0),
    ],
    ids=str,
)
def test_the_rows_move_what_the_targets_say(
    row: Row, megabytes: float, microseconds: float
) -> None:
    moved = bytes_of(row)
    assert moved / 1e6 == pytest.approx(megabytes, rel=5e-3)
    assert moved / H100_SPECIFIED * 1e6 == pytest.approx(microseconds, rel=5e-3)


def test_arguments() -> None:
    assert rows_of(parser().parse_args([])) == list(workloads.H100)
    given = ["--workload", "qwen3-0.6b,llama3-8b", "--dtype", "fp16", "--batch", "2", "--context"]
    assert rows_of(parser().parse_args([*given, "64"])) == [
        Row("qwen3-0.6b", "fp16", 2, 64),
        Row("llama3-8b", "fp16", 2, 64),
    ]
    assert [peer.name for peer in peers_of("torch")] == ["tkg", "torch"]
    assert [peer.name for peer in peers_of("none")] == ["tkg"]
    assert peers_of("all") == list(CUDA_PEERS)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--workload", "llama9"], "workload must be one of .*llama9"),
        (["--peer", "vllm"], "peer must be one of tkg, torch, .*vllm"),
        (["--workload", "llama3-8b", "--context", "1"], "context must be at least 2"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert re.search(reason, capsys.readouterr().err)


def without_gpu(*command: str) -> subprocess.CompletedProcess[str]:
    """The command where torch finds no CUDA device."""
    code = "import os, sys; os.environ['CUDA_VISIBLE_DEVICES'] = ''; sys.argv[0] = 'tkg'\n"
    return subprocess.run(
        [sys.executable, "-c", code + "\n".join(command)], capture_output=True, text=True
    )


def test_no_gpu_is_refused_with_the_reason() -> None:
    ran = without_gpu("from tkg.bench.cuda.__main__ import main", "sys.exit(main([]))")
    assert ran.returncode == 2, ran.stderr
    assert "the cuda backend cannot be timed here" in ran.stderr
    assert re.search("NVIDIA driver|CUDA device|not installed", ran.stderr)


def test_the_command_line_hands_over(capfd: pytest.CaptureFixture[str]) -> None:
    wrong = CliRunner().invoke(commands, ["bench", "--backend", "cuda", "--peer", "vllm"])
    assert wrong.exit_code == 2
    assert "peer must be one of tkg, torch" in capfd.readouterr().err + wrong.output
    for option in (["--quick"], ["--threads", "1"], ["--end-to-end"]):
        refused = CliRunner().invoke(commands, ["bench", "--backend", "cuda", *option])
        assert refused.exit_code == 2
        assert "--backend cpu" in refused.output
    unknown = CliRunner().invoke(commands, ["bench", "--backend", "tpu"])
    assert unknown.exit_code == 2 and "tpu" in unknown.output


def test_a_line_of_the_table() -> None:
    line: Record = {"contestant": "tkg", "computes_in": "bf16", "times_tkg": 1.0, "state": "ok"}
    line |= {"ms": 0.040, "ms_q1": 0.039, "ms_q3": 0.042}
    line |= rates(100_700_000, 10**8, 40e-6, Ceilings(3.0e12, 8e14))
    row = dict(zip(HEADINGS, cells(line, 3350.0), strict=True))
    assert row["us"] == "40.0" and row["quartiles"] == "39.0 to 42.0"
    assert row["GB/s"] == "2518"  # 100.7 MB in 40 us
    assert row["of copy"] == "84%" and row["of specified"] == "75%"
    assert row["roofline us"] == "30.1"
    assert dict(zip(HEADINGS, cells(line, None), strict=True))["of specified"] == ""


def test_a_contestant_that_is_absent_has_its_reason() -> None:
    line: Record = {"contestant": "flashinfer", "computes_in": "bf16", "ms": None}
    line |= {"state": "absent", "note": "install flashinfer"}
    assert cells(line, 3350.0)[2] == "absent: install flashinfer"
    assert len(cells(line, 3350.0)) == len(HEADINGS)


def test_the_specified_bandwidth_of_an_h100() -> None:
    """Its memory: 2619 MHz, two transfers a clock, 5120 bits."""
    h100 = SimpleNamespace(memory_clock_rate=2_619_000, memory_bus_width=5120)
    assert device.specified_bandwidth(h100) == pytest.approx(H100_SPECIFIED, rel=2e-3)
    assert device.specified_bandwidth(SimpleNamespace()) is None


def test_every_peer_says_how_to_get_it() -> None:
    assert CUDA_PEERS[0].ours and not any(peer.ours for peer in CUDA_PEERS[1:])
    for peer in CUDA_PEERS:
        assert all(getattr(peer, field.name) for field in fields(peer)[:5]), peer.name
