"""The QKV projection alone, on hidden states in SBUF, on one core and two."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.neuron.on_chip import close, on_cores, rng, values_of
from tkg.backends.neuron import qkv_projection_tkg as qkv_module
from tkg.backends.neuron.input_norm_tkg import HiddenSplit, load_hidden
from tkg.backends.neuron.qkv_projection_tkg import QkvScales, qkv_projection_tkg
from tkg.contract.quantization import QuantizationType

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3
NONE, STATIC, ROW = QuantizationType.NONE, QuantizationType.STATIC, QuantizationType.ROW
SECTIONS = (3, 2, 32)  # query heads, KV heads, d_head
COLUMNS = (3 + 2 * 2) * 32


def project(
    X: np.ndarray, W: np.ndarray, lnc: int = 1, mode: QuantizationType = NONE,
    sections: tuple[int, int, int] = SECTIONS, hidden: int | None = None, **scales: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """[R, columns] of X [R, H'] by the kernel; both cores must have the same answer. `scales`:
    bias, weight and input, where they are."""
    names = list(scales)

    def body(sbm, X, weight, *operands):
        split = HiddenSplit(hidden or X.shape[1], X.shape[1])
        x = load_hidden(sbm, X, split, X.shape[0])
        given: dict[str, Any] = dict(zip(names, operands, strict=True))
        three = (given.get(name) for name in ("bias", "weight", "input"))
        scaling = QkvScales(sbm, sections, mode, *three)
        qkv = qkv_projection_tkg(sbm, x, split, weight, sections, scaling)
        sbm.free_ring("qkv.weights")
        return values_of(qkv)

    parts = on_cores(body, X, W, *scales.values(), lnc=lnc)
    for part in parts[1:]:
        np.testing.assert_array_equal(part, parts[0])
    return parts[0].transpose(2, 1, 0).reshape(len(X), -1)


def draw(rows: int, hidden: int, columns: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    X = rng().standard_normal((rows, hidden)).astype(dtype)
    W = (rng(1).standard_normal((hidden, columns)) * hidden**-0.5).astype(dtype)
    return X, W


def exactly(X: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return X.astype(np.float64) @ weight.astype(np.float64)


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
@pytest.mark.parametrize(
    "lnc, hidden",
    [(1, 1), (1, 129), (1, 576), (1, 1000), (1, 2880), (2, 2), (2, 130), (2, 576), (2, 1000),
     (2, 2880)],
)  # fmt: skip
def test_any_hidden_size(lnc: int, hidden: int, dtype: type) -> None:
    X, W = draw(2, hidden, COLUMNS, dtype)
    close(project(X, W, lnc), exactly(X, W))


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("padded, hidden", [(3072, 2880), (256, 130), (1024, 1000), (640, 576)])
def test_padding_is_not_read(padded: int, hidden: int, lnc: int) -> None:
    """NaN in the columns of X and the rows of W beyond the true hidden size."""
    X, W = draw(2, padded, COLUMNS, BF16)
    X[:, hidden:], W[hidden:] = np.nan, np.nan
    got = project(X, W, lnc, hidden=hidden)
    close(got, exactly(X[:, :hidden], W[:hidden]))


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
def test_bias(dtype: type, lnc: int) -> None:
    X, W = draw(3, 256, COLUMNS, BF16)
    bias = rng(2).standard_normal((1, COLUMNS)).astype(dtype)
    close(project(X, W, lnc, bias=bias), exactly(X, W) + bias.astype(np.float64))


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("scale_rows", [1, 128])
@pytest.mark.parametrize("with_bias", [False, True])
def test_row_scales(with_bias: bool, scale_rows: int, lnc: int) -> None:
    X, W = draw(2, 1000, COLUMNS, BF16)
    W = (W.astype(np.float32) * 1000).astype(FP8)
    scale = np.repeat(rng(2).uniform(0.1, 3, (1, COLUMNS)), scale_rows, 0).astype(np.float32)
    wanted = exactly(X, W) * scale[:1]
    if not with_bias:
        close(project(X, W, lnc, ROW, weight=scale), wanted)
        return
    bias = rng(3).standard_normal((1, COLUMNS)).astype(np.float32)
    close(project(X, W, lnc, ROW, weight=scale, bias=bias), wanted + bias)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("scale_rows", [1, 128])
@pytest.mark.parametrize("scales", [1, 3])
def test_static_scales(scales: int, scale_rows: int, lnc: int) -> None:
    """One for all, or one for Q, K and V. X / input_scale is exact here, reaches beyond +-240, and
    lies half-way between two values of the grid in places (68, between 64 and 72)."""
    X, W = draw(2, 576, COLUMNS, BF16)
    X = np.round(X.astype(np.float32) * 100).astype(BF16)
    W = (W.astype(np.float32) * 1000).astype(FP8)
    given = np.repeat(np.array([[0.5, 0.02, 3.0][:scales]], np.float32), scale_rows, 0)
    step = np.full((scale_rows, 1), 0.25, np.float32)
    x = np.clip(X.astype(np.float64) / 0.25, -240, 240)
    assert (np.abs(x) == 240).any() and (np.abs(x) == 68).any()
    per_column = np.repeat(given[0], [96, 64, 64]) if scales == 3 else given[0]
    bias = rng(3).standard_normal((1, COLUMNS)).astype(np.float32)
    wanted = exactly(x.astype(FP8), W) * 0.25 * per_column + bias
    got = project(X, W, lnc, STATIC, weight=given, input=step, bias=bias)
    close(got[:, :96], wanted[:, :96])
    close(got[:, 96:160], wanted[:, 96:160])
    close(got[:, 160:], wanted[:, 160:])


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("x_dtype, w_dtype", [(np.float32, BF16), (np.float32, np.float16),
                                              (BF16, np.float32), (np.float16, BF16)])  # fmt: skip
def test_two_dtypes(x_dtype: type, w_dtype: type, lnc: int) -> None:
    """A float32 X keeps its digits beside narrow weights."""
    X, W = draw(2, 256, COLUMNS, np.float32)
    X, W = X.astype(x_dtype), W.astype(w_dtype)
    close(project(X, W, lnc), exactly(X, W))


@pytest.mark.parametrize(
    "rows, sections",
    [(128, (26, 1, 16)), (120, (27, 1, 2)), (1, (1, 1, 2)), (37, (2, 3, 128)), (100, (5, 15, 4))],
)
def test_as_many_sums_as_psum_holds(rows: int, sections: tuple[int, int, int]) -> None:
    """Several PSUM banks, not all of them full."""
    q, kv, d = sections
    X, W = draw(rows, 64, (q + 2 * kv) * d, BF16)
    close(project(X, W, sections=sections), exactly(X, W))


@pytest.mark.parametrize("lnc", [1, 2])
def test_more_transfers_than_the_ring_has_tiles(lnc: int, monkeypatch) -> None:
    monkeypatch.setattr(qkv_module, "RESERVE_BYTES", 1 << 20)  # no room for a deeper ring
    sections = (30, 1, 128)
    X, W = draw(1, 128 * 14, 32 * 128, BF16)
    close(project(X, W, lnc, sections=sections), exactly(X, W))
