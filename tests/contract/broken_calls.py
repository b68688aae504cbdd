"""Illegal calls of the block: what is changed in a legal one, and what the error has to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from tests.calls import Call
from tkg.testing.case import Case

E4M3, E4M3FN = ml_dtypes.float8_e4m3, ml_dtypes.float8_e4m3fn
B, S, H, Q, KV, D, N = 2, 3, 128, 4, 2, 32, 64
COLUMNS = (Q + 2 * KV) * D

FLAT = Case(name="flat", tokens=S, kv_heads=KV, lengths=(37, 5), bias_qkv=True, bias_out=True)
BLOCK = Case(name="block", tokens=S, kv_heads=KV, lengths=(37, 5), cache="block")
MASKED = Case(name="masked", tokens=S, kv_heads=KV, lengths=(37, 5), visible="causal")
STATIC = Case(name="static", qkv="STATIC", out="STATIC", three_scales=True)
ROW = Case(name="row", qkv="ROW", out="ROW")
FP8_CACHE = Case(name="fp8", cache_dtype="float8_e4m3")

Change = Callable[[Call], Call] | dict[str, Any]


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


SHAPES = {
    "X two-dimensional": ({"X": zeros(B * S, H)}, ["X", "(6, 128)"]),
    "X without tokens": ({"X": zeros(B, 0, H)}, ["X", "(2, 0, 128)"]),
    "X narrower than W_qkv": ({"X": zeros(B, S, 96)}, ["X", "128", "(2, 3, 96)"]),
    "W_qkv transposed": ({"W_qkv": zeros(COLUMNS, H)}, ["W_qkv", f"({COLUMNS}, 128)"]),
    "W_qkv columns": ({"W_qkv": zeros(H, COLUMNS + 1)}, ["W_qkv", str(COLUMNS + 1)]),
    "W_qkv no q heads": ({"W_qkv": zeros(H, 2 * KV * D)}, ["W_qkv", str(2 * KV * D)]),
    "q heads no multiple of kv": ({"W_qkv": zeros(H, (5 + 2 * KV) * D)}, ["W_qkv"]),
    "W_qkv one-dimensional": ({"W_qkv": zeros(COLUMNS)}, ["W_qkv", f"({COLUMNS},)"]),
    "bias_qkv": ({"bias_qkv": zeros(COLUMNS)}, ["bias_qkv", f"({COLUMNS},)"]),
    "gamma": ({"rmsnorm_X_gamma": zeros(1, 64)}, ["rmsnorm_X_gamma", "128", "(1, 64)"]),
    "cos": ({"cos": zeros(D, B, S)}, ["cos", "(16, 2, 3)", "(32, 2, 3)"]),
    "sin": ({"sin": zeros(D // 2, S, B)}, ["sin", "(16, 2, 3)", "(16, 3, 2)"]),
    "pos_ids": ({"pos_ids": np.zeros((B, 1), np.int32)}, ["pos_ids", "(2, 3)", "(2, 1)"]),
    "K and V differ": ({"K_cache": zeros(B, KV, 32, D)}, ["K_cache", "(2, 2, 32, 32)"]),
    "cache batch": (
        {"K_cache": zeros(3, KV, N, D), "V_cache": zeros(3, KV, N, D)},
        ["V_cache", "B = 2", "(3, 2, 64, 32)"],
    ),
    "cache two-dimensional": (
        {"K_cache": zeros(N, D), "V_cache": zeros(N, D)},
        ["V_cache", "(64, 32)"],
    ),
    "K_cache not transposed": ({"K_cache_transposed": True}, ["K_cache", "(2, 2, 32, 64)"]),
    "cache too short": (
        {"K_cache": zeros(B, KV, 2, D), "V_cache": zeros(B, KV, 2, D)},
        ["S_tkg = 3"],
    ),
    "odd d_head": (
        {"K_cache": zeros(B, KV, N, 31), "V_cache": zeros(B, KV, N, 31)},
        ["even", "31"],
    ),
    "kv_cache_update_idx": (
        {"kv_cache_update_idx": np.zeros((B, 2), np.uint32)},
        ["kv_cache_update_idx", "(2, 1)", "(2, 3)", "(2, 2)"],
    ),
    "W_out rows": ({"W_out": zeros(64, H)}, ["W_out", "128", "(64, 128)"]),
    "bias_out": ({"bias_out": zeros(1, 5)}, ["bias_out", "(1, 128)", "(1, 5)"]),
    "sink": ({"sink": zeros(1, Q)}, ["sink", "(4, 1)", "(1, 4)"]),
}

DTYPES = {
    "X": ({"X": np.zeros((B, S, H), np.float64)}, ["X", "float64"]),
    "X fp8": ({"X": np.zeros((B, S, H), E4M3)}, ["X", "float8_e4m3"]),
    "W_qkv": ({"W_qkv": np.zeros((H, COLUMNS), np.int8)}, ["W_qkv", "int8"]),
    "W_qkv fp8, not quantised": (
        {"W_qkv": np.zeros((H, COLUMNS), E4M3)},
        ["W_qkv", "quantization_type_qkv", "float8_e4m3"],
    ),
    "W_out": ({"W_out": np.zeros((Q * D, H), np.float64)}, ["W_out", "float64"]),
    "bias_qkv": ({"bias_qkv": np.zeros((1, COLUMNS), np.int32)}, ["bias_qkv", "int32"]),
    "cache": (
        {n: np.zeros((B, KV, N, D), np.int8) for n in ("K_cache", "V_cache")},
        ["V_cache", "int8"],
    ),
    "K and V differ": (
        {"K_cache": np.zeros((B, KV, N, D), np.float16)},
        ["K_cache", "V_cache", "float16"],
    ),
    "cos": ({"cos": np.zeros((D // 2, B, S), np.float64)}, ["cos", "float64"]),
    "sink": ({"sink": np.zeros((Q, 1), np.int64)}, ["sink", "int64"]),
    "pos_ids": ({"pos_ids": np.zeros((B, S), np.float32)}, ["pos_ids", "float32"]),
    "slots": (
        {"kv_cache_update_idx": np.zeros((B, 1), np.float32)},
        ["kv_cache_update_idx", "float32"],
    ),
    "X a list": ({"X": [[0.0]]}, ["X", "list"]),
    "W_qkv a number": ({"W_qkv": 1.0}, ["W_qkv", "float"]),
    "quantization_type": ({"quantization_type_qkv": "ROW"}, ["quantization_type_qkv", "'ROW'"]),
}

VALUES = {
    "X missing": ({"X": None}, ["X", "None"]),
    "eps negative": ({"rmsnorm_X_eps": -1e-5}, ["rmsnorm_X_eps", "-1e-05"]),
    "eps NaN": ({"rmsnorm_X_eps": float("nan")}, ["rmsnorm_X_eps", "nan"]),
    "softmax_scale": ({"softmax_scale": float("inf")}, ["softmax_scale", "inf"]),
    "window 0": ({"sliding_window": 0}, ["sliding_window", "0"]),
    "actual hidden 0": ({"X_hidden_dim_actual": 0}, ["X_hidden_dim_actual", "128", "0"]),
    "actual hidden 129": ({"X_hidden_dim_actual": 129}, ["X_hidden_dim_actual", "128", "129"]),
    "lnc": ({"lnc": 3}, ["lnc", "3"]),
    "cos without sin": ({"sin": None}, ["sin", "cos"]),
    "sin without cos": ({"cos": None}, ["sin", "cos"]),
    "gamma without norm": ({"rmsnorm_X_enabled": False}, ["rmsnorm_X_gamma"]),
    "head weight without norm": (
        {"rmsnorm_QK_post_rope_W_K": np.ones((1, D), np.float32)},
        ["rmsnorm_QK_post_rope_W_K", "rmsnorm_QK_post_rope_enabled"],
    ),
    "head weight shape": (
        {
            "rmsnorm_QK_pre_rope_enabled": True,
            "rmsnorm_QK_pre_rope_eps": 1e-6,
            "rmsnorm_QK_pre_rope_W_Q": np.ones((1, 2 * D), np.float32),
        },
        ["rmsnorm_QK_pre_rope_W_Q", "(1, 32)", "(1, 64)"],
    ),
    "mask and positions": (
        {"attention_mask": np.ones((N, B, Q, S), bool)},
        ["attention_mask", "pos_ids", "both"],
    ),
    "neither mask nor positions": ({"pos_ids": None}, ["attention_mask", "pos_ids", "neither"]),
    "out_in_sb": ({"out_in_sb": True}, ["out_in_sb", "NKI kernel"]),
    "sbm": ({"sbm": object()}, ["sbm", "NKI kernel"]),
    "transposed_out without W_out": (
        {"W_out": None, "bias_out": None, "transposed_out": True},
        ["transposed_out", "W_out"],
    ),
    "bias_out without W_out": ({"W_out": None}, ["bias_out", "W_out"]),
    "transposed_out width": (
        {"W_out": zeros(Q * D, 100), "bias_out": None, "transposed_out": True},
        ["transposed_out", "128", "100"],
    ),
    "transposed_out width, lnc 2": (
        {"transposed_out": True, "lnc": 2},
        ["transposed_out", "256", "128"],
    ),
    "positions with a gap": (
        {"pos_ids": np.array([[37, 39, 40], [5, 6, 7]], np.int32)},
        ["pos_ids", "consecutive", "37, 39"],
    ),
    "positions past the end": (
        {"pos_ids": np.array([[37, 38, 39], [62, 63, 64]], np.int32)},
        ["pos_ids", "61", "62"],
    ),
    "positions -2": (
        {"pos_ids": np.array([[-2, -1, 0], [5, 6, 7]], np.int32)},
        ["pos_ids", "-2"],
    ),
    "slots missing": (
        {"kv_cache_update_idx": None},
        ["kv_cache_update_idx", "update_cache"],
    ),
    "slot past the end": (
        {"kv_cache_update_idx": np.array([[37], [62]], np.uint32)},
        ["kv_cache_update_idx", "63", "64"],
    ),
    "slot -2": (
        {"kv_cache_update_idx": np.array([[37], [-2]], np.int32)},
        ["kv_cache_update_idx", "-2"],
    ),
    "slot 2^32": (
        {"kv_cache_update_idx": np.array([[37], [2**32]], np.int64)},
        ["kv_cache_update_idx", "4294967296"],
    ),
    "wide slot past the end": (
        {"kv_cache_update_idx": np.array([[37, 38, 64], [1, 2, 3]], np.uint32)},
        ["kv_cache_update_idx", "64"],
    ),
    "two tokens for one slot": (
        {"kv_cache_update_idx": np.array([[37, 38, 37], [1, 2, 3]], np.uint32)},
        ["kv_cache_update_idx", "37"],
    ),
    "one scale only": ({"k_scale": np.ones((1, 1), np.float32)}, ["v_scale", "k_scale"]),
    "scales without an FP8 cache": (
        {n: np.ones((1, 1), np.float32) for n in ("k_scale", "v_scale")},
        ["k_scale", "float32"],
    ),
    "weight scale without quantisation": (
        {"weight_dequant_scale_qkv": np.ones((1, 1), np.float32)},
        ["weight_dequant_scale_qkv", "NONE"],
    ),
    "backend": ({"backend": "gpu"}, ["backend", "'gpu'", "reference"]),
}

MASKS = {
    "mask batch": ({"attention_mask": np.ones((40, 3, Q, S), bool)}, ["(40, 3, 4, 3)"]),
    "mask per kv head": ({"attention_mask": np.ones((40, B, KV, S), bool)}, ["(40, 2, 2, 3)"]),
    "mask shorter than the tokens": (
        {"attention_mask": np.ones((2, B, Q, S), bool)},
        ["(2, 2, 4, 3)"],
    ),
    "mask longer than the cache": (
        {"attention_mask": np.ones((N + S + 1, B, Q, S), bool)},
        ["64", "65"],
    ),
    "mask dtype": ({"attention_mask": np.ones((40, B, Q, S), np.float32)}, ["float32"]),
    "mask and window": ({"sliding_window": 8}, ["sliding_window", "pos_ids", "8"]),
}


def _table(call: Call) -> np.ndarray:
    return call["active_blocks_table"].astype(np.int32)


def _with_entry(row: int, column: int, entry: int) -> Callable[[Call], Call]:
    def change(call: Call) -> Call:
        table = _table(call)
        table[row, column] = entry
        return {"active_blocks_table": table}

    return change


BLOCKS = {
    "K_cache_transposed": ({"K_cache_transposed": True}, ["K_cache_transposed", "active_blocks"]),
    "table batch": (lambda call: {"active_blocks_table": _table(call)[:1]}, ["(1, 4)"]),
    "table one-dimensional": (lambda call: {"active_blocks_table": _table(call)[0]}, ["(4,)"]),
    "table dtype": (
        lambda call: {"active_blocks_table": _table(call).astype(np.float32)},
        ["active_blocks_table", "float32"],
    ),
    "needed entry -1": (_with_entry(0, 2, -1), ["active_blocks_table", "-1"]),
    "needed entry too large": (_with_entry(1, 0, 1000), ["active_blocks_table", "1000"]),
    "slot past the end": (
        {"kv_cache_update_idx": np.array([[0], [10**6]], np.uint32)},
        ["kv_cache_update_idx", "1000000"],
    ),
    "two rows, one slot": (
        {"kv_cache_update_idx": np.array([[16], [18]], np.uint32)},
        ["kv_cache_update_idx", "18"],
    ),
}

QUANTISED = {
    "STATIC without input scale": (STATIC, {"input_dequant_scale_qkv": None}, ["input_dequant_"]),
    "STATIC without weight scale": (STATIC, {"weight_dequant_scale_out": None}, ["weight_dequant"]),
    "STATIC float weight": (
        STATIC,
        lambda call: {"W_qkv": call["W_qkv"].astype(np.float32)},
        ["W_qkv", "STATIC", "float32"],
    ),
    "STATIC two scales": (
        STATIC,
        {"weight_dequant_scale_qkv": np.ones((1, 2), np.float32)},
        ["weight_dequant_scale_qkv", "(1, 2)"],
    ),
    "STATIC three scales for W_out": (
        STATIC,
        {"weight_dequant_scale_out": np.ones((1, 3), np.float32)},
        ["weight_dequant_scale_out", "(1, 3)"],
    ),
    "STATIC rows differ": (
        STATIC,
        {"input_dequant_scale_qkv": np.arange(1, 129, dtype=np.float32)[:, None]},
        ["input_dequant_scale_qkv", "equal"],
    ),
    "STATIC scale of zero": (
        STATIC,
        {"input_dequant_scale_qkv": np.zeros((1, 1), np.float32)},
        ["input_dequant_scale_qkv", "0.0"],
    ),
    "ROW with input scale": (
        ROW,
        {"input_dequant_scale_qkv": np.ones((1, 1), np.float32)},
        ["input_dequant_scale_qkv", "ROW"],
    ),
    "ROW scale width": (
        ROW,
        {"weight_dequant_scale_qkv": np.ones((1, 1), np.float32)},
        ["weight_dequant_scale_qkv", "(1, 1)"],
    ),
    "ROW scale rows": (
        ROW,
        {"weight_dequant_scale_out": np.ones((64, 128), np.float32)},
        ["weight_dequant_scale_out", "(64, 128)"],
    ),
    "ROW rows differ": (
        ROW,
        {"weight_dequant_scale_out": np.tile(np.arange(1.0, 129, dtype=np.float32)[:, None], 128)},
        ["weight_dequant_scale_out", "equal"],
    ),
    "FP8 cache without scales": (
        FP8_CACHE,
        {"k_scale": None, "v_scale": None},
        ["k_scale", "v_scale", "FP8 cache"],
    ),
    "FP8 cache, one scale": (FP8_CACHE, {"v_scale": None}, ["v_scale", "k_scale"]),
    "k_scale shape": (FP8_CACHE, {"k_scale": np.ones((2, 1), np.float32)}, ["k_scale", "(2, 1)"]),
    "k_scale zero": (FP8_CACHE, {"k_scale": np.zeros((1, 1), np.float32)}, ["k_scale", "0.0"]),
    "v_scale NaN": (
        FP8_CACHE,
        {"v_scale": np.full((1, 1), np.nan, np.float32)},
        ["v_scale", "nan"],
    ),
    "k_scale rows differ": (
        FP8_CACHE,
        {"k_scale": np.arange(1, 129, dtype=np.float32)[:, None]},
        ["k_scale", "equal"],
    ),
    "two FP8 formats": (
        FP8_CACHE,
        lambda call: {"K_cache": call["K_cache"].astype(np.float32).astype(E4M3FN)},
        ["K_cache", "float8_e4m3fn"],
    ),
}
