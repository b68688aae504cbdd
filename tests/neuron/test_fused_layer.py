"""The block inside another kernel, its input and output in SBUF (examples/fused_layer.py)."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nkisim
import tkg
from tests.calls import same_bits
from tkg.testing.budgets import check_block
from tkg.testing.placed import own_caches
from tkg.testing.verify import block_truth

FILE = Path(__file__).parents[2] / "examples" / "fused_layer.py"
EXAMPLE = runpy.run_path(str(FILE), run_name="example")

SIZES = [
    {},
    {"batch": 1, "tokens": 4, "hidden": 256},
    {"batch": 3, "tokens": 2, "hidden": 1152, "q_heads": 3, "d_head": 128},
]


def run(layer: dict[str, Any]) -> nkisim.Run:
    return nkisim.run(EXAMPLE["fused_layer"], **layer)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_the_residual_plus_the_block(sizes: dict[str, int]) -> None:
    """The block's answer is within its error budget, and y is X plus that answer, to the bit."""
    layer = EXAMPLE["layer_inputs"](**sizes)
    call = EXAMPLE["block_arguments"](layer) | {"transposed_out": True}
    out, K, V = tkg.attention_block_tkg(**own_caches(call), backend="neuron")
    checks = check_block(call, (out, K, V), block_truth(call), "same dtype")
    assert all(check.ok for check in checks), checks

    y, K_fused, V_fused = run(layer).result
    rows = out.transpose(3, 1, 0, 2).reshape(y.shape)  # h = h1*H2 + h2 on one core
    wide = layer["X"].astype(np.float32) + rows.astype(np.float32)
    assert same_bits(y, wide.astype(y.dtype))
    assert same_bits(K_fused, K) and same_bits(V_fused, V)
    assert K_fused is layer["K_cache"] and not same_bits(K, call["K_cache"])


def test_hidden_states_pass_hbm_once() -> None:
    report = run(EXAMPLE["layer_inputs"]()).report
    assert report.findings == []
    tensors = {tensor.allocation.name: tensor for tensor in report.tensors}
    assert (tensors["X"].read_bytes, tensors["X"].written_bytes) == (2 * 512 * 2, 0)
    assert (tensors["y"].read_bytes, tensors["y"].written_bytes) == (0, 2 * 512 * 2)
    assert {tensor.allocation.kind for tensor in report.tensors} == {"input", "output"}


def test_the_example_as_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(FILE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["y", "K", "V"]


def test_the_example_notices_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tkg.attention_block_tkg

    def other(**call: Any) -> Any:
        out, K, V = right(**call)
        return -out, K, V

    monkeypatch.setattr(tkg, "attention_block_tkg", other)
    with pytest.raises(AssertionError, match="y is wrong"):
        runpy.run_path(str(FILE), run_name="__main__")
