"""Every rule of the output projection's contract."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tkg
from tests.calls import Call, checksums
from tkg.testing.case import ProjectionCase

PLAIN = ProjectionCase(name="plain", tokens=3, bias=True)  # D 64, B 2, N 4, S 3, H 256
STATIC = ProjectionCase(name="static", quantization="STATIC")
ROW = ProjectionCase(name="row", quantization="ROW")


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


BROKEN = {
    "attention dims": (PLAIN, {"attention": zeros(64, 2, 4)}, ["attention", "(64, 2, 4)"]),
    "attention empty": (PLAIN, {"attention": zeros(64, 2, 4, 0)}, ["attention", "(64, 2, 4, 0)"]),
    "attention dtype": (
        PLAIN,
        {"attention": zeros(64, 2, 4, 3, dtype=np.float64)},
        ["attention", "float64"],
    ),
    "weight rows": (PLAIN, {"weight": zeros(255, 256)}, ["weight", "256", "(255, 256)"]),
    "weight dims": (PLAIN, {"weight": zeros(256)}, ["weight", "(256,)"]),
    "weight dtype": (PLAIN, {"weight": zeros(256, 256, dtype=np.int8)}, ["weight", "int8"]),
    "weight fp8, not quantised": (
        PLAIN,
        {"weight": zeros(256, 256, dtype=ml_dtypes.float8_e4m3)},
        ["weight", "quantization_type", "float8_e4m3"],
    ),
    "weight missing": (PLAIN, {"weight": None}, ["weight", "None"]),
    "bias": (PLAIN, {"bias": zeros(256)}, ["bias", "(1, 256)", "(256,)"]),
    "scale, not quantised": (PLAIN, {"weight_scale": zeros(1, 1)}, ["weight_scale", "NONE"]),
    "OUT_IN_SB": (PLAIN, {"OUT_IN_SB": True}, ["OUT_IN_SB", "NKI kernel"]),
    "lnc": (PLAIN, {"lnc": 0}, ["lnc", "0"]),
    "TRANSPOSE_OUT": (
        PLAIN,
        {"weight": zeros(256, 130), "bias": None, "TRANSPOSE_OUT": True},
        ["TRANSPOSE_OUT", "128", "130"],
    ),
    "TRANSPOSE_OUT lnc 2": (
        PLAIN,
        {"weight": zeros(256, 128), "bias": None, "TRANSPOSE_OUT": True, "lnc": 2},
        ["TRANSPOSE_OUT", "256", "128"],
    ),
    "quantization_type": (PLAIN, {"quantization_type": 1}, ["quantization_type", "1"]),
    "STATIC without input scale": (STATIC, {"input_scale": None}, ["input_scale"]),
    "STATIC without weight scale": (STATIC, {"weight_scale": None}, ["weight_scale"]),
    "STATIC negative scale": (STATIC, {"input_scale": -np.ones((1, 1), np.float32)}, ["-1.0"]),
    "ROW with input scale": (ROW, {"input_scale": zeros(1, 1)}, ["input_scale", "ROW"]),
    "ROW scale width": (ROW, {"weight_scale": zeros(1, 4)}, ["weight_scale", "256", "(1, 4)"]),
    "backend": (PLAIN, {"backend": "tpu"}, ["backend", "'tpu'"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_names_argument_rule_and_value(name: str) -> None:
    case, change, texts = BROKEN[name]
    call: Call = case.inputs() | change
    before = checksums(call)
    with pytest.raises((ValueError, TypeError)) as caught:
        tkg.output_projection_tkg(**call)
    assert checksums(call) == before
    assert str(caught.value).startswith("output_projection_tkg: ")
    for text in texts:
        assert text in str(caught.value)


def test_all_broken_rules_are_in_one_message() -> None:
    change = {"bias": zeros(3), "weight_scale": zeros(1, 1), "OUT_IN_SB": True, "lnc": 5}
    with pytest.raises(ValueError) as caught:
        tkg.output_projection_tkg(**(PLAIN.inputs() | change))
    for name in change:
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["cuda"])
def test_a_backend_that_cannot_run_says_so(name: str) -> None:
    with pytest.raises(tkg.Unsupported, match=name):
        tkg.output_projection_tkg(**PLAIN.inputs(), backend=name)
