"""The object API on the cpu backend has weights of its own, in another order."""

from __future__ import annotations

import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tkg
from tests.calls import BACKENDS
from tests.variants import assert_same

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="of the cpu backend")

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def values(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32).astype(dtype)


def test_the_given_weights_may_be_freed() -> None:
    weight = values(64, 70)
    gone = weakref.ref(weight)
    projection = tkg.Projection(tkg.Linear(weight), backend="cpu")
    x, expected = values(3, 64), values(3, 64) @ weight
    del weight
    assert gone() is None
    assert projection.linear.weight.shape == (64, 70)
    np.testing.assert_allclose(projection(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 63, 64, 65, 200])
def test_any_strides_give_the_same_bits(dtype: Any, columns: int) -> None:
    weight, x = values(130, columns, dtype=dtype), values(5, 130)
    turned = np.ascontiguousarray(weight.T).T
    wide = np.zeros((130, columns + 9), dtype)
    wide[:, :columns] = weight
    plain, *others = (
        tkg.Projection(tkg.Linear(w), backend="cpu")(x) for w in (weight, turned, wide[:, :columns])
    )
    for other in others:
        assert_same("cpu", other, plain)


@pytest.mark.parametrize("fp8", [ml_dtypes.float8_e4m3, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("odd", [0.5, np.nan])
def test_fp8_weights_that_are_not_finite(fp8: Any, odd: float) -> None:
    """They stay where they are; both surfaces give the same bits."""
    weight = values(96, 128).astype(fp8)
    weight[5, 77] = odd
    linear = tkg.Linear(
        weight,
        quantization=tkg.QuantizationType.ROW,
        weight_scale=np.full((1, 128), 0.25, np.float32),
    )
    x = values(4, 96)
    made = tkg.Projection(linear, backend="cpu")
    out = made(x)
    assert (made.linear.weight.source is None) == np.isfinite(odd)
    assert np.isnan(out[:, 77]).all() == np.isnan(odd)
    assert np.isfinite(np.delete(out, 77, axis=1)).all()
    call = tkg.output_projection_tkg(
        attention=x.T[:, :, None, None],
        weight=weight,
        quantization_type=tkg.QuantizationType.ROW,
        weight_scale=linear.weight_scale.numpy(),
        backend="cpu",
    )
    assert_same("cpu", out, call.reshape(out.shape))


def test_a_layer_of_transposed_views() -> None:
    heads, hidden = tkg.Heads(q=4, kv=2, d_head=16), 72
    qkv, out = values(hidden, heads.qkv_columns), values(64, hidden)
    x, positions = values(2, 3, hidden), np.tile(np.arange(3, dtype=np.int32), (2, 1))

    def run(qkv: np.ndarray, out: np.ndarray) -> np.ndarray:
        layer = tkg.AttentionBlock(
            heads=heads, qkv=tkg.Linear(qkv), out=tkg.Linear(out), backend="cpu"
        )
        cache = tkg.KVCache.flat(batch=2, capacity=8, kv_heads=2, d_head=16)
        return layer(x, cache, positions)

    views = (np.ascontiguousarray(w.T).T for w in (qkv, out))
    assert_same("cpu", run(*views), run(qkv, out))
