"""FP8 weights with a scale for each column: to the nearest, and calibrated."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tkg.runner import quantisation
from tkg.runner.quantisation import Calibrated, cholesky, nearest, row_quantised

INPUTS, OUTPUTS, TOKENS = 150, 40, 1000


def test_the_largest_value_of_a_row_is_fp8s_largest() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 64)) * np.logspace(-9, 9, 50)[:, None]
    quantised, scale = row_quantised(rows.astype(np.float32))
    assert (quantised.dtype, scale.dtype) == (ml_dtypes.float8_e4m3, np.float32)
    np.testing.assert_array_equal(np.abs(quantised.astype(np.float32)).max(axis=1), 240)
    back = quantised.astype(np.float32) * scale[:, None]
    # Four significant bits; below 2^-6 * scale, FP8's spacing is 2^-9.
    bound = np.maximum(np.abs(rows) * 2.0**-4, scale[:, None] * 2.0**-10)
    assert np.all(np.abs(back - rows) <= bound * (1 + 2.0**-20))


def test_a_row_of_zeros_stays_zero() -> None:
    rows = np.zeros((2, 8), np.float16)
    rows[1] = 3
    quantised, scale = row_quantised(rows)
    assert not np.any(quantised[0].astype(np.float32))
    np.testing.assert_array_equal(scale, np.array([1.0, 3.0 / 240.0], np.float32))


def test_the_rows_given_are_not_changed() -> None:
    rows = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
    before = rows.copy()
    row_quantised(rows)
    np.testing.assert_array_equal(rows, before)


def correlated(seed: int, tokens: int = TOKENS) -> np.ndarray:
    """Inputs `[tokens, INPUTS]` with 30 directions and three features that outweigh the others."""
    directions = np.random.default_rng(99).standard_normal((30, INPUTS))
    directions[:, [3, 70, 149]] *= 30
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, 30)) @ directions + 0.5 * rng.standard_normal((tokens, INPUTS))
    return x.astype(np.float32)


def some_rows(count: int = OUTPUTS) -> np.ndarray:
    rows = np.random.default_rng(5).standard_normal((count, INPUTS)).astype(np.float32)
    return rows * np.logspace(-3, 3, count, dtype=np.float32)[:, None]


def moments_of(x: np.ndarray) -> np.ndarray:
    return x.T @ x


def back(quantised: np.ndarray, scale: np.ndarray) -> np.ndarray:
    assert (quantised.dtype, scale.dtype) == (ml_dtypes.float8_e4m3, np.float32)
    values = quantised.astype(np.float64)
    assert np.isfinite(values).all() and np.isfinite(scale).all() and (scale > 0).all()
    return values * scale[:, None]


def output_error(x: np.ndarray, rows: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Of each column's outputs, relative: `[out]`."""
    want = x.astype(np.float64) @ rows.T
    return np.linalg.norm(x @ got.T - want, axis=0) / np.linalg.norm(want, axis=0)


def test_nearest_is_the_cast_to_fp8() -> None:
    grid = np.unique(np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3).astype(np.float32))
    grid = grid[np.isfinite(grid)]
    between = (grid[1:] + grid[:-1]) / 2  # ties
    x = np.concatenate([grid, between, np.nextafter(between, -999), np.nextafter(between, 999)])
    rng = np.random.default_rng(0)
    x = np.concatenate([x, rng.uniform(-260, 260, 9999), rng.normal(0, 0.01, 9999)])
    x = np.concatenate([x, [0.0, -0.0, 1e-40, 1e30]]).astype(np.float32)
    want = np.clip(x, -240, 240).astype(ml_dtypes.float8_e4m3).astype(np.float32)
    np.testing.assert_array_equal(nearest(x), want)


@pytest.mark.parametrize("size", [1, 127, 128, 129, 300])
def test_the_triangle_is_lapacks(size: int) -> None:
    x = np.random.default_rng(size).standard_normal((400, size))
    matrix = x.T @ x + 20 * np.eye(size)
    want = np.linalg.cholesky(matrix)
    lower = np.tril(cholesky(matrix.astype(np.float32)))
    np.testing.assert_allclose(lower, want, rtol=0, atol=1e-5 * want.max())


def test_outputs_change_less_than_by_the_nearest() -> None:
    """Also on other inputs of the same kind; with the moments of another kind they do not."""
    rows, other = some_rows(), correlated(2)
    plain = output_error(other, rows, back(*row_quantised(rows)))
    good = output_error(other, rows, back(*Calibrated(moments_of(correlated(1)))(rows)))
    assert np.median(good / plain) < 0.4 and (good < plain).all()
    shuffled = correlated(1)[:, np.random.default_rng(0).permutation(INPUTS)]
    wrong = output_error(other, rows, back(*Calibrated(moments_of(shuffled))(rows)))
    assert np.median(wrong / plain) > 0.8


def gptq(rows: np.ndarray, scale: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """GPTQ as its paper has it: the inverse's Cholesky factor, one input after the other."""
    h = moments.astype(np.float64)
    h += quantisation.DAMPING * np.diag(h).mean() * np.eye(len(h))
    order = np.argsort(np.diag(h), kind="stable")[::-1]
    factor = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    left = (rows / scale[:, None]).astype(np.float64)[:, order]
    done = np.empty_like(left)
    for i in range(len(h)):
        done[:, i] = np.clip(left[:, i], -240, 240).astype(ml_dtypes.float8_e4m3)
        error = (left[:, i] - done[:, i]) / factor[i, i]
        left[:, i:] -= error[:, None] * factor[i, i:]
    found = np.empty_like(done)
    found[:, order] = done
    return found


@pytest.mark.parametrize("slice_", [4096, 7])
def test_it_is_gptq(slice_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "SLICE", slice_)
    rows, moments = some_rows(), moments_of(correlated(3))
    quantised, scale = Calibrated(moments)(rows)
    want = gptq(rows, scale, moments)
    got = quantised.astype(np.float64)
    # Where a value is all but halfway, float32 may decide otherwise, and a few that follow with it.
    assert np.mean(got == want) > 0.99
    assert np.mean(got == row_quantised(rows)[0].astype(np.float64)) < 0.9


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30, 0.0])
def test_inputs_that_are_alike_and_unrelated_give_the_nearest(size: float) -> None:
    """0: inputs that were never other than zero."""
    rows = some_rows()
    moments = np.eye(INPUTS, dtype=np.float32) * np.float32(size)
    quantised, scale = Calibrated(moments)(rows)
    want = (rows / scale[:, None]).astype(ml_dtypes.float8_e4m3)
    np.testing.assert_array_equal(quantised.astype(np.float32), want.astype(np.float32))


def test_the_scale_is_the_best_of_an_octave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "SCALED_BY", 1)
    rows = some_rows()
    weights = np.random.default_rng(2).uniform(0.1, 10, INPUTS).astype(np.float32)
    found = Calibrated(np.diag(weights))(rows)[1]
    damped = weights + quantisation.DAMPING * weights.mean()
    least = np.abs(rows).max(axis=1) / 240

    def loss(scale: np.ndarray) -> np.ndarray:
        stored = np.clip(rows / scale[:, None], -240, 240).astype(ml_dtypes.float8_e4m3)
        return ((stored.astype(np.float64) * scale[:, None] - rows) ** 2) @ damped

    losses = [loss(least * 2 ** (k / quantisation.SCALES)) for k in range(quantisation.SCALES)]
    np.testing.assert_allclose(loss(found), np.min(losses, axis=0), rtol=1e-3)
    assert np.all(found >= least * 0.999) and np.all(found < least * 2)
    assert len(set(np.round(8 * np.log2(found / least)))) > 3


def degenerate(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and rows."""
    x, rows = correlated(4), some_rows()
    if kind == "dead inputs":
        x[:, ::3] = 0
    elif kind == "one token":
        x = x[:1]
    elif kind == "equal inputs":
        x[:] = x[:, :1]
    elif kind == "constant columns":
        rows[:] = rows[:, :1]
    elif kind == "columns of zeros":
        rows[::2] = 0
    elif kind == "one input":
        x, rows = x[:, :1], rows[:, :1]
    elif kind == "tiny weights":
        rows *= np.float32(1e-38)
    return x, rows


@pytest.mark.parametrize(
    "kind",
    [
        *("dead inputs", "one token", "equal inputs", "constant columns"),
        *("columns of zeros", "one input", "tiny weights"),
    ],
)
def test_degenerate_inputs(kind: str) -> None:
    x, rows = degenerate(kind)
    moments = moments_of(x)
    got = back(*Calibrated(moments)(rows))
    damping = quantisation.DAMPING * np.diag(moments).mean() * np.eye(len(moments))

    def loss(values: np.ndarray) -> np.ndarray:
        error = values - rows
        return ((error @ (moments + damping)) * error).sum(axis=1)

    plain = loss(back(*row_quantised(rows)))
    assert np.all(loss(got) <= plain * 1.2 + 1e-30) and loss(got).sum() <= plain.sum()
    assert not np.any(got[~rows.any(axis=1)])


def test_the_same_moments_give_the_same_bits() -> None:
    rows, moments = some_rows(), moments_of(correlated(6))
    (one, scale), (other, again) = (Calibrated(moments)(rows) for _ in range(2))
    np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))
    np.testing.assert_array_equal(scale, again)
