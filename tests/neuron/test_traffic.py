"""Bytes between HBM and the chip: each input once, each output once, nothing in between.

The least is counted here from the call's own arrays: X, weights, scales, tables, positions or mask,
the S_ctx slots of both caches; then the output and the new tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tkg
from nkisim import kernel
from nkisim.report import Report
from tests.calls import Call, run
from tkg.testing.case import Case, ProjectionCase

MOST = 1.02  # of the least

LLAMA: dict[str, Any] = {
    "hidden": 4096, "q_heads": 4, "d_head": 128, "dtype": "bfloat16", "capacity": 1024,
}  # fmt: skip
FP8 = {"qkv": "ROW", "out": "ROW", "cache_dtype": "float8_e4m3"}
BLOCK = {"cache": "block", "block_len": 32}
GPT_OSS = {"hidden": 3072, "hidden_actual": 2880, "q_heads": 8, "d_head": 64, "bias_qkv": True,
           "bias_out": True, "sink": True, "small_dtype": "bfloat16"}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "flat, one row": {"lengths": (1023,)},
    "flat, four rows": {"lengths": (1023, 5, 7, 900)},
    "transposed, one row": {"lengths": (1023,), "cache": "transposed"},
    "transposed, two rows": {"lengths": (1023, 7), "cache": "transposed"},
    "block, one row": {"lengths": (1023,)} | BLOCK,
    "block, four rows": {"lengths": (1023, 3, 500, 900)} | BLOCK,
    "fp8, one row": {"lengths": (1008,)} | FP8,
    "fp8, block, three rows": {"lengths": (1008, 900, 5)} | FP8 | BLOCK,
    "fp8, transposed": {"lengths": (1008, 900), "cache": "transposed"} | FP8,
    "fp8, static": {"lengths": (1008,)} | FP8 | {"qkv": "STATIC", "out": "STATIC"},
    "mask": {"lengths": (1008, 1000), "visible": "causal", "context": 1024},
    "four tokens": {"lengths": (1008, 1000), "tokens": 4},
    "no update": {"lengths": (1008, 1000), "update": False},
    "no projection": {"lengths": (1008,), "projection": None},
    "transposed output": {"lengths": (1008,), "projection": "transposed"},
    "gpt-oss": {"lengths": (1008,)} | GPT_OSS,
    "qwen3": {"lengths": (1008,), "q_heads": 16, "pre_norm": 1e-6},
    "eight KV heads": {"lengths": (255,), "hidden": 1024, "q_heads": 16, "kv_heads": 8,
                       "capacity": 256},
    "float32": {"lengths": (300, 5), "hidden": 576, "capacity": 320, "dtype": "float32"},
    "float32, block": {"lengths": (300, 5), "hidden": 576, "capacity": 320, "dtype": "float32"}
    | BLOCK,
    "small": {"lengths": (37, 5), "hidden": 128, "capacity": 64, "d_head": 32},
}  # fmt: skip


def reported(launch: Any) -> Report:
    """The report of the one launch that happens."""
    seen: list[Report] = []
    kernel.on_report.append(seen.append)
    try:
        launch()
    finally:
        kernel.on_report.remove(seen.append)
    (report,) = seen
    return report


def least(case: Case, call: Call) -> tuple[int, int]:
    """(bytes read, bytes written) that no implementation can do without."""
    share = (case.hidden_actual or case.hidden) / case.hidden
    slots = case.batch * case.s_ctx
    slot_bytes = case.kv_heads * case.d_head * call["V_cache"].itemsize
    read = 0
    for name, value in call.items():
        if name in ("K_cache", "V_cache"):
            read += slots * slot_bytes
        elif name in ("X", "W_qkv", "rmsnorm_X_gamma"):
            read += round(value.nbytes * share)
        elif isinstance(value, np.ndarray):
            read += value.nbytes
    rows = case.batch * case.tokens
    features = case.hidden if case.projection else case.q_heads * case.d_head
    written = rows * features * call["X"].itemsize + 2 * rows * slot_bytes
    return read, written


def nothing_in_between(report: Report) -> None:
    """No tensor in HBM but arguments and results, and no result is read back."""
    in_hbm = [a for a in report.program.allocations if not a.on_chip]
    assert {a.kind for a in in_hbm} <= {"input", "output"}, in_hbm
    assert not [t for t in report.tensors if t.allocation.kind == "output" and t.read_bytes]
    assert report.findings == []


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_block(fields: dict[str, Any], lnc: int) -> None:
    shape: dict[str, Any] = LLAMA | {"lnc": lnc} | fields
    case = Case(name="traffic", **shape)
    call: Call = case.inputs() | {"lnc": lnc}
    report = reported(lambda: run("neuron", call))
    read, written = least(case, call)
    assert read * 0.999 <= report.hbm_read_bytes <= read * MOST, report.hbm_read_bytes / read
    assert report.hbm_written_bytes == written
    nothing_in_between(report)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("quantization", ["NONE", "STATIC", "ROW"])
@pytest.mark.parametrize("batch", [2, 100])
def test_projection(batch: int, quantization: Any, transposed: bool, lnc: int) -> None:
    case = ProjectionCase(
        name="traffic", d_head=128, heads=8, batch=batch, hidden=2048, dtype="bfloat16", bias=True,
        quantization=quantization, transposed=transposed, lnc=lnc,
    )  # fmt: skip
    call: Call = case.inputs() | {"lnc": lnc}
    report = reported(lambda: tkg.output_projection_tkg(**call, backend="neuron"))
    arrays = [value for value in call.values() if isinstance(value, np.ndarray)]
    read = sum(array.nbytes for array in arrays)
    written = batch * case.hidden * call["attention"].itemsize
    assert report.hbm_written_bytes == written
    # On two cores each needs all of the attention output for its half of the columns.
    read += (lnc - 1) * call["attention"].nbytes
    assert read * 0.999 <= report.hbm_read_bytes <= read * MOST, report.hbm_read_bytes / read
    nothing_in_between(report)


def test_skipping_attention_reads_no_cache() -> None:
    case = Case(name="traffic", skip_attention=True, dtype="bfloat16")
    report = reported(lambda: run("neuron", case.inputs()))
    assert not [t for t in report.tensors if t.allocation.name == "V_cache" and t.read_bytes]
    assert not [t for t in report.tensors if t.allocation.name == "K_cache" and t.read_bytes]


def test_skipped_slots_are_not_written() -> None:
    case = Case(name="traffic", skipped=(0, 1), dtype="bfloat16")
    report = reported(lambda: run("neuron", case.inputs()))
    out = case.batch * case.hidden * 2
    assert report.hbm_written_bytes - out <= 2 * case.batch * case.d_head * 2
    assert [t.allocation.name for t in report.tensors if t.allocation.kind == "output"] == ["out"]
