"""Reductions, softmax, RMS norm, matmul."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.language as nl
from nkisim import NkiValidationError
from tests.nkisim.harness import execute, tile, values_of

BF16 = ml_dtypes.bfloat16
RNG = np.random.default_rng(13)
REDUCTIONS = {
    "sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod, "mean": np.mean,
}  # fmt: skip


def numbers(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [2, -1, (1, 2), [1, 2]])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, axis: Any, keepdims: bool) -> None:
    x = numbers((6, 4, 10))

    def body() -> np.ndarray:
        return values_of(getattr(nl, name)(tile(x), axis=axis, keepdims=keepdims))

    got = execute(body)
    axes = tuple(axis) if isinstance(axis, list) else axis
    wanted = REDUCTIONS[name](x.astype(np.float64), axis=axes, keepdims=keepdims)
    # A tile has two dimensions at least.
    assert got.shape == (wanted.shape if wanted.ndim > 1 else (6, 1))
    np.testing.assert_allclose(got, wanted.reshape(got.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [BF16, np.float16])
def test_a_mean_is_float32_inside(dtype: Any) -> None:
    x = np.full((2, 4000), 300, dtype)  # the sum overflows float16, and bfloat16 would stall

    def body() -> list[np.ndarray]:
        a = tile(x)
        return [values_of(nl.mean(a, axis=1)), values_of(nl.sum(a, axis=1, dtype=nl.float32))]

    mean, total = execute(body)
    assert mean.dtype == np.dtype(dtype) and (mean == 300).all() and (total == 1.2e6).all()


def test_a_windowed_maximum_reads_a_4d_pattern() -> None:
    """The pooling tutorials: p, rows, columns, and a window of two dimensions."""
    x = numbers((3, 6, 6))

    def body() -> np.ndarray:
        windows = tile(x).ap([[36, 3], [12, 3], [2, 3], [6, 2], [1, 2]])
        return values_of(nl.max(windows, axis=[3, 4]))

    wanted = x.reshape(3, 3, 2, 3, 2).max(axis=(2, 4))
    np.testing.assert_array_equal(execute(body), wanted)


@pytest.mark.parametrize(("columns", "kept"), [(7, 1), (1300, 1), (33, 4), (513, 2)])
def test_var_ignores_keepdims(columns: int, kept: int) -> None:
    """LANG: the reduced dimensions stay as size 1, whatever keepdims says."""
    x = numbers((5, kept, columns)) * 3 + 10

    def body() -> np.ndarray:
        return values_of(nl.var(tile(x), axis=2))

    got = execute(body)
    assert got.shape == (5, kept, 1)
    np.testing.assert_allclose(got, x.astype(np.float64).var(axis=2, keepdims=True), rtol=1e-4)


def test_var_of_a_strided_tile() -> None:
    x = numbers((4, 20))

    def body() -> np.ndarray:
        return values_of(nl.var(tile(x)[:, 0:20:3], axis=1, dtype=nl.float32, keepdims=False))

    np.testing.assert_allclose(execute(body)[:, 0], x[:, ::3].astype(float).var(axis=1), rtol=1e-4)


def test_all() -> None:
    x = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0]], np.float32)

    def body() -> np.ndarray:
        return values_of(nl.all(tile(x), axis=1, dtype=nl.uint8))

    assert execute(body).tolist() == [[1], [0], [0]]


@pytest.mark.parametrize("axis", [0, 1, (0, 1), 3, (0, 1, 2), ()])
@pytest.mark.parametrize("name", ["sum", "max", "mean", "var", "all", "softmax"])
def test_axes_are_the_last_free_ones_f60(name: str, axis: Any) -> None:
    """F60: true axis numbers, trailing, never the partitions."""
    with pytest.raises(NkiValidationError, match=f"{name}: axis: got"):
        execute(lambda: getattr(nl, name)(tile(numbers((4, 5, 6))), axis=axis))


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("axis", [-1, 2, (1, 2)])
def test_softmax(axis: Any, dtype: Any) -> None:
    x = (numbers((6, 5, 7)) * 20).astype(dtype)

    def body() -> np.ndarray:
        return values_of(nl.softmax(tile(x), axis=axis))

    got = execute(body)
    assert got.dtype == np.dtype(dtype)
    wide = x.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=axis, keepdims=True))
    wanted = powers / powers.sum(axis=axis, keepdims=True)
    tolerance = 2.0**-7 if dtype is BF16 else 1e-5
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=tolerance, atol=1e-7)


def test_softmax_of_a_row_defaults_to_the_last_axis() -> None:
    x = numbers((4, 512))
    got = execute(lambda: values_of(nl.softmax(tile(x), dtype=nl.float32)))
    powers = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(got, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("inner", [None, nl.bfloat16])
def test_rms_norm(rows: int, inner: str | None) -> None:
    x, w = numbers((8, 48)), numbers((rows, 48))

    def body() -> np.ndarray:
        norm = nl.rms_norm(tile(x), tile(w), axis=1, n=48, epsilon=1e-3, compute_dtype=inner)
        return values_of(norm)

    wide = x.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).sum(axis=1, keepdims=True) / 48 + 1e-3)
    tolerance = 1e-5 if inner is None else 2.0**-8
    np.testing.assert_allclose(execute(body), wanted * w, rtol=tolerance)


def test_rms_norm_divides_by_n() -> None:
    """A row padded with zeros: n counts the real elements."""
    x = np.zeros((2, 8), np.float32)
    x[:, :4] = 2
    ones = np.ones((2, 8), np.float32)
    got = execute(lambda: values_of(nl.rms_norm(tile(x), tile(ones), 1, 4, dtype=nl.float16)))
    np.testing.assert_allclose(got, x / 2, rtol=1e-3)


def test_rms_norm_refuses() -> None:
    with pytest.raises(NkiValidationError, match="rms_norm: axis: 2"):
        execute(lambda: nl.rms_norm(tile(numbers((4, 5, 6))), tile(numbers((4, 5, 6))), 2, 6))
    with pytest.raises(NkiValidationError, match=r"rms_norm: w: shape \[4, 7\]"):
        execute(lambda: nl.rms_norm(tile(numbers((4, 6))), tile(numbers((4, 7))), 1, 6))


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_matmul(dtype: Any) -> None:
    x, y = numbers((100, 70), dtype), numbers((100, 300), dtype)

    def body() -> tuple[bool, np.ndarray]:
        product = nl.matmul(tile(x), tile(y), transpose_x=True)
        return product.buffer is nl.psum, values_of(nl.copy(product))

    in_psum, got = execute(body)
    assert in_psum and got.dtype == np.float32
    wanted = x.astype(np.float64).T @ y.astype(np.float64)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_matmul_needs_x_transposed_f58() -> None:
    """F58: nl.matmul(x, y) alone fails, as on AWS."""
    with pytest.raises(NkiValidationError, match="matmul: transpose_x: got False"):
        execute(lambda: nl.matmul(tile(numbers((8, 8))), tile(numbers((8, 8)))))
