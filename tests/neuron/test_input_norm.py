"""The hidden states on the chip and their RMSNorm, from HBM and from SBUF, on one core and two."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.neuron.on_chip import close, on_cores, put, rng, rounded, values_of
from tkg.backends.neuron.input_norm_tkg import HiddenSplit, input_norm_tkg, load_gamma, load_hidden

BF16 = ml_dtypes.bfloat16
HIDDEN = [1, 7, 127, 128, 129, 131, 576, 1000, 2880]  # several not multiples of 128
EVEN = [2, 126, 128, 254, 576, 1000, 2880]  # what two cores take


def whole(parts: list[tuple[Any, ...]], rows: int, hidden: int) -> np.ndarray:
    """[R, H] from what each core returned: (x [P, J, R], first column, width). Each element of H
    comes from one core; what lies beyond H is 0."""
    result = np.full((rows, hidden), np.nan)
    for x, first, width in parts:
        for p, j in np.ndindex(x.shape[:2]):
            h = p * width + first + j
            if h < hidden and first + j < width:
                assert np.isnan(result[:, h]).all()
                result[:, h] = x[p, j].astype(np.float64)
            else:
                assert not x[p, j].any()
    assert not np.isnan(result).any()
    return result


def norm_of(
    X: np.ndarray,
    gamma: np.ndarray | None,
    hidden: int,
    lnc: int,
    eps: float | None = 1e-5,
    all_here: bool = False,
) -> np.ndarray:
    """What the chip makes of X [R, H'], of which `hidden` count. eps None: no norm. `all_here`:
    both cores have all of X."""

    def body(sbm, X, gamma=None):
        rows = X.shape[0]
        split = HiddenSplit(hidden, X.shape[1])
        both = load_hidden(sbm, X, split.both(), rows, True) if all_here else None
        if both is not None:
            x = both[:, split.first : split.first + split.count, :]
        else:
            x = load_hidden(sbm, X, split, rows, eps is not None)
        if eps is not None:
            weight = None if gamma is None else load_gamma(sbm, gamma, split)
            x = input_norm_tkg(sbm, x, split, weight, eps, whole=both)
        return values_of(x), split.first, split.width

    given = [X] if gamma is None else [X, gamma]
    return whole(on_cores(body, *given, lnc=lnc), len(X), hidden)


def wanted(X: np.ndarray, gamma: np.ndarray | None, hidden: int, eps: float) -> np.ndarray:
    x = X[:, :hidden].astype(np.float64)
    y = x / np.sqrt((x**2).mean(1, keepdims=True) + eps)
    return y if gamma is None else y * gamma[:, :hidden].astype(np.float64)


CASES = [(1, h) for h in HIDDEN] + [(2, h) for h in EVEN]


@pytest.mark.parametrize("with_gamma", [False, True])
@pytest.mark.parametrize("lnc, hidden", CASES)
def test_norm(lnc: int, hidden: int, with_gamma: bool) -> None:
    X = 0.01 * rng().standard_normal((3, hidden)).astype(np.float32)
    gamma = (1 + rng(1).standard_normal((1, hidden))).astype(np.float32) if with_gamma else None
    close(norm_of(X, gamma, hidden, lnc), wanted(X, gamma, hidden, 1e-5))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("hidden", EVEN)
def test_norm_where_both_cores_have_all_of_x(hidden: int, rows: int) -> None:
    X = 0.01 * rng().standard_normal((rows, hidden)).astype(np.float32)
    gamma = (1 + rng(1).standard_normal((1, hidden))).astype(np.float32)
    close(norm_of(X, gamma, hidden, 2, all_here=True), wanted(X, gamma, hidden, 1e-5))


@pytest.mark.parametrize("lnc, hidden", CASES)
def test_norm_of_one_row(lnc: int, hidden: int) -> None:
    X = rng().standard_normal((1, hidden)).astype(BF16)
    got, true = norm_of(X, None, hidden, lnc), wanted(X, None, hidden, 1e-5)
    close(got, rounded(true, BF16), 2**-8)


@pytest.mark.parametrize("lnc, hidden", CASES)
def test_loading_alone_changes_nothing(lnc: int, hidden: int) -> None:
    X = rng().standard_normal((2, hidden)).astype(BF16)
    np.testing.assert_array_equal(norm_of(X, None, hidden, lnc, None), X.astype(np.float64))


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("padded, hidden", [(3072, 2880), (256, 130), (1024, 1000), (640, 576)])
def test_padding_is_not_read(padded: int, hidden: int, lnc: int) -> None:
    """NaN beyond the true hidden size, in X and in gamma."""
    X = np.full((2, padded), np.nan, np.float32)
    gamma = np.full((1, padded), np.nan, np.float32)
    X[:, :hidden] = rng().standard_normal((2, hidden))
    gamma[:, :hidden] = rng(1).standard_normal((1, hidden))
    close(norm_of(X, gamma, hidden, lnc, 1e-6), wanted(X, gamma, hidden, 1e-6))


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("dtype", [BF16, np.float16])
def test_narrow_dtypes_are_rounded_once_at_the_end(dtype: type, lnc: int) -> None:
    """Within one rounding of the true value, and float32's own error."""
    X = rng().standard_normal((2, 256)).astype(dtype)
    gamma = (1 + 0.1 * rng(1).standard_normal((1, 256))).astype(dtype)
    got, true = norm_of(X, gamma, 256, lnc), wanted(X, gamma, 256, 1e-5)
    low, high = true - 1e-6 * np.abs(true), true + 1e-6 * np.abs(true)
    assert (got >= rounded(low, dtype)).all() and (got <= rounded(high, dtype)).all()


@pytest.mark.parametrize("lnc", [1, 2])
def test_as_many_rows_as_there_may_be(lnc: int) -> None:
    X = rng().standard_normal((128, 512)).astype(np.float32)
    close(norm_of(X, None, 512, lnc), wanted(X, None, 512, 1e-5))


@pytest.mark.parametrize("lnc", [1, 2])
def test_zeros_stay_zeros(lnc: int) -> None:
    assert not norm_of(np.zeros((2, 256), np.float32), None, 256, lnc, 1e-6).any()


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("hidden", [512, 500])
def test_hidden_states_that_are_in_sbuf(hidden: int, lnc: int) -> None:
    """[128, R, J] with h = p*J + j; `hidden` may be less than 128*J."""
    rows, width = 3, 4
    X = np.full((rows, 128 * width), np.nan, np.float32)
    X[:, :hidden] = rng().standard_normal((rows, hidden))

    def body(sbm):
        on_chip = put(sbm, X.reshape(rows, 128, width).transpose(1, 0, 2).copy())
        split = HiddenSplit(hidden, hidden, width)
        x = input_norm_tkg(sbm, load_hidden(sbm, on_chip, split, rows), split, None, 1e-5)
        return values_of(x), split.first, split.width

    got = whole(on_cores(body, lnc=lnc), rows, hidden)
    close(got, wanted(X, None, hidden, 1e-5))


@settings(max_examples=60)
@given(st.integers(1, 5000), st.sampled_from([1, 2]))
def test_every_hidden_feature_has_one_place(hidden: int, lnc: int) -> None:
    """`spans` and `height` tell of the same elements, and both cores of the same instructions."""
    hidden += hidden % lnc

    def body(sbm):
        split = HiddenSplit(hidden, hidden)
        found = []
        for p, partitions, j, columns in split.spans(0, split.count):
            places = np.arange(p, p + partitions)[:, None] * split.width + split.first
            found += (places + np.arange(j, j + columns)).ravel().tolist()
        heights = [split.height(j) for j in range(split.count)]
        assert split.partitions() <= 128
        assert sum(heights) == len(found)
        return found, len(split.spans(0, split.count)), split.count

    results = on_cores(body, lnc=lnc)
    assert sorted(sum((found for found, _, _ in results), [])) == list(range(hidden))
    assert len({(spans, count) for _, spans, count in results}) == 1
