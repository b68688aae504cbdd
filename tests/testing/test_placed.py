"""NumPy calls on a backend that takes torch tensors only: here the reference plays one."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import tkg
from tests.calls import same_bits
from tkg.testing import placed
from tkg.testing.case import Case
from tkg.testing.cases import find
from tkg.testing.verify import verify_cases

DTYPES = ("float32", "float16", "int32", "int64", "uint32", "uint8", "bool")
EXTENDED = ("bfloat16", "float8_e4m3", "float8_e4m3fn")


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend that is given tensors on the CPU."""
    known = placed.device_of
    monkeypatch.setattr(placed, "device_of", lambda b: "cpu" if b == "reference" else known(b))
    return "reference"


@pytest.mark.parametrize("name", [*DTYPES, *EXTENDED])
def test_there_and_back_is_the_same_array(torch_only: str, name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    size = dtype.itemsize
    codes = np.random.default_rng(0).integers(0, 256, (3, 8 * size), np.uint8)
    array = (codes % 2 if name == "bool" else codes).view(dtype)
    given = placed.on(torch_only, array)
    assert isinstance(given, torch.Tensor | tkg.Float8E4M3)
    assert same_bits(placed.back(given), array)


@pytest.mark.parametrize("name", EXTENDED)
def test_strides_stay(torch_only: str, name: str) -> None:
    wide = np.zeros((4, 6, 8), getattr(ml_dtypes, name))
    given = placed.on(torch_only, wide[1::2, :3].transpose(1, 0, 2))
    tensor = getattr(given, "bits", given)
    assert tensor.shape == (3, 2, 8)
    assert tensor.stride() == (8, 96, 1)


def test_a_call_runs_as_tensors_and_comes_back(
    torch_only: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Case(name="placed", cache_dtype="float8_e4m3").inputs()
    before = call["K_cache"].copy()
    got = placed.attention_block(call, torch_only)
    assert same_bits(call["K_cache"], before)
    monkeypatch.undo()
    for ours, theirs in zip(got, placed.attention_block(call, "reference"), strict=True):
        assert same_bits(ours, theirs)


def test_backends_on_the_host_get_the_arrays_themselves() -> None:
    call = Case(name="host").inputs()
    assert placed.on("reference", call) is call


def test_verify_goes_through_tensors(torch_only: str) -> None:
    cases = [find(name) for name in ("group-5", "projection-row")]
    assert all(row.checks and row.ok for row in verify_cases(cases, torch_only))
