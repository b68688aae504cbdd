"""QK norm and RoPE alone, in SBUF, with the head dimension on the partitions."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import nkisim.language as nl
from tests.neuron.on_chip import close, on_cores, put, rng, values_of
from tests.neuron.test_matrices import turned
from tkg.backends.neuron.matrices import add_terms
from tkg.backends.neuron.qk_norm_tkg import qk_norm_tkg
from tkg.backends.neuron.rope_tkg import load_rope, rope_terms, rope_tkg

HEADS_ROWS = [(1, 1), (3, 2), (8, 100), (5, 128), (2, 127)]  # the last two: several PSUM banks


def operand(d: int, heads: int, rows: int) -> np.ndarray:
    return rng(d).standard_normal((d, heads, rows)).astype(np.float32)


@pytest.mark.parametrize("heads, rows", HEADS_ROWS)
@pytest.mark.parametrize("dtype", [None, np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("d", [2, 6, 80, 128])
def test_norm(d: int, dtype: type | None, heads: int, rows: int) -> None:
    t = operand(d, heads, rows) * np.float32(0.01)  # so that eps counts
    eps = 1e-5
    given = [] if dtype is None else [(1 + rng(1).standard_normal((1, d))).astype(dtype)]

    def body(sbm, weight=None):
        tile = put(sbm, t)
        qk_norm_tkg(sbm, tile, weight, eps, "norm")
        return values_of(tile)

    (got,) = on_cores(body, *given)
    wide = t.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).mean(0) + eps)
    if given:
        wanted *= given[0].astype(np.float64)[0, :, None, None]
    close(got, wanted)


def test_norm_of_zeros_is_zero() -> None:
    def body(sbm):
        tile = put(sbm, np.zeros((64, 2, 3), np.float32))
        qk_norm_tkg(sbm, tile, None, 1e-6, "norm")
        return values_of(tile)

    (got,) = on_cores(body)
    assert not got.any()


@pytest.mark.parametrize("heads, rows", HEADS_ROWS)
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("d", [2, 6, 10, 80, 128])
def test_rope(d: int, contiguous: bool, heads: int, rows: int) -> None:
    """Odd d/2 among them; in place, and as terms that are added up into the even and the odd
    elements."""
    t = operand(d, heads, rows)
    angle = rng(1).uniform(-9, 9, (d // 2, rows, 1))
    tables = [f(angle).astype(np.float32) for f in (np.cos, np.sin)]

    def body(sbm, cos, sin):
        loaded = load_rope(sbm, cos, sin, contiguous)
        tile = put(sbm, t)
        halves = sbm.stack((d // 2, 2, heads * rows), nl.float32, "halves")
        cuts = (slice(0, d, 2), slice(1, d, 2))
        terms, _ = rope_terms(sbm, tile, loaded, "terms")
        add_terms(terms, cuts, halves, 2.0)
        rope_tkg(sbm, tile, loaded, "rope")
        return values_of(tile), values_of(halves)

    ((got, halves),) = on_cores(body, *tables)
    np.testing.assert_array_equal(halves[:, 0], 2 * got[0::2].reshape(d // 2, -1))
    np.testing.assert_array_equal(halves[:, 1], 2 * got[1::2].reshape(d // 2, -1))
    cos, sin = (
        np.concatenate([x, x]) if contiguous else np.repeat(x, 2, axis=0)
        for x in (table.astype(np.float64).reshape(d // 2, 1, rows) for table in tables)
    )
    close(got, t * cos + turned(t, contiguous) * sin)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_narrow_tables_and_rows_of_several_tokens(dtype: type) -> None:
    """cos and sin [d/2, B, S]: row b*S + s."""
    t = operand(16, 2, 6)
    angle = rng(1).uniform(-9, 9, (8, 2, 3))
    cos, sin = np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)

    def body(sbm, cos, sin):
        tables = load_rope(sbm, cos, sin, True)
        tile = put(sbm, t)
        rope_tkg(sbm, tile, tables, "rope")
        return values_of(tile)

    (got,) = on_cores(body, cos, sin)
    c, s = (np.tile(x.astype(np.float64).reshape(8, 1, 6), (2, 1, 1)) for x in (cos, sin))
    close(got, t * c + turned(t, True) * s)


def test_a_table_serves_several_tiles() -> None:
    q, k = operand(16, 4, 2), operand(16, 1, 2)
    angle = rng(1).uniform(-9, 9, (8, 2, 1))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def body(sbm, cos, sin):
        tables = load_rope(sbm, cos, sin, True)
        tiles = [put(sbm, q, "q"), put(sbm, k, "k")]
        for name, tile in zip("qk", tiles, strict=True):
            rope_tkg(sbm, tile, tables, name)
        return [values_of(tile) for tile in tiles]

    (got,) = on_cores(body, cos, sin)
    c, s = (np.tile(x.reshape(8, 1, 2), (2, 1, 1)) for x in (np.cos(angle), np.sin(angle)))
    for result, t in zip(got, (q, k), strict=True):
        close(result, t * c + turned(t, True) * s)


def test_both_cores_of_a_pair_do_the_same() -> None:
    t = operand(16, 2, 3)
    angle = rng(1).uniform(-9, 9, (8, 3, 1)).astype(np.float32)

    def body(sbm, cos, sin):
        tables = load_rope(sbm, cos, sin, False)
        tile = put(sbm, t)
        qk_norm_tkg(sbm, tile, None, 1e-6, "norm")
        rope_tkg(sbm, tile, tables, "rope")
        return values_of(tile)

    alone = on_cores(body, np.cos(angle), np.sin(angle))
    first, second = on_cores(body, np.cos(angle), np.sin(angle), lnc=2)
    np.testing.assert_array_equal(first, alone[0])
    np.testing.assert_array_equal(second, alone[0])
