"""Constant matrices made on the chip, and multiplying by them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.neuron.on_chip import close, on_cores, put, rng, values_of
from tkg.backends.neuron.matrices import (
    apply_matrix,
    filled,
    identity,
    rotation,
    selection,
    spread_row,
)

SIZES = [2, 4, 6, 64, 80, 126, 128]


def turned(x: np.ndarray, contiguous: bool) -> np.ndarray:
    """Each pair (r, i) of x's first axis as (-i, r)."""
    half = len(x) // 2
    first = slice(0, half) if contiguous else slice(0, None, 2)
    second = slice(half, None) if contiguous else slice(1, None, 2)
    y = np.empty_like(x)
    y[first], y[second] = -x[second], x[first]
    return y


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("d", SIZES)
def test_rotation(d: int, contiguous: bool) -> None:
    x = rng().standard_normal((d, 7)).astype(np.float32)

    def body(sbm):
        ones = filled(sbm, (d, d), 1.0, "ones")
        matrix = rotation(sbm, d, contiguous, ones, "turn")
        return values_of(apply_matrix(sbm, matrix, put(sbm, x), "y"))

    (got,) = on_cores(body)
    np.testing.assert_array_equal(got, turned(x, contiguous))


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("d", SIZES)
def test_selection(d: int, parity: int) -> None:
    x = rng().standard_normal((d, 5)).astype(np.float32)

    def body(sbm):
        return values_of(apply_matrix(sbm, selection(sbm, d, parity, "m"), put(sbm, x), "y"))

    (got,) = on_cores(body)
    np.testing.assert_array_equal(got, x[parity::2])


@pytest.mark.parametrize("size", [1, 2, 5, 128])
def test_identity(size: int) -> None:
    def body(sbm):
        return values_of(identity(sbm, filled(sbm, (size, size), 1.0, "ones"), "i"))

    (got,) = on_cores(body)
    np.testing.assert_array_equal(got, np.eye(size, dtype=np.float32))


def test_filled() -> None:
    (got,) = on_cores(lambda sbm: values_of(filled(sbm, (5, 2, 3), -7.5, "f")))
    np.testing.assert_array_equal(got, np.full((5, 2, 3), -7.5, np.float32))


@pytest.mark.parametrize("columns", [1, 512, 513, 1200])
def test_any_matrix_and_more_columns_than_a_bank_holds(columns: int) -> None:
    matrix = rng().standard_normal((96, 40)).astype(np.float32)
    x = rng(1).standard_normal((96, columns)).astype(np.float32)

    def body(sbm):
        return values_of(apply_matrix(sbm, put(sbm, matrix), put(sbm, x), "y"))

    (got,) = on_cores(body)
    close(got, matrix.T.astype(np.float64) @ x)


@pytest.mark.parametrize("columns", [1, 600])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
def test_a_row_on_many_partitions(dtype: type, columns: int) -> None:
    """Integers below 2^24 come through exactly."""
    row = rng().integers(0, 200, (1, columns)).astype(dtype)
    row[0, -1] = 255 if dtype is np.uint8 else (1 << 24) - 1

    def body(sbm):
        return values_of(spread_row(sbm, put(sbm, row), 128, "wide"))

    (got,) = on_cores(body)
    np.testing.assert_array_equal(got, np.repeat(row.astype(np.float32), 128, axis=0))
