"""FP8 weights with a scale for each column."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tkg.runner.weights import row_quantised


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
