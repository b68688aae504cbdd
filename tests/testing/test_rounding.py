"""The grids that budgets are made on, against the dtypes themselves."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import oracle
from tkg.testing.rounding import error_before_rounding, round_to, step, unit_roundoff

DTYPES = ("float16", "bfloat16", "float8_e4m3", "float8_e4m3fn")


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def every_value(name: str) -> np.ndarray:
    """All finite values of a 16-bit or FP8 dtype, sorted, one zero."""
    dtype = dtype_of(name)
    codes = np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = codes.view(dtype).astype(np.float64)
    return np.unique(values[np.isfinite(values)] + 0.0)


@pytest.mark.parametrize("name", DTYPES)
def test_every_value_is_its_own_rounding(name: str) -> None:
    values = every_value(name)
    np.testing.assert_array_equal(round_to(values, name), values)
    np.testing.assert_array_equal(oracle.round_to(values, dtype_of(name)), values)


@pytest.mark.parametrize("name", DTYPES)
def test_neighbours_are_a_step_apart(name: str) -> None:
    values = every_value(name)
    positive = values[values >= 0]
    np.testing.assert_array_equal(np.diff(positive), step(positive[:-1], name))


@pytest.mark.parametrize("name", DTYPES)
def test_ties_go_to_even_and_nothing_rounds_twice(name: str) -> None:
    values = every_value(name)
    values = values[np.abs(values) < 240]
    middle = (values[1:] + values[:-1]) / 2
    codes = values.astype(dtype_of(name)).view(f"u{dtype_of(name).itemsize}")
    even = np.where(codes[1:] % 2 == 0, values[1:], values[:-1])
    np.testing.assert_array_equal(round_to(middle, name), even)
    # A nudge of 2^-40, which a detour through float32 would lose.
    nudge = np.abs(middle) * 2.0**-40
    np.testing.assert_array_equal(round_to(middle + nudge, name), values[1:])
    np.testing.assert_array_equal(round_to(middle - nudge, name), values[:-1])
    np.testing.assert_array_equal(oracle.round_to(middle + nudge, dtype_of(name)), values[1:])


@given(st.floats(-1e30, 1e30))
def test_float32_and_float16_are_numpys(value: float) -> None:
    assert round_to(np.array(value), "float32") == np.float64(np.float32(value))
    if abs(value) < 60000:
        assert round_to(np.array(value), "float16") == np.float64(np.float16(value))


@pytest.mark.parametrize("name", DTYPES)
def test_error_before_rounding(name: str) -> None:
    """0 inside the cell of a value, the distance to the cell outside of it."""
    values = every_value(name)
    values = values[np.abs(values) < 200]
    got, low, high = values[1:-1], values[:-2], values[2:]
    below, above = (got + low) / 2, (got + high) / 2
    for inside in (got, below, above):
        np.testing.assert_allclose(error_before_rounding(got, inside, name), 0, atol=1e-30)
    outside = error_before_rounding(got, high, name)
    np.testing.assert_allclose(outside, high - above, rtol=1e-12)
    outside = error_before_rounding(got, low, name)
    np.testing.assert_allclose(outside, below - low, rtol=1e-12)


@pytest.mark.parametrize("name", ["float32", *DTYPES])
def test_unit_roundoff_is_half_the_gap_above_one(name: str) -> None:
    assert unit_roundoff(name) == step(np.array(1.0), name) / 2
