"""FP8 and rounding in kernels, against ml_dtypes and torch: every code, every tie."""

from __future__ import annotations

import importlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import tkg
from tests.calls import BACKENDS, run, same_bits
from tkg.backends import cuda
from tkg.backends.cuda.tensors import in_words
from tkg.testing import placed
from tkg.testing.case import Case
from tkg.testing.rounding import round_to

pytestmark = pytest.mark.skipif("cuda" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cuda out")

CODES = np.arange(256, dtype=np.uint8)


def through(name: str, values: torch.Tensor, out: torch.Tensor, *constants: Any) -> np.ndarray:
    """What one of the probes of `probes.py` makes of `values`."""
    probe = getattr(importlib.import_module("tests.backends.cuda.probes"), name)
    out = out.to(cuda.device())
    with np.errstate(all="ignore"):
        probe[(1,)](values.to(cuda.device()), out, values.numel(), *constants)
    return out.cpu().numpy()


@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e4m3fn"])
def test_every_code_is_widened_exactly(name: str) -> None:
    got = through("decode", torch.from_numpy(CODES), torch.empty(256), name == "float8_e4m3fn")
    want = CODES.view(getattr(ml_dtypes, name)).astype(np.float32)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e4m3fn"])
def test_every_code_is_widened_exactly_in_every_place_of_a_word(name: str) -> None:
    codes = np.concatenate([np.roll(CODES, shift) for shift in range(4)])
    words = torch.from_numpy(codes).view(torch.int32)
    got = through("decode_words", words, torch.empty(1024), name == "float8_e4m3fn")
    want = codes.view(getattr(ml_dtypes, name)).astype(np.float32)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


def test_bytes_are_taken_as_words_only_where_all_rows_are_whole_words() -> None:
    data = torch.arange(96, dtype=torch.uint8).reshape(4, 24)
    words = in_words(data)
    assert words is not None and words.data_ptr() == data.data_ptr() and words.stride() == (6, 1)
    assert in_words(data[:, 4:12]) is not None
    for other in (data[:, 1:9], data[:, :6], data.T, data[:, ::2], data.view(torch.int8)):
        assert in_words(other) is None
    assert in_words(torch.zeros(40, dtype=torch.uint8).as_strided((2, 4), (6, 1))) is None


@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e4m3fn"])
def test_words_and_bytes_give_the_same_bits(name: str) -> None:
    """Weights and caches whose rows do not begin at whole words."""
    case = Case(
        name="words", dtype="bfloat16", cache_dtype=name, qkv="ROW", out="ROW", q_heads=4,
        kv_heads=2, d_head=16, hidden=64, capacity=48, lengths=(40, 7),
    )  # fmt: skip
    call: dict[str, Any] = case.inputs() | {"update_cache": False}
    moved = dict(call)
    for field in ("W_qkv", "W_out", "K_cache", "V_cache"):
        wider = np.zeros((*call[field].shape[:-1], call[field].shape[-1] + 1), call[field].dtype)
        wider[..., :-1] = call[field]
        moved[field] = wider[..., :-1]
    out = placed.back(tkg.attention_block_tkg(**placed.on("cuda", moved), backend="cuda")[0])
    assert same_bits(out, run("cuda", call)[0])


def encode(values: np.ndarray) -> np.ndarray:
    size = 1 << (len(values) - 1).bit_length()
    padded = np.zeros(size, np.float32)
    padded[: len(values)] = values
    return through("encode", torch.from_numpy(padded), torch.empty(size, dtype=torch.uint8))[
        : len(values)
    ]


def test_ties_and_their_neighbours_are_rounded_to_even() -> None:
    grid = CODES.view(ml_dtypes.float8_e4m3).astype(np.float32)
    grid = np.unique(grid[np.isfinite(grid)])
    middle = (grid[1:] + grid[:-1]) / 2
    values = [grid, middle, np.nextafter(middle, np.float32(9e9)), np.nextafter(middle, -np.inf)]
    values = np.concatenate(values).astype(np.float32)
    got = encode(values).view(ml_dtypes.float8_e4m3).astype(np.float64)
    np.testing.assert_array_equal(got, round_to(values, "float8_e4m3"))


def test_random_numbers_are_clipped_and_rounded() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(8000) * 10.0 ** rng.uniform(-6, 4, 8000)).astype(np.float32)
    got = encode(values).view(ml_dtypes.float8_e4m3).astype(np.float64)
    np.testing.assert_array_equal(got, round_to(np.clip(values, -240, 240), "float8_e4m3"))


def test_infinity_is_clipped_and_nan_stays() -> None:
    values = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45], np.float32)
    codes = encode(values)
    for dtype in (ml_dtypes.float8_e4m3, ml_dtypes.float8_e4m3fn):
        got = codes.view(dtype).astype(np.float32)
        np.testing.assert_array_equal(got, [240, -240, np.nan, 0, 0, 0])
    assert codes[4] == 0x80


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_16_bits(dtype: torch.dtype) -> None:
    """The interpreter would cut bfloat16 off; the kernels' own function rounds, NaN and Inf too."""
    rng = np.random.default_rng(1)
    values = (rng.standard_normal(4096) * 10.0 ** rng.uniform(-30, 30, 4096)).astype(np.float32)
    values[:4] = [np.nan, np.inf, -np.inf, 3.4e38]
    given = torch.from_numpy(values)
    got = through("round_16", given, torch.empty(4096), dtype == torch.bfloat16)
    np.testing.assert_array_equal(got, given.to(dtype).float().numpy())
