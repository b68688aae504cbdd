"""The numbers of a case.

Activations stay near 1 and attention is sharp (scores have a standard deviation near 2), so that a
wrong position, head or scale moves the output by far more than rounding does.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from tkg.contract.dtypes import FP8_MAX, NUMPY
from tkg.contract.quantization import QuantizationType
from tkg.testing.cache_inputs import cache_inputs
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.rounding import round_to

K_SIZE = 2.0
"""Standard deviation of K's entries; V's is 1."""

K_SCALE, V_SCALE = 37.0, 71.0
"""Multipliers of FP8 caches; at three to four standard deviations values reach +-240 and clip."""


def generator(name: str, seed: int) -> np.random.Generator:
    """Random numbers that depend on the case's name and the seed, and on nothing else."""
    return np.random.default_rng([zlib.crc32(name.encode()), seed])


def block_inputs(case: Case, seed: int, invalid: float) -> dict[str, Any]:
    """See `Case.inputs`."""
    rng = generator(case.name, seed)
    fp8_cache = (case.cache_dtype or case.dtype).startswith("float8")
    call: dict[str, Any] = {"X": _hidden_states(case, rng, invalid)}
    call |= _norms(case, rng)
    call |= _qkv(case, rng, invalid)
    call |= _rope(case, invalid)
    call |= _visibility(case, rng)
    call |= cache_inputs(case, rng, invalid, call.get("attention_mask"), (K_SIZE, K_SCALE, V_SCALE))
    if fp8_cache:
        rows = (case.scale_rows, 1)
        call |= {
            "k_scale": np.full(rows, K_SCALE, np.float32),
            "v_scale": np.full(rows, V_SCALE, np.float32),
        }
    if fp8_cache or case.softmax_scale is not None:
        scale = case.softmax_scale or case.d_head**-0.5
        call["softmax_scale"] = scale / (K_SCALE if fp8_cache else 1.0)
    if case.window is not None:
        call["sliding_window"] = case.window
    if case.sink:
        sink = 1.0 + rng.standard_normal((case.q_heads, 1))
        call["sink"] = sink.astype(NUMPY[case.small_dtype])
    if case.skip_attention:
        call["skip_attention"] = True
    call |= _output(case, rng, V_SCALE if fp8_cache and not case.skip_attention else 1.0)
    return call


def projection_inputs(case: ProjectionCase, seed: int) -> dict[str, Any]:
    """See `ProjectionCase.inputs`."""
    rng = generator(case.name, seed)
    shape = (case.d_head, case.batch, case.heads, case.tokens)
    length = case.heads * case.d_head
    dtype = NUMPY[case.dtype]
    call: dict[str, Any] = {"attention": rng.standard_normal(shape).astype(dtype)}
    weight = rng.standard_normal((length, case.hidden)) * length**-0.5
    quantised = _quantise(weight, case.quantization, case.static_format, case.scale_rows, 3.0)
    call["weight"] = quantised.pop("weight", weight).astype(
        NUMPY[case.static_format if quantised else case.weight_dtype or case.dtype]
    )
    if quantised:
        call["quantization_type"] = QuantizationType[case.quantization]
    call |= quantised
    if case.bias:
        call["bias"] = rng.standard_normal((1, case.hidden)).astype(dtype)
    if case.transposed:
        call |= {"TRANSPOSE_OUT": True, "lnc": case.lnc}
    return call


def _hidden_states(case: Case, rng: np.random.Generator, invalid: float) -> np.ndarray:
    X = case.x_rms * rng.standard_normal((case.batch, case.tokens, case.hidden))
    X[:, :, case.hidden_actual or case.hidden :] = invalid
    X[[length < 0 for length in case.lengths]] = invalid
    return X.astype(NUMPY[case.dtype])


def _norms(case: Case, rng: np.random.Generator) -> dict[str, Any]:
    call: dict[str, Any] = {}
    small = NUMPY[case.small_dtype]
    if case.hidden_actual is not None:
        call["X_hidden_dim_actual"] = case.hidden_actual
    if case.eps is not None:
        call |= {"rmsnorm_X_enabled": True, "rmsnorm_X_eps": case.eps}
        if case.gamma:
            gamma = 1.0 + 0.2 * rng.standard_normal((1, case.hidden))
            call["rmsnorm_X_gamma"] = gamma.astype(small)
    for place, eps in (("pre", case.pre_norm), ("post", case.post_norm)):
        if eps is None:
            continue
        prefix = f"rmsnorm_QK_{place}_rope"
        call |= {f"{prefix}_enabled": True, f"{prefix}_eps": eps}
        if case.head_gamma:
            for which, size in (("Q", 1.0), ("K", K_SIZE)):
                weight = size + 0.2 * rng.standard_normal((1, case.d_head))
                call[f"{prefix}_W_{which}"] = weight.astype(small)
    return call


def _qkv(case: Case, rng: np.random.Generator, invalid: float) -> dict[str, Any]:
    length = case.hidden_actual or case.hidden
    sections = np.array([case.q_heads, case.kv_heads, case.kv_heads]) * case.d_head
    columns = int(sections.sum())
    x_size = case.x_rms if case.eps is None else 1.0
    weight = rng.standard_normal((case.hidden, columns)) * length**-0.5 / x_size
    weight[:, sections[0] : sections[0] + sections[1]] *= K_SIZE
    widths = sections if case.three_scales else np.array([columns])
    quantised = _quantise(
        weight, case.qkv, case.static_format, case.scale_rows, 3.0 * x_size, tuple(widths)
    )
    weight = quantised.pop("weight", weight)
    weight[length:] = invalid
    dtype = case.static_format if quantised else case.weight_dtype or case.dtype
    call: dict[str, Any] = {"W_qkv": weight.astype(NUMPY[dtype])}
    if quantised:
        call["quantization_type_qkv"] = QuantizationType[case.qkv]
        call |= {f"{k.replace('_scale', '_dequant_scale')}_qkv": v for k, v in quantised.items()}
    if case.bias_qkv:
        bias = 0.5 * rng.standard_normal((1, columns))
        call["bias_qkv"] = bias.astype(NUMPY[case.small_dtype])
    return call


def _output(case: Case, rng: np.random.Generator, x_size: float) -> dict[str, Any]:
    if case.projection is None:
        return {}
    length = case.q_heads * case.d_head
    weight = rng.standard_normal((length, case.hidden)) * length**-0.5 / x_size
    quantised = _quantise(weight, case.out, case.static_format, case.scale_rows, 2.0 * x_size)
    weight = quantised.pop("weight", weight)
    dtype = case.static_format if quantised else case.out_dtype or case.dtype
    call: dict[str, Any] = {"W_out": weight.astype(NUMPY[dtype])}
    if quantised:
        call["quantization_type_out"] = QuantizationType[case.out]
        call |= {f"{k.replace('_scale', '_dequant_scale')}_out": v for k, v in quantised.items()}
    if case.bias_out:
        bias = 0.5 * rng.standard_normal((1, case.hidden))
        call["bias_out"] = bias.astype(NUMPY[case.small_dtype])
    if case.projection == "transposed":
        call |= {"transposed_out": True, "lnc": case.lnc}
    return call


def _quantise(
    weight: np.ndarray,
    mode: str,
    fp8: str,
    scale_rows: int,
    largest_input: float,
    widths: tuple[int, ...] = (),
) -> dict[str, np.ndarray]:
    """`weight` on the FP8 grid with its scales; empty for "NONE".

    `widths`: the column sections that have a scale each under STATIC. Each scale maps the section's
    largest weight to the format's largest value; `largest_input` maps to 240, inputs beyond clip.
    """
    if mode == "NONE":
        return {}
    top = 448.0 if fp8 == "float8_e4m3fn" else FP8_MAX
    if mode == "ROW":
        scale = np.abs(weight).max(0)[None] / top
    else:
        parts = np.split(weight, np.cumsum(widths)[:-1], axis=1) if widths else [weight]
        scale = np.array([[np.abs(part).max() / top for part in parts]])
    scale = scale.astype(np.float32)
    per_column = np.repeat(scale, widths, axis=1) if mode == "STATIC" and widths else scale
    stored = round_to(np.clip(weight / per_column, -top, top), fp8)
    result = {"weight": stored, "weight_scale": np.repeat(scale, scale_rows, axis=0)}
    if mode == "STATIC":
        result["input_scale"] = np.full((scale_rows, 1), largest_input / FP8_MAX, np.float32)
    return result


def _rope(case: Case, invalid: float) -> dict[str, Any]:
    if case.rope is None:
        return {}
    positions = np.array(case.lengths, np.float64)[:, None] + np.arange(case.tokens)
    positions[[length < 0 for length in case.lengths]] = invalid
    frequency = case.rope_base ** (-np.arange(0, case.d_head, 2) / case.d_head)
    angle = frequency[:, None, None] * positions
    small = NUMPY[case.small_dtype]
    return {
        "cos": np.cos(angle).astype(small),
        "sin": np.sin(angle).astype(small),
        "rope_contiguous_layout": case.rope == "half",
    }


def _visibility(case: Case, rng: np.random.Generator) -> dict[str, Any]:
    lengths = np.array(case.lengths, np.int32)
    if not case.masked:
        positions = lengths[:, None] + np.arange(case.tokens, dtype=np.int32)
        positions[lengths < 0] = -1
        return {"pos_ids": positions}
    prior = case.s_ctx - case.tokens
    shape = (case.s_ctx, case.batch, case.q_heads, case.tokens)
    mask = np.zeros(shape, bool)
    mask[:prior] = (np.arange(prior)[:, None] < lengths)[:, :, None, None]
    mask[prior:] = np.triu(np.ones((case.tokens, case.tokens), bool))[:, None, None, :]
    if case.visible == "causal":
        return {"attention_mask": mask}
    mask &= rng.random(shape) < 0.7
    if case.visible == "nothing":
        mask[:, -1] = False
        mask[:, 0, 0, 0] = False
    return {"attention_mask": mask * rng.integers(1, 256, shape, np.uint8)}
