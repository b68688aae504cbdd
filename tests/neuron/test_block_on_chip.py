"""The block within another kernel: X and the output in SBUF, on one core and two, beside the block
as the host launches it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.calls import same_bits
from tests.neuron.on_chip import on_cores, put, values_of
from tkg.backends.neuron import launch
from tkg.backends.neuron.attention_block_tkg import attention_block_tkg
from tkg.testing.case import Case
from tkg.testing.verify import own_caches

HEAP = {None: "out", "rows": "output_projection.out", "transposed": "output_projection.out"}


def sized(projection: Any, **fields: Any) -> Case:
    shapes = {"lengths": (37, 5), "tokens": 3, "hidden": 512, "dtype": "bfloat16"}
    return Case(name="on chip", projection=projection, **(shapes | fields))


def arguments(case: Case) -> dict[str, Any]:
    """The kernel's arguments: the host's names, without what only the host has."""
    call = own_caches(case.inputs())
    return {name: value for name, value in call.items() if name != "lnc"}


def on_chip(case: Case, lnc: int) -> tuple[list[np.ndarray], dict[str, Any]]:
    """(each core's output tile, the call with its caches updated)."""
    call = arguments(case)
    X = call.pop("X")
    rows, width = case.batch, case.hidden // 128
    resident = X.reshape(rows, case.tokens, 128, width).transpose(2, 0, 1, 3).copy()
    arrays = {name: value for name, value in call.items() if isinstance(value, np.ndarray)}
    options = {name: value for name, value in call.items() if name not in arrays}

    def body(sbm: Any, *operands: Any) -> np.ndarray:
        given = dict(zip(arrays, operands, strict=True))
        out, _, _ = attention_block_tkg(
            put(sbm, resident), **given, **options, out_in_sb=True, sbm=sbm
        )
        assert out is not None
        values = values_of(out)
        sbm.free(HEAP[case.projection])
        return values

    return on_cores(body, *arrays.values(), lnc=lnc), call


def in_host_layout(case: Case, parts: list[np.ndarray]) -> np.ndarray:
    """The cores' tiles as the output that the host gets."""
    if case.projection == "transposed":
        return np.stack(parts, 1)
    if case.projection == "rows":
        return np.concatenate(parts, 1)
    for part in parts[1:]:
        np.testing.assert_array_equal(part, parts[0])
    shape = (case.d_head, case.batch, case.q_heads, case.tokens)
    return parts[0].reshape(shape).transpose(1, 2, 0, 3)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one row, one token": {"lengths": (300,), "tokens": 1, "capacity": 384},
    "block cache": {"cache": "block", "kv_heads": 2},
    "transposed cache": {"cache": "transposed"},
    "mask": {"visible": "holes"},
    "padded hidden": {"hidden_actual": 500},
    "fp8": {"qkv": "STATIC", "out": "ROW", "cache_dtype": "float8_e4m3"},
    "skip attention": {"skip_attention": True},
    "no norm": {"eps": None},
}


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("projection", [None, "rows", "transposed"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_same_as_from_hbm(options: dict[str, Any], projection: Any, lnc: int) -> None:
    """The same tokens in the caches, and the same output to within sums in another order."""
    if projection is None and "out" in options:
        options = {k: v for k, v in options.items() if k != "out"}
    case = sized(projection, lnc=lnc, **options)
    parts, updated = on_chip(case, lnc)
    call = arguments(case)
    out, K, V = launch.launch("attention_block_tkg", lnc, call)
    got = in_host_layout(case, parts)
    assert got.shape == out.shape
    step = 2.0**-8  # of bfloat16
    largest = np.abs(out.astype(np.float64)).max()
    np.testing.assert_allclose(
        got.astype(np.float64), out.astype(np.float64), rtol=2 * step, atol=step * largest
    )
    before = arguments(case)
    for name, cache in (("K_cache", K), ("V_cache", V)):
        assert not same_bits(cache, before[name])
        near = np.abs(updated[name].astype(np.float64) - cache.astype(np.float64))
        assert np.nanmax(near) <= 2 * step * np.nanmax(np.abs(cache.astype(np.float64)))


def test_hidden_states_that_two_cores_cannot_share() -> None:
    """Three columns of 128: the message says so."""
    with pytest.raises(AssertionError, match="must be even on two cores; this is 3"):
        on_chip(sized("rows", hidden=384), 2)


@pytest.mark.parametrize("lnc", [1, 2])
def test_two_blocks_in_one_kernel(lnc: int) -> None:
    """Each with caches of its own; the second uses the first one's SBUF again."""
    case = sized("rows", tokens=1, hidden=256)
    call = arguments(case)
    arrays = {name: value for name, value in call.items() if isinstance(value, np.ndarray)}
    options = {name: value for name, value in call.items() if name not in arrays}
    caches = [(call["K_cache"], call["V_cache"])]
    caches.append((call["K_cache"].copy(), call["V_cache"].copy()))

    def body(sbm: Any, *operands: Any) -> list[Any]:
        given = dict(zip(arrays, operands, strict=False))
        found: list[Any] = []
        for K, V in (operands[-4:-2], operands[-2:]):
            given |= {"K_cache": K, "V_cache": V}
            out, _, _ = attention_block_tkg(**given, **options, out_in_sb=True, sbm=sbm)
            assert out is not None
            found += [values_of(out), sbm.high_water]
            sbm.free("output_projection.out")
        return found

    both = [cache for pair in caches for cache in pair]
    for first, mark, second, later in on_cores(body, *arrays.values(), *both, lnc=lnc):
        np.testing.assert_array_equal(first, second)
        assert mark == later
    for one, other in zip(*caches, strict=True):
        assert same_bits(one, other)
    assert not same_bits(caches[1][0], case.inputs()["K_cache"])
