"""Small cases, each at an edge of the contract that its name tells."""

from __future__ import annotations

from typing import Any

from tkg.testing.case import PADDED, Case


def _edge(name: str, **fields: Any) -> Case:
    return Case(name=name, tags=frozenset({"ci", "edge"}), **fields)


_HEADS = (
    _edge("d-head-2", d_head=2, q_heads=3, hidden=40),
    _edge("d-head-6-interleaved", d_head=6, q_heads=2, rope="interleaved", hidden=10),
    _edge("d-head-512", d_head=512, q_heads=2, lengths=(20,)),
    _edge("group-5", q_heads=10, kv_heads=2),
    _edge("group-7", q_heads=7, kv_heads=1, head_axis=False),
    _edge("group-1", q_heads=3, kv_heads=3),
    _edge("one-head-3d-cache", q_heads=1, head_axis=False),
    _edge("hidden-1", hidden=1, q_heads=2),
    _edge("batch-9", lengths=(0, 1, 2, 3, 16, 17, 31, 33, 63)),
)

_TOKENS = (
    _edge("tokens-2", tokens=2),
    _edge("tokens-5-bf16", tokens=5, dtype="bfloat16", q_heads=6, kv_heads=2),
    _edge("tokens-128", tokens=128, lengths=(3, PADDED), capacity=160, d_head=16),
    _edge("tokens-fill-the-cache", tokens=8, lengths=(56, 0)),
    _edge("tokens-wide-slots", tokens=4, wide=True, lengths=(30, 7)),
    _edge("tokens-wide-slots-block", tokens=4, wide=True, cache="block", block_len=3, capacity=66),
    _edge("tokens-window", tokens=6, window=4, lengths=(40, 2)),
    _edge("tokens-2-full-window", tokens=2, window=7, lengths=(40, 6)),
    _edge("tokens-window-at-64", tokens=6, window=41, lengths=(100,), capacity=112),
    _edge("tokens-block-1", tokens=3, cache="block", block_len=1, capacity=48),
)

_CACHES = (
    _edge("transposed-k", cache="transposed"),
    _edge("transposed-k-3d-bf16", cache="transposed", head_axis=False, dtype="bfloat16", tokens=3),
    _edge("block-len-1", cache="block", block_len=1, capacity=48),
    _edge("block-len-3", cache="block", block_len=3, capacity=48),
    _edge("block-len-16-3d", cache="block", head_axis=False, lengths=(48, 0, 63)),
    _edge("block-kv-2", cache="block", kv_heads=2, lengths=(33, PADDED)),
    _edge("block-window-1", cache="block", window=1, lengths=(20, 1)),
    _edge("block-window", cache="block", block_len=4, window=9, lengths=(50, 4)),
    _edge("no-update", update=False),
    _edge("no-update-3d", update=False, head_axis=False, tokens=3),
    _edge("no-update-padded-row", update=False, kv_heads=2, lengths=(9, PADDED), dtype="bfloat16"),
    _edge("skipped-slot", skipped=(0,), tokens=2),
    _edge("padded-rows", lengths=(PADDED, 20, PADDED), bias_out=True),
    _edge("only-padded-rows", lengths=(PADDED, PADDED), bias_out=True),
    _edge("empty-cache", lengths=(0, 0)),
    _edge("mixed-dtypes", dtype="float32", weight_dtype="bfloat16", cache_dtype="float16"),
    _edge("bf16-float32-cache", dtype="bfloat16", cache_dtype="float32", out_dtype="float32"),
    _edge("float16", dtype="float16", small_dtype="float16", sink=True),
)

_MASKS = (
    _edge("mask-causal", visible="causal", tokens=3),
    _edge("mask-holes", visible="holes", tokens=3, lengths=(50, 17)),
    _edge("mask-nothing", visible="nothing", tokens=2, bias_out=True),
    _edge("mask-nothing-no-projection", visible="nothing", projection=None),
    _edge("mask-nothing-but-sink", visible="nothing", sink=True),
    _edge("mask-short-context", visible="holes", lengths=(20, 9), context=24),
    _edge("mask-holes-block", visible="holes", cache="block", context=64, lengths=(40, 63)),
    _edge("mask-holes-transposed-bf16", visible="holes", cache="transposed", dtype="bfloat16"),
    _edge("mask-only-new-tokens", visible="causal", tokens=4, context=4, lengths=(0, 0)),
    _edge("mask-holes-fp8", visible="holes", cache_dtype="float8_e4m3", tokens=2),
)

_NORMS = (
    _edge("no-norm", eps=None, x_rms=1.0),
    _edge("norm-without-gamma", gamma=False),
    _edge("hidden-padded", hidden=256, hidden_actual=160),
    _edge("hidden-padded-no-norm", hidden=256, hidden_actual=130, eps=None),
    _edge("qk-norm-before-rope", pre_norm=1e-6),
    _edge("qk-norm-after-rope", post_norm=1e-5, rope="interleaved"),
    _edge("qk-norm-both-no-weights", pre_norm=1e-3, post_norm=1e-3, head_gamma=False),
    _edge("no-rope", rope=None),
    _edge("rope-interleaved", rope="interleaved", dtype="bfloat16"),
    _edge("sink", sink=True, lengths=(40, 0)),
    _edge("sink-window", sink=True, window=5, tokens=3, q_heads=6, kv_heads=2),
    _edge("window-1", window=1, tokens=3),
    _edge("softmax-scale", softmax_scale=0.3),
)

_FP8 = (
    _edge("static-qkv", qkv="STATIC"),
    _edge("static-qkv-three-scales", qkv="STATIC", three_scales=True, scale_rows=128),
    _edge("static-fn", qkv="STATIC", out="STATIC", static_format="float8_e4m3fn", bias_qkv=True),
    _edge("static-out", out="STATIC", dtype="bfloat16", bias_out=True),
    _edge("row", qkv="ROW", out="ROW", bias_qkv=True, bias_out=True),
    _edge("row-128", qkv="ROW", out="ROW", scale_rows=128, dtype="bfloat16"),
    _edge("row-fn", qkv="ROW", static_format="float8_e4m3fn", hidden=256, hidden_actual=200),
    _edge("row-qkv-static-out", qkv="ROW", out="STATIC", scale_rows=128),
    _edge("fp8-cache", cache_dtype="float8_e4m3", scale_rows=128),
    _edge("fp8-cache-fn", cache_dtype="float8_e4m3fn", kv_heads=2),
    _edge("fp8-cache-transposed", cache_dtype="float8_e4m3", cache="transposed", dtype="bfloat16"),
    _edge("fp8-cache-block", cache_dtype="float8_e4m3fn", cache="block", block_len=3, capacity=48),
    _edge("fp8-cache-no-update", cache_dtype="float8_e4m3", update=False, tokens=2),
    _edge("fp8-everything", qkv="STATIC", out="STATIC", cache_dtype="float8_e4m3", sink=True),
)

_OUTPUTS = (
    _edge("no-projection", projection=None, tokens=2),
    _edge("transposed-out", projection="transposed", hidden=256),
    _edge("transposed-out-lnc2", projection="transposed", lnc=2, hidden=512, tokens=2),
    _edge("skip-attention", skip_attention=True, pre_norm=1e-6),
    _edge("skip-attention-no-projection", skip_attention=True, projection=None, tokens=2),
)

EDGE_CASES: tuple[Case, ...] = _HEADS + _TOKENS + _CACHES + _MASKS + _NORMS + _FP8 + _OUTPUTS
