"""The object API refuses what the drop-in call refuses, when the object is made or called."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tkg

HEADS = tkg.Heads(4, 2, 16)
COLUMNS = (4 + 2 * 2) * 16


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def block(**changes: Any) -> tkg.AttentionBlock:
    parts = {
        "heads": HEADS,
        "qkv": tkg.Linear(zeros(32, COLUMNS)),
        "out": tkg.Linear(zeros(64, 32)),
        "rope": "half",
        "backend": "reference",
    }
    return tkg.AttentionBlock(**(parts | changes))


def cache(**changes: Any) -> tkg.KVCache:
    sizes = {"batch": 2, "capacity": 8, "kv_heads": 2, "d_head": 16, "dtype": "float32"}
    return tkg.KVCache.flat(**(sizes | changes))


HALVES: Any = (4.5, 2, 16)

LAYERS = {
    "qkv columns": ({"qkv": tkg.Linear(zeros(32, 7))}, "qkv.*128"),
    "out rows": ({"out": tkg.Linear(zeros(65, 32))}, "out.*64"),
    "bias": ({"qkv": tkg.Linear(zeros(32, COLUMNS), bias=zeros(COLUMNS))}, r"bias.*\(1, 128\)"),
    "heads": ({"heads": tkg.Heads(3, 2, 16)}, "heads.*multiple"),
    "odd d_head": ({"heads": tkg.Heads(4, 2, 15)}, "even"),
    "no heads": ({"heads": tkg.Heads(0, 0, 16)}, "at least 1"),
    "rope": ({"rope": "neox"}, "rope.*'neox'"),
    "eps": ({"input_norm": tkg.RMSNorm(None, -1.0)}, "eps.*-1"),
    "norm weight": ({"input_norm": tkg.RMSNorm(zeros(1, 31), 1e-5)}, r"input_norm.*\(1, 31\)"),
    "head norm": (
        {"pre_rope_norm": tkg.QKNorm(zeros(1, 15), None, 1e-5)},
        r"pre_rope_norm.*\(1, 15\)",
    ),
    "sink": ({"sink": zeros(1, 4)}, r"sink.*\(4, 1\)"),
    "window": ({"sliding_window": 0}, "sliding_window.*0"),
    "hidden": ({"hidden_dim_actual": 33}, "hidden_dim_actual.*33"),
    "cores": ({"lnc": 3}, "lnc.*3"),
    "cores as text": ({"lnc": "1"}, "lnc.*'1'"),
    "a broken head": ({"heads": tkg.Heads(*HALVES)}, "heads must be whole numbers"),
    "heads as a tuple": ({"heads": (4, 2, 16)}, "heads must be a tkg.Heads; got tuple"),
    "a bare weight": ({"qkv": zeros(32, COLUMNS)}, "qkv must be a tkg.Linear; got ndarray"),
    "a bare norm": ({"input_norm": zeros(1, 32)}, "input_norm must be a tkg.RMSNorm"),
    "half a window": ({"sliding_window": 1.5}, "sliding_window .* whole number.*1.5"),
    "a huge window": ({"sliding_window": 2**70}, "sliding_window .*2\\^63"),
    "hidden as text": ({"hidden_dim_actual": "3"}, "hidden_dim_actual .* whole number"),
    "fp8 weight": (
        {"qkv": tkg.Linear(zeros(32, COLUMNS, dtype=ml_dtypes.float8_e4m3))},
        "float8_e4m3",
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_illegal_layer_cannot_be_made(name: str) -> None:
    change, message = LAYERS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        block(**change)


def test_all_broken_rules_of_a_layer_are_in_one_message() -> None:
    with pytest.raises(ValueError) as caught:
        block(rope="x", sliding_window=0, sink=zeros(1, 1), hidden_dim_actual=99)
    for text in ("rope", "sliding_window", "sink", "hidden_dim_actual"):
        assert text in str(caught.value)


POS = np.array([[0], [3]], np.int32)
ROPE = tkg.rope_tables(POS, 16)

STEPS = {
    "x": ({"x": zeros(2, 1, 31)}, "32"),
    "batch": ({"x": zeros(3, 1, 32), "pos_ids": np.zeros((3, 1), np.int32)}, "B = 3"),
    "positions": ({"pos_ids": np.array([[0], [8]], np.int32)}, "pos_ids"),
    "no rope": ({"rope": None}, r"rope\[0\]"),
    "cache heads": ({"cache": cache(kv_heads=1)}, "KV heads"),
    "cache d_head": ({"cache": cache(d_head=8)}, "d_head"),
    "slot past the end": ({"slots": np.array([[1], [8]], np.int32)}, "slots.*8"),
}


@pytest.mark.parametrize("name", STEPS)
def test_an_illegal_step_changes_nothing(name: str) -> None:
    change, message = STEPS[name]
    arguments = {"x": np.ones((2, 1, 32), np.float32), "cache": cache(), "pos_ids": POS}
    arguments |= {"rope": ROPE} | change
    kv: tkg.KVCache = arguments["cache"]
    with pytest.raises((ValueError, TypeError), match=message):
        block()(**arguments)
    assert not kv.k.numpy().any()
    assert not kv.v.numpy().any()


def test_an_fp8_cache_needs_a_named_scale() -> None:
    kv = cache(dtype="float8_e4m3")
    with pytest.raises(ValueError, match="scale.*FP8|FP8.*scale"):
        block()(zeros(2, 1, 32), kv, POS, rope=ROPE)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_is_positive_and_finite(bad: float) -> None:
    for make in (tkg.KVScale.quantize, tkg.KVScale.dequantize):
        with pytest.raises(ValueError, match="KVScale.*positive"):
            make(1.0, bad)
        with pytest.raises(ValueError, match="KVScale.*positive"):
            make(bad, 1.0)


def test_the_two_scale_types_are_reciprocal() -> None:
    assert tkg.KVScale.dequantize(0.25, 0.5) == tkg.KVScale.quantize(4.0, 2.0)


def test_rope_tables_say_what_is_wrong() -> None:
    for positions, d_head, message in (
        (np.zeros(3, np.int32), 16, r"\[B, S\]"),
        (POS, 15, "even"),
        (POS, 0, "d_head"),
    ):
        with pytest.raises(ValueError, match=message):
            tkg.rope_tables(positions, d_head)
    with pytest.raises(ValueError, match=r"inv_freq.*\(8,\)"):
        tkg.rope_tables(POS, 16, inv_freq=np.ones(7))


def test_a_projection_checks_its_weight_and_its_input() -> None:
    with pytest.raises((ValueError, TypeError), match="Projection.*weight"):
        tkg.Projection(tkg.Linear(zeros(3)))
    with pytest.raises(ValueError, match="Projection.*lnc"):
        tkg.Projection(tkg.Linear(zeros(8, 4)), lnc=0)
    project = tkg.Projection(tkg.Linear(zeros(8, 4)), backend="reference")
    with pytest.raises(ValueError, match="8"):
        project(zeros(2, 7))


def test_an_unknown_backend_is_refused_when_the_layer_is_made() -> None:
    with pytest.raises(ValueError, match="'abacus'"):
        block(backend="abacus")
    with pytest.raises(tkg.Unsupported, match="cuda"):
        block(backend="cuda")


def scaled(scale: Any) -> tkg.KVCache:
    k, v = (zeros(2, 2, 8, 16, dtype=ml_dtypes.float8_e4m3) for _ in "kv")
    return tkg.KVCache(k, v, scale=scale)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ((1, 1), "cache.scale must be a tkg.KVScale; got tuple"),
        (tkg.KVScale(-1.0, 1.0), "cache.scale.k must be positive and finite; got -1.0"),
        (tkg.KVScale(1.0, 0.0), "cache.scale.v must be positive and finite; got 0.0"),
    ],
)
def test_the_scale_of_a_cache(scale: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        block()(zeros(2, 1, 32), scaled(scale), POS, rope=ROPE)


LINEAR: Any = zeros(3, 3)
NOT_ARRAYS = {
    "x": ({"x": [[[1.0]]]}, "x must be a NumPy array or a torch tensor; got builtins.list"),
    "no x": ({"x": None}, "x must be given; got None"),
    "positions": ({"pos_ids": [[0]]}, "pos_ids must be a NumPy array"),
    "no positions": ({"pos_ids": None}, "pos_ids must be given; got None"),
    "slots": ({"slots": [[0]]}, "slots must be a NumPy array"),
    "rope": ({"rope": 3}, r"rope must be a pair \(cos, sin\); got int"),
    "cache": ({"cache": (1, 2)}, "cache must be a tkg.KVCache; got tuple"),
}


@pytest.mark.parametrize("name", NOT_ARRAYS)
def test_what_is_no_array_is_named(name: str) -> None:
    change, message = NOT_ARRAYS[name]
    step = {"x": zeros(2, 1, 32), "cache": cache(), "pos_ids": POS, "rope": ROPE}
    with pytest.raises((TypeError, ValueError), match=f"^AttentionBlock: {message}"):
        block()(**(step | change))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tkg.KVCache([1], zeros(1, 1, 1, 2)), "KVCache: k must be a NumPy array"),
        (lambda: tkg.KVCache(zeros(1, 1, 1, 2), None), "KVCache: v must be given"),
        (lambda: tkg.Linear([[1.0]]), "Linear: weight must be a NumPy array"),
        (lambda: tkg.Linear(None), "Linear: weight must be given"),
        (lambda: tkg.Projection(LINEAR), "Projection: linear must be a tkg.Linear"),
        (lambda: tkg.Projection(tkg.Linear(zeros(3, 3)))([1.0]), "Projection: x must be a NumPy"),
        (lambda: tkg.Projection(tkg.Linear(zeros(3, 3)))(None), "Projection: x must be given"),
        (lambda: tkg.Projection(tkg.Linear(zeros(3, 3)))(zeros(3, 0)), r"Projection: x .*\(3, 0\)"),
        (lambda: tkg.Projection(tkg.Linear(zeros(3, 3)))(zeros()), "Projection: x .*sizes"),
        (
            lambda: tkg.Projection(tkg.Linear(zeros(3, 5)))(zeros(2, 5)),
            r"Projection: x must have in = 3 features.*got shape \(2, 5\)",
        ),
    ],
)
def test_wrong_parts_are_named(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        make()


SIZES: Any = {"kv_heads": 1, "d_head": 8, "num_blocks": 2, "block_len": 4}
TABLE = np.zeros((1, 2), np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch must be a whole number, at least 1; got 0"),
        ({"capacity": "8"}, "capacity must be a whole number, at least 1; got '8'"),
        ({"kv_heads": 1.5}, "kv_heads must be a whole number, at least 1; got 1.5"),
        ({"d_head": True}, "d_head must be a whole number, at least 1; got True"),
        ({"dtype": "float31"}, "dtype must be one of float32, .*; got 'float31'"),
        ({"dtype": np.float32}, "dtype must be one of float32, .*; got <class"),
    ],
)
def test_a_flat_cache_of_wrong_sizes_is_not_made(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^KVCache.flat: {message}"):
        cache(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": -1}, "num_blocks must be a whole number, at least 1; got -1"),
        ({"dtype": "int8"}, "dtype must be one of float32, .*; got 'int8'"),
        ({"block_table": None}, "block_table must be given; got None"),
        ({"block_table": [[0, 1]]}, "block_table must be a NumPy array"),
    ],
)
def test_a_block_cache_of_wrong_sizes_is_not_made(change: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^KVCache.block: {message}"):
        tkg.KVCache.block(**(SIZES | {"block_table": TABLE} | change))


def test_a_cache_larger_than_memory_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="bytes"):
        cache(capacity=2**50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": "text"}, "positions must be a NumPy array"),
        ({"positions": None}, "positions must be given"),
        ({"positions": np.array([[1.5]])}, r"positions must be \[B, S\] integers; got float64"),
        ({"positions": np.array([1])}, r"positions must be \[B, S\] integers; got int64\[1\]"),
        ({"d_head": 7}, "d_head must be an even whole number, at least 2; got 7"),
        ({"d_head": "8"}, "d_head must be an even whole number, at least 2; got '8'"),
        ({"base": 0}, "base must be a positive, finite number; got 0"),
        ({"base": "10"}, "base must be a positive, finite number; got '10'"),
        ({"inv_freq": zeros(3)}, r"inv_freq must have shape .* = \(4,\); got shape \(3,\)"),
        ({"inv_freq": [1.0] * 4}, "inv_freq must be a NumPy array"),
    ],
)
def test_wrong_angles_are_named(change: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^rope_tables: {message}"):
        tkg.rope_tables(**({"positions": POS, "d_head": 8} | change))


def test_any_integers_are_positions() -> None:
    right = tkg.rope_tables(POS, 8)
    for dtype in (np.int64, np.uint32, np.int16, np.uint8):
        for one, other in zip(tkg.rope_tables(POS.astype(dtype), 8), right, strict=True):
            np.testing.assert_array_equal(one, other)
