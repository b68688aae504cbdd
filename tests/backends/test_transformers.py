"""The attention layers of transformers, which nobody here wrote, in float32.

A small random model runs as it is: a prompt, then several decode steps, with its own masks, rotary
tables and cache. Hooks take down what enters each layer's input norm and what leaves its attention;
the block has to give the same from the same weights, with a cache of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers

import tkg
from tests.calls import cores, run_as_is
from tkg.testing.placed import on

SHAPES = {
    "vocab_size": 50,
    "hidden_size": 96,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
PROMPT, STEPS, CAPACITY = 11, 6, 20

TWO_KINDS = {
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 5,
}

MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaModel, {"attention_bias": True}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2Model, {}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3Model, {}),
    "gemma3": (
        transformers.Gemma3TextConfig,
        transformers.Gemma3TextModel,
        {"query_pre_attn_scalar": 24} | TWO_KINDS,
    ),
    "gpt-oss": (
        transformers.GptOssConfig,
        transformers.GptOssModel,
        {"num_local_experts": 2, "num_experts_per_tok": 1} | TWO_KINDS,
    ),
}


@dataclass
class Seen:
    """What passed through one layer, step by step."""

    entered: list[torch.Tensor] = field(default_factory=list)
    left: list[torch.Tensor] = field(default_factory=list)
    angles: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


def random_model(name: str) -> Any:
    """Weights that make attention sharp, and norms, biases and sinks that are not neutral."""
    make_config, make_model, extra = MODELS[name]
    torch.manual_seed(0)
    model = make_model(make_config(**(SHAPES | extra))).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
                parameter.mul_(2 if "q_proj" in key or "k_proj" in key else 1)
            else:
                parameter.normal_(1 if "norm" in key and "gemma" not in name else 0, 0.3)
    return model


@pytest.fixture(scope="module", params=MODELS)
def run_model(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any, list[Seen]]]:
    model = random_model(request.param)
    seen = [Seen() for _ in model.layers]
    for layer, record in zip(model.layers, seen, strict=True):
        layer.input_layernorm.register_forward_pre_hook(
            lambda _, args, record=record: record.entered.append(args[0])
        )

        def attended(_: Any, __: Any, kwargs: Any, output: Any, record: Seen = record) -> None:
            record.left.append(output[0])
            record.angles.append(kwargs["position_embeddings"])

        layer.self_attn.register_forward_hook(attended, with_kwargs=True)
    tokens = torch.randint(0, 50, (2, PROMPT + STEPS))
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens[:, :PROMPT], cache=cache)
        for step in range(STEPS):
            at = PROMPT + step
            model(tokens[:, at : at + 1], cache=cache)
    yield request.param, model, seen


def norm_weight(name: str, norm: Any) -> torch.Tensor:
    """`[1, n]`. Gemma stores what is to be added to 1."""
    return (norm.weight.detach() + (1.0 if name == "gemma3" else 0.0))[None].contiguous()


def stacked(attention: Any, what: str) -> torch.Tensor | None:
    """Q, K and V side by side: weights as [in, out], or biases as [1, out]."""
    parts = [getattr(getattr(attention, f"{which}_proj"), what) for which in "qkv"]
    if parts[0] is None:
        return None
    together = torch.cat([part.detach() for part in parts])
    return together.t().contiguous() if what == "weight" else together[None]


def options(name: str, model: Any, layer: Any) -> dict[str, Any]:
    """Everything of the call that does not change from step to step."""
    attention, eps = layer.self_attn, model.config.rms_norm_eps
    call: dict[str, Any] = {
        "rmsnorm_X_enabled": True,
        "rmsnorm_X_eps": eps,
        "rmsnorm_X_gamma": norm_weight(name, layer.input_layernorm),
        "W_qkv": stacked(attention, "weight"),
        "bias_qkv": stacked(attention, "bias"),
        "softmax_scale": attention.scaling,
        "W_out": attention.o_proj.weight.detach().t().contiguous(),
    }
    if attention.o_proj.bias is not None:
        call["bias_out"] = attention.o_proj.bias.detach()[None]
    if hasattr(attention, "q_norm"):
        call |= {"rmsnorm_QK_pre_rope_enabled": True, "rmsnorm_QK_pre_rope_eps": eps}
        for which, norm in (("Q", attention.q_norm), ("K", attention.k_norm)):
            call[f"rmsnorm_QK_pre_rope_W_{which}"] = norm_weight(name, norm)
    if hasattr(attention, "sinks"):
        call["sink"] = attention.sinks.detach()[:, None]
    if getattr(attention, "sliding_window", None) is not None:
        call["sliding_window"] = attention.sliding_window
    return call


def tables(angles: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' [B or 1, S, d or d/2] as the call's [d/2, B, S]."""
    halves = (t[..., :8].expand(2, -1, -1).permute(2, 0, 1).contiguous() for t in angles)
    return dict(zip(("cos", "sin"), halves, strict=True))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Two float32 computations: a few hundred roundings of 6e-8 apart, relative to the largest."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    "layout",
    [*(pytest.param(n, marks=pytest.mark.repeats) for n in ("flat", "transposed")), "block"],
)
def test_the_call_gives_what_the_layer_gives(
    backend: str, run_model: tuple[str, Any, list[Seen]], layout: str
) -> None:
    name, model, seen = run_model
    for layer, record in zip(model.layers, seen, strict=True):
        call = options(name, model, layer)
        call |= {"K_cache": torch.full((2, 2, CAPACITY, 16), torch.nan)}
        call |= {"V_cache": torch.full((2, 2, CAPACITY, 16), torch.nan)}
        if layout == "transposed":
            call |= {"K_cache": call["K_cache"].mT.contiguous(), "K_cache_transposed": True}
        table = None
        if layout == "block":
            table = torch.tensor([[7, 1, 4, 0, 8], [2, 9, 3, 6, 5]], dtype=torch.int32)
            caches = {k: torch.full((10, 4, 2, 16), torch.nan) for k in ("K_cache", "V_cache")}
            call |= caches | {"active_blocks_table": table}
        call = on(backend, call)
        first = 0
        for x, want, angles in zip(record.entered, record.left, record.angles, strict=True):
            positions = (first + torch.arange(x.shape[1])).expand(2, -1).contiguous()
            slots = positions
            if table is not None:
                pages = table.long().gather(1, positions // 4)
                slots = pages * 4 + positions % 4
            step: dict[str, Any] = call | tables(angles) | {"X": x, "pos_ids": positions}
            step |= {"update_cache": True, "kv_cache_update_idx": slots}
            out, *_ = run_as_is(backend, on(backend, step))
            close(out.reshape(want.shape).cpu(), want)
            first += x.shape[1]
        assert first == PROMPT + STEPS


@pytest.mark.repeats
def test_the_objects_give_what_the_layer_gives(
    backend: str, run_model: tuple[str, Any, list[Seen]]
) -> None:
    name, model, seen = run_model
    for layer, record in zip(model.layers, seen, strict=True):
        call = on(backend, options(name, model, layer))
        eps = call["rmsnorm_X_eps"]
        norms = None
        if "rmsnorm_QK_pre_rope_enabled" in call:
            q_weight, k_weight = (call[f"rmsnorm_QK_pre_rope_W_{which}"] for which in "QK")
            norms = tkg.QKNorm(q_weight, k_weight, eps)
        block = tkg.AttentionBlock(
            heads=tkg.Heads(6, 2, 16),
            qkv=tkg.Linear(call["W_qkv"], call["bias_qkv"]),
            out=tkg.Linear(call["W_out"], call.get("bias_out")),
            input_norm=tkg.RMSNorm(call["rmsnorm_X_gamma"], eps),
            pre_rope_norm=norms,
            rope="half",
            sink=call.get("sink"),
            softmax_scale=call["softmax_scale"],
            sliding_window=call.get("sliding_window"),
            lnc=cores(backend),
            backend=backend,
        )
        zeros = [on(backend, torch.zeros(2, 2, CAPACITY, 16)) for _ in range(2)]
        cache = tkg.KVCache(*zeros)
        first = 0
        for x, want, angles in zip(record.entered, record.left, record.angles, strict=True):
            positions = (first + torch.arange(x.shape[1])).expand(2, -1).contiguous()
            rope = on(backend, tuple(tables(angles).values()))
            x, positions = on(backend, (x, positions))
            close(block(x, cache, positions, rope=rope).cpu(), want)
            first += x.shape[1]


def test_rope_tables_are_the_models(run_model: tuple[str, Any, list[Seen]]) -> None:
    name, model, seen = run_model
    if name == "gpt-oss":  # its frequencies are scaled, by a rule that is not ours to know
        inv_freq: Any = model.rotary_emb.inv_freq
        factor = float(model.rotary_emb.attention_scaling)
    else:
        inv_freq, factor = None, 1.0
    bases = model.config.rope_parameters
    for index, record in enumerate(seen):
        base = bases
        if name == "gemma3":
            base = bases[model.config.layer_types[index]]
        positions = torch.arange(PROMPT).expand(2, -1).contiguous()
        got = tkg.rope_tables(positions, 16, base["rope_theta"], inv_freq)
        for ours, theirs in zip(got, tables(record.angles[0]).values(), strict=True):
            torch.testing.assert_close(ours * factor, theirs, rtol=0, atol=2e-6)
