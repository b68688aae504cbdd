"""Which tokens are drawn, and how often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tkg.runner.sampler import Sampler

LOGITS = np.log(np.array([0.1, 0.5, 0.05, 0.3, 0.05])).astype(np.float32)


def frequencies(sampler: Sampler, count: int = 4000) -> np.ndarray:
    return np.bincount([sampler(LOGITS) for _ in range(count)], minlength=5) / count


def test_zero_temperature_takes_the_likeliest() -> None:
    assert {Sampler()(LOGITS) for _ in range(20)} == {1}
    assert Sampler()(np.array([0.0, 3.0, 3.0])) == 1  # the first of equals


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_temperature(temperature: float) -> None:
    want = np.exp(LOGITS / temperature)
    want /= want.sum()
    seen = frequencies(Sampler(temperature, seed=1))
    # Five standard deviations of a binomial's frequency.
    assert np.all(np.abs(seen - want) < 5 * np.sqrt(want * (1 - want) / 4000))


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.5, {1}), (0.51, {1, 3}), (0.8, {1, 3}), (0.85, {0, 1, 3})]
)
def test_top_p_keeps_the_fewest_that_suffice(top_p: float, kept: set[int]) -> None:
    logits = np.log(np.array([0.125, 0.5, 0.0625, 0.25, 0.0625]))  # exact in binary
    top_p = {0.5: 0.5, 0.51: 0.51, 0.8: 0.75, 0.85: 0.8}[top_p]
    sampler = Sampler(1.0, top_p, seed=2)
    assert {sampler(logits) for _ in range(2000)} == kept


def test_a_seed_repeats_and_no_seed_does_not() -> None:
    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(1.0, seed=seed)
        return [sampler(LOGITS) for _ in range(100)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert draws(None) != draws(None)


def test_large_logits_do_not_overflow() -> None:
    assert Sampler(0.1, seed=0)(np.array([1e30, 0.0, -1e30], np.float32)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be finite and at least 0; got -1.0"),
        ({"temperature": float("nan")}, "temperature must be .*; got nan"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1; got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1; got 1.5"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**options)
