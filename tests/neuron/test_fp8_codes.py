"""float8_e4m3fn on a core that has no such dtype: every code means what the OCP format says."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.language as nl
from tests.calls import Call, block_checks, failures, projection_check, run
from tests.neuron.on_chip import on_cores, put, values_of
from tkg.backends.neuron.fp8_codes import CodeReader, common_nan
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.verify import block_truth, projection_truth

FN, FP8 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3
LARGE = [256, 288, 320, 352, 384, 416, 448, -448, -256]
"""What float8_e4m3 has infinities and NaN for."""


def test_every_code() -> None:
    codes = np.arange(256, dtype=np.uint8)

    def body(sbm: Any) -> np.ndarray:
        sbm.open_scope("codes")
        tile = put(sbm, np.tile(codes, (128, 2)).reshape(128, 2, 256))
        values = values_of(CodeReader(sbm, (128, 3, 300), "codes").read(tile[0:77, :, :]))
        sbm.close_scope()
        return values

    (got,) = on_cores(body)
    wanted = codes.view(FN).astype(np.float64)
    assert got.shape == (77, 2, 256)
    for row in got.reshape(-1, 256):
        np.testing.assert_array_equal(row.astype(np.float64), wanted)
        np.testing.assert_array_equal(np.signbit(row)[[0, 128]], [False, True])


def test_the_nan_that_both_formats_have() -> None:
    """Within 240 the codes are the same; every NaN becomes one that both have."""
    codes = np.arange(256, dtype=np.uint8)
    kept = codes[~np.isinf(codes.view(FP8).astype(np.float32))]

    def body(sbm: Any) -> np.ndarray:
        tile = put(sbm, np.tile(kept.view(FP8), (128, 1)))
        common_nan(sbm, tile, "nan")
        return values_of(tile.view(nl.uint8))

    (got,) = on_cores(body)
    np.testing.assert_array_equal(
        got[5].view(FN).astype(np.float32), kept.view(FP8).astype(np.float32)
    )


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("layout", ["flat", "transposed", "block"])
@pytest.mark.parametrize("visible", ["positions", "holes"])
def test_a_cache_of_large_values(visible: Any, layout: Any, lnc: int) -> None:
    """As another writer may leave them: up to 448."""
    fields = {"dtype": "bfloat16", "cache_dtype": "float8_e4m3fn", "softmax_scale": 1e-3}
    call: Call = Case(name="large", cache=layout, visible=visible, **fields).inputs() | {"lnc": lnc}
    rng = np.random.default_rng(0)
    for name in ("K_cache", "V_cache"):
        places = rng.random(call[name].shape) < 0.2
        places &= np.isfinite(call[name].astype(np.float32))
        call[name][places] = rng.choice(LARGE, int(places.sum())).astype(FN)
    assert not failures(block_checks("neuron", call, block_truth(call)))


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("quantization", ["ROW", "STATIC"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_of_large_values(dtype: str, quantization: Any, lnc: int) -> None:
    case = ProjectionCase(
        name="large", d_head=64, heads=4, batch=3, hidden=256, dtype=dtype, lnc=lnc,
        quantization=quantization, static_format="float8_e4m3fn",
    )  # fmt: skip
    call = case.inputs()
    assert call["weight"].dtype == FN
    rng = np.random.default_rng(0)
    places = rng.random(call["weight"].shape) < 0.2
    call["weight"][places] = rng.choice(LARGE, int(places.sum())).astype(FN)
    assert projection_check("neuron", call, projection_truth(call)).ok


def test_a_new_token_that_is_nan() -> None:
    """It is NaN to whoever reads the cache, not 320."""
    case = Case(name="nan", cache_dtype="float8_e4m3fn", lengths=(5, 9), projection=None)
    call: Call = case.inputs()
    call["X"][0] = np.nan
    with np.errstate(all="ignore"):
        out, K, V = run("neuron", call)
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()
    for cache in (K, V):
        assert np.isnan(cache[0, :, 5].astype(np.float32)).all()
        assert np.isfinite(cache[1, :, 9].astype(np.float32)).all()
