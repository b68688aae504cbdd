"""tkg's object API: the layer is made once, a step is one call."""

from __future__ import annotations

from typing import Any

import numpy as np

import tkg
from tkg.bench.check import Answer, answer_of
from tkg.bench.inputs import Call
from tkg.bench.peers import Setup


class Ours:
    """`tkg.AttentionBlock` with a rotation of layers and caches."""

    calls_per_run = 1

    def __init__(self, setup: Setup) -> None:
        self._call = setup.call
        tkg.set_num_threads(setup.threads)
        self._sets = [_copy(setup.call) for _ in range(setup.copies)]
        self._next = 0
        slots = setup.call["kv_cache_update_idx"].astype(np.int64)
        self._slots = slots + np.arange(setup.call["X"].shape[1])
        cos, sin = setup.call["cos"], setup.call["sin"]
        self._rope = (cos, sin)

    def settle(self) -> None:
        pass

    def run(self) -> None:
        layer, cache = self._sets[self._next]
        self._next = (self._next + 1) % len(self._sets)
        self._step(layer, cache)

    def answer(self) -> Answer:
        layer, cache = self._sets[0]
        out = self._step(layer, cache)
        rows = out.reshape(-1, out.shape[-1])
        return answer_of(self._call, rows, cache.k.source, cache.v.source)

    def _step(self, layer: tkg.AttentionBlock, cache: tkg.KVCache) -> np.ndarray:
        call = self._call
        return layer(call["X"], cache, call["pos_ids"], rope=self._rope, slots=self._slots)


def build(setup: Setup) -> Ours:
    """The contestant; see `Contestant`."""
    return Ours(setup)


def _copy(call: Call) -> tuple[tkg.AttentionBlock, tkg.KVCache]:
    cache = _cache(call)
    return _layer(call, cache), cache


def _cache(call: Call) -> tkg.KVCache:
    """The call's caches in memory of tkg's own."""
    table, scale, v = call.get("active_blocks_table"), None, call["V_cache"]
    if "k_scale" in call:
        scale = tkg.KVScale.quantize(float(call["k_scale"][0, 0]), float(call["v_scale"][0, 0]))
    kind = {"dtype": v.dtype.name, "d_head": v.shape[-1], "scale": scale}
    if table is None:
        batch, kv_heads, capacity, _ = v.shape
        cache = tkg.KVCache.flat(batch=batch, capacity=capacity, kv_heads=kv_heads, **kind)
    else:
        pages, length, kv_heads, _ = v.shape
        cache = tkg.KVCache.block(
            num_blocks=pages, block_len=length, kv_heads=kv_heads, block_table=table.copy(), **kind
        )
    cache.k.source[...] = call["K_cache"]
    cache.v.source[...] = v
    return cache


def _layer(call: Call, cache: tkg.KVCache) -> tkg.AttentionBlock:
    kv_heads, d_head = cache.geometry.kv_heads, cache.geometry.d_head
    q_heads = call["W_qkv"].shape[1] // d_head - 2 * kv_heads
    softmax_scale, out = call.get("softmax_scale"), _linear(call, "out")
    if cache.scale is not None:
        # The call's own numbers have the cache's scales folded in; a layer folds them itself.
        softmax_scale = call["softmax_scale"] * cache.scale.k
        out = _unfolded(out, cache.scale.v)
    return tkg.AttentionBlock(
        heads=tkg.Heads(q=q_heads, kv=kv_heads, d_head=d_head),
        qkv=_linear(call, "qkv"),
        out=out,
        input_norm=tkg.RMSNorm(call["rmsnorm_X_gamma"], call["rmsnorm_X_eps"]),
        pre_rope_norm=_head_norm(call),
        rope="half" if call["rope_contiguous_layout"] else "interleaved",
        sink=call.get("sink"),
        softmax_scale=softmax_scale,
        backend="cpu",
    )


def _linear(call: Call, which: str) -> tkg.Linear:
    return tkg.Linear(
        call[f"W_{which}"],
        bias=call.get(f"bias_{which}"),
        quantization=call.get(f"quantization_type_{which}", tkg.QuantizationType.NONE),
        weight_scale=call.get(f"weight_dequant_scale_{which}"),
        input_scale=call.get(f"input_dequant_scale_{which}"),
    )


def _unfolded(linear: tkg.Linear, v_scale: float) -> tkg.Linear:
    """The FP8 projection of attention values that are `v_scale` times smaller."""

    def times(scale: Any, factor: float) -> Any:
        return None if scale is None else scale.numpy() * np.float32(factor)

    return tkg.Linear(
        linear.weight,
        bias=linear.bias,
        quantization=linear.quantization,
        weight_scale=times(linear.weight_scale, v_scale),
        input_scale=times(linear.input_scale, 1.0 / v_scale),
    )


def _head_norm(call: Call) -> tkg.QKNorm | None:
    name = "rmsnorm_QK_pre_rope"
    if f"{name}_eps" not in call:
        return None
    return tkg.QKNorm(call[f"{name}_W_Q"], call[f"{name}_W_K"], call[f"{name}_eps"])
