"""`tkg.explain` and `tkg.describe`: a call without running it."""

from __future__ import annotations

import numpy as np
import pytest

import tkg
from tests.calls import Call, checksums
from tkg.testing.case import Case, ProjectionCase

CASE = Case(name="explained", lengths=(40, 7), q_heads=4, kv_heads=2, sink=True, window=9)


def described(call: Call) -> Call:
    return {
        name: tkg.ArraySpec(value.shape, value.dtype.name)
        if isinstance(value, np.ndarray)
        else value
        for name, value in call.items()
    }


def test_it_runs_nothing() -> None:
    call = CASE.inputs()
    before = checksums(call)
    str(tkg.explain(**call))
    assert checksums(call) == before


def test_bytes_and_flops_of_a_call() -> None:
    call = CASE.inputs()
    explanation = tkg.explain(**call)
    slots = 8 + 7  # window 9: the new token and 8 cached ones; the short row has 7
    kv_bytes = slots * 2 * 32 * 4
    arrays = sum(v.nbytes for n, v in call.items() if hasattr(v, "nbytes") and "cache" not in n)
    arrays += call["kv_cache_update_idx"].nbytes
    written = 2 * 128 * 4 + 2 * (2 * 2 * 32 * 4)
    assert explanation.cost.bytes == arrays + 2 * kv_bytes + written
    qkv = 2 * 2 * 128 * (4 + 4) * 32
    attention = 2 * 2 * (slots + 2) * 4 * 32
    out = 2 * 2 * 128 * 128
    assert explanation.cost.flops == qkv + attention + out


def test_shapes_are_enough() -> None:
    call = CASE.inputs()
    explanation = tkg.explain(**described(call))
    assert explanation.backends["reference"] == []
    # Positions that are not known count as valid: 8 in the window of each row.
    assert explanation.cost.flops > tkg.explain(**call).cost.flops


def test_a_described_call_is_checked() -> None:
    call = described(CASE.inputs())
    with pytest.raises(ValueError, match=r"W_out.*\(100, 128\)"):
        tkg.explain(**(call | {"W_out": tkg.ArraySpec((100, 128), "float32")}))
    with pytest.raises(TypeError, match="X.*float64"):
        tkg.explain(**(call | {"X": tkg.ArraySpec((2, 1, 128), "float64")}))


def test_every_backend_has_reasons_or_none() -> None:
    explanation = tkg.explain(**CASE.inputs())
    assert set(explanation.backends) == {"reference", "cpu", "cuda", "neuron"}
    assert explanation.backends["reference"] == []
    assert explanation.backends["cuda"]
    text = str(explanation)
    for word in ("reference", "neuron", "FLOPs", "bytes", "roofline"):
        assert word in text


def test_roofline_is_the_slower_of_memory_and_arithmetic() -> None:
    explanation = tkg.explain(**CASE.inputs())
    cost = explanation.cost
    assert cost.seconds(1.0, float("inf")) == cost.bytes
    assert cost.seconds(float("inf"), 1.0) == cost.flops
    if isinstance(explanation.machine, str):
        assert explanation.roofline_seconds is None
    else:
        seconds = explanation.roofline_seconds
        assert seconds is not None
        assert 0 < seconds < 1


def test_projection() -> None:
    case = ProjectionCase(name="explained", bias=True)
    call = case.inputs()
    explanation = tkg.explain(tkg.output_projection_tkg, **call)
    assert explanation.cost.flops == 2 * 2 * 256 * 256
    read = call["attention"].nbytes + call["weight"].nbytes + call["bias"].nbytes
    assert explanation.cost.bytes == read + 2 * 256 * 4


def test_a_call_object_is_frozen_and_printable() -> None:
    call = tkg.describe(tkg.attention_block_tkg, **CASE.inputs())
    with pytest.raises(AttributeError):
        call.x = None  # pyright: ignore
    for text in ("attention_block_tkg", "float32[2, 1, 128]", "[128, 256]"):
        assert text in str(call)


def test_unknown_operation() -> None:
    with pytest.raises(ValueError, match="attention_block_tkg"):
        tkg.explain(print)
