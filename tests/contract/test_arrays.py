"""Which arrays are taken, and how they are wrapped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tkg
from tkg.testing.case import Case


def test_float8e4m3_wraps_bytes_only() -> None:
    bits = torch.zeros(3, dtype=torch.uint8)
    assert tkg.Float8E4M3(bits).bits is bits
    for wrong in (torch.zeros(3), np.zeros(3, np.uint8), torch.zeros(3, dtype=torch.int8)):
        with pytest.raises(TypeError, match="Float8E4M3.*uint8"):
            tkg.Float8E4M3(wrong)


def test_an_array_spec_checks_its_dtype() -> None:
    spec = tkg.ArraySpec((2, 3), "bfloat16")
    assert spec.shape == (2, 3)
    with pytest.raises((TypeError, ValueError), match="bfloat17"):
        tkg.ArraySpec((2, 3), "bfloat17")


def test_numpy_and_torch_do_not_mix() -> None:
    call = Case(name="mixed").inputs(invalid=0.0)
    call["W_out"] = torch.from_numpy(call["W_out"])
    call["pos_ids"] = torch.from_numpy(call["pos_ids"])
    with pytest.raises(TypeError, match="W_out") as caught:
        tkg.attention_block_tkg(**call)
    assert "pos_ids" in str(caught.value)


def test_a_description_cannot_be_run() -> None:
    call = Case(name="described").inputs(invalid=0.0)
    call["X"] = tkg.ArraySpec(call["X"].shape, "float32")
    with pytest.raises((TypeError, ValueError), match="ArraySpec|spec|kind"):
        tkg.attention_block_tkg(**call)


def test_unsupported_carries_every_reason() -> None:
    error = tkg.Unsupported("op", {"cuda": ["no GPU", "no Triton"]}, ["cpu"])
    assert isinstance(error, NotImplementedError)
    for text in ("op", "cuda", "no GPU", "no Triton", "cpu"):
        assert text in str(error)
