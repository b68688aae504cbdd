"""rng, dropout, and the generators' seeds and states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
from nkisim import NkiNotImplementedError, NkiValidationError
from nkisim.enums import PSUM
from nkisim.enums import engine as Engine
from tests.nkisim.harness import empty, execute, tile, values_of

MASK = 0xFFFFFFFF


def xorwow(state: list[int]) -> int:
    """Marsaglia 2003, section 3.1, one number; `state` moves on."""
    x, y, z, w, v, d = state
    t = x ^ (x >> 2)
    new = (v ^ (v << 4) & MASK) ^ (t ^ (t << 1) & MASK)
    d = (d + 362437) & MASK
    state[:] = [y, z, w, v, new, d]
    return (new + d) & MASK


@pytest.mark.parametrize("dtype", ["uint32", "uint16", "int8", "int32"])
def test_gpsimd_numbers_follow_from_the_state(dtype: str) -> None:
    seeds = np.random.default_rng(1).integers(0, 1 << 32, (16, 6), np.uint32)

    def body():
        d, state = empty((16, 3, 4), dtype), empty((16, 6), "uint32")
        nisa.rand_set_state(tile(seeds))
        nisa.rng(d, engine=Engine.gpsimd)
        nisa.rand_get_state(state)
        return values_of(d), values_of(state)

    states = [row.tolist() for row in seeds]
    drawn = np.array([[xorwow(state) for _ in range(12)] for state in states], np.uint32)
    size = np.dtype(dtype).itemsize
    expected = (drawn & ((1 << 8 * size) - 1)).astype(f"u{size}").view(dtype)
    result, after = execute(body)
    np.testing.assert_array_equal(result.reshape(16, 12), expected)
    np.testing.assert_array_equal(after, states)


def test_one_seed_gives_one_sequence_f91() -> None:
    def body(seeds: list[int]):
        drawn = []
        for seed in seeds:
            nisa.set_rng_seed(tile(np.array([[seed]], np.int32)))
            d = empty((128, 8), "uint32")
            nisa.rng(d)
            drawn.append(values_of(d))
        more = empty((128, 8), "uint32")
        nisa.rng(more)
        return drawn, values_of(more)

    (a, b, c), more = execute(lambda: body([7, 8, 7]))
    np.testing.assert_array_equal(a, c)
    assert (a != b).mean() > 0.99
    assert (c != more).mean() > 0.99
    assert len(np.unique(a)) > 1020  # lanes have streams of their own


def test_uniform_bits() -> None:
    def body():
        d = empty((128, 256), "uint8")
        nisa.rng(d)
        return values_of(d)

    counts = np.bincount(execute(body).reshape(-1), minlength=256)
    assert ((counts - 128) ** 2 / 128).sum() < 350  # chi-square, 255 degrees: p < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_dropout_drops_all_none_or_some_f91(dtype: str) -> None:
    values = np.arange(1, 128 * 64 + 1).reshape(128, 64).astype(getattr(ml_dtypes, dtype, dtype))

    def body(prob: float):
        d = empty(values.shape, dtype)
        nisa.dropout(d, tile(values), prob)
        return values_of(d)

    np.testing.assert_array_equal(execute(lambda: body(1.0)), np.zeros_like(values))
    np.testing.assert_array_equal(execute(lambda: body(0.0)), values)
    some = execute(lambda: body(0.3))
    dropped = some == 0
    assert abs(dropped.mean() - 0.3) < 0.02
    np.testing.assert_array_equal(some[~dropped], values[~dropped])


def test_dropout_with_a_probability_for_each_partition() -> None:
    def body():
        d, prob = empty((4, 512)), tile(np.array([[0], [1], [0.5], [0]], np.float32))
        nisa.dropout(d, tile(np.ones((4, 512), np.float32)), prob)
        return values_of(d).mean(1)

    kept = execute(body)
    np.testing.assert_array_equal(kept[[0, 1, 3]], [1, 0, 1])
    assert 0.4 < kept[2] < 0.6


def of(word: str, shape: tuple[int, ...], dtype: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(nisa, word)(tile(np.ones(shape, np.float32), dtype), **more)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (of("rng", (4, 4), "float32"), "rng: dst: dtype float32"),
        (of("rng", (4, 4), "int32", engine=Engine.scalar), "rng: engine"),
        (of("set_rng_seed", (1, 2), "int32"), "set_rng_seed: src_seeds"),
        (of("set_rng_seed", (1, 1), "int16"), "set_rng_seed: src_seeds"),
        (of("rand_set_state", (4, 6), "int32"), "src_seeds: dtype int32"),
        (of("rand_set_state", (4, 24), "uint32"), r"src_seeds: shape \[4, 24\]"),
        (of("rand_get_state", (4, 5), "uint32"), r"dst: shape \[4, 5\]"),
        (of("rand_get_state", (4, 6), "uint32", engine=Engine.scalar), "rand_get_state: engine"),
    ],
)
def test_rules(body: Callable[[], Any], text: str) -> None:
    with pytest.raises(NkiValidationError, match=text):
        execute(body)


def test_gpsimd_does_not_reach_psum() -> None:
    def body():
        nisa.rng(empty((4, 4), "int32", PSUM), engine=Engine.gpsimd)

    with pytest.raises(NkiValidationError, match="rng: dst: .*not in SBUF"):
        execute(body)


@pytest.mark.parametrize("word", ["rand_set_state", "rand_get_state"])
def test_the_state_of_the_vector_engine_needs_gen4(word: str) -> None:
    with pytest.raises(NkiNotImplementedError, match=f"{word}: engine=vector.*v4"):
        execute(of(word, (4, 24), "uint32", engine=Engine.vector))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dst": ((8, 6), "bfloat16")}, "data: dtype float32, but dst is bfloat16"),
        ({"prob": ((8, 2), "float32")}, r"prob: shape \[8, 2\]"),
        ({"prob": ((8, 1), "int32")}, "prob: dtype int32"),
        (
            {
                "dst": ((8, 6), "int16"),
                "data": ((8, 6), "int16"),
                "prob": ((8, 1), "bfloat16"),
            },
            "prob: dtype bfloat16",
        ),
    ],
)
def test_rules_of_dropout(changes: dict[str, Any], text: str) -> None:
    def body():
        given: dict[str, Any] = {
            "dst": ((8, 6), "float32"),
            "data": ((8, 6), "float32"),
            "prob": 0.5,
        } | changes
        made: dict[str, Any] = {
            key: tile(np.ones(item[0], np.float32), item[1]) if isinstance(item, tuple) else item
            for key, item in given.items()
        }
        nisa.dropout(**made)

    with pytest.raises(NkiValidationError, match=f"dropout: {text}"):
        execute(body)
