"""From the drop-in keyword arguments to a validated call object.

The drop-in call has some 40 flat arguments; `BLOCK_NAMES` says which field of the call object
each becomes, and the checks use it to speak the caller's language.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from tkg.contract import dtypes
from tkg.contract.arrays import Array, handle
from tkg.contract.block import Block, BlockCall, Heads, Linear, QKNorm, RMSNorm
from tkg.contract.block_rules import check_block
from tkg.contract.cache import KVCache, check_cache
from tkg.contract.call_rules import checked
from tkg.contract.errors import Rules
from tkg.contract.linear_rules import SCALE_ROWS, check_dtype, check_equal_rows
from tkg.contract.quantization import KVScale, QuantizationType

LIBRARY_EPS = 1e-3
"""The epsilon of the NKI Library's attention block where none is given."""

BLOCK_NAMES = {
    "x": "X",
    "hidden_dim_actual": "X_hidden_dim_actual",
    "input_norm.weight": "rmsnorm_X_gamma",
    "input_norm.eps": "rmsnorm_X_eps",
    "qkv.weight": "W_qkv",
    "qkv.bias": "bias_qkv",
    "qkv.quantization": "quantization_type_qkv",
    "qkv.weight_scale": "weight_dequant_scale_qkv",
    "qkv.input_scale": "input_dequant_scale_qkv",
    "pre_rope_norm.eps": "rmsnorm_QK_pre_rope_eps",
    "pre_rope_norm.q_weight": "rmsnorm_QK_pre_rope_W_Q",
    "pre_rope_norm.k_weight": "rmsnorm_QK_pre_rope_W_K",
    "post_rope_norm.eps": "rmsnorm_QK_post_rope_eps",
    "post_rope_norm.q_weight": "rmsnorm_QK_post_rope_W_Q",
    "post_rope_norm.k_weight": "rmsnorm_QK_post_rope_W_K",
    "cache.k": "K_cache",
    "cache.v": "V_cache",
    "cache.transposed": "K_cache_transposed",
    "cache.block_table": "active_blocks_table",
    "cache.scale": "the cache's scale",
    "cache.scale.k": "k_scale",
    "cache.scale.v": "v_scale",
    "mask": "attention_mask",
    "slot_ids": "kv_cache_update_idx",
    "out.weight": "W_out",
    "out.bias": "bias_out",
    "out.quantization": "quantization_type_out",
    "out.weight_scale": "weight_dequant_scale_out",
    "out.input_scale": "input_dequant_scale_out",
}
"""Field of the call object to keyword argument, where the two differ."""

_ARRAYS = (
    *("X", "rmsnorm_X_gamma", "W_qkv", "bias_qkv"),
    *("weight_dequant_scale_qkv", "input_dequant_scale_qkv", "cos", "sin"),
    *("rmsnorm_QK_pre_rope_W_Q", "rmsnorm_QK_pre_rope_W_K"),
    *("rmsnorm_QK_post_rope_W_Q", "rmsnorm_QK_post_rope_W_K"),
    *("K_cache", "V_cache", "active_blocks_table", "attention_mask", "pos_ids", "sink"),
    *("kv_cache_update_idx", "k_scale", "v_scale", "W_out", "bias_out"),
    *("weight_dequant_scale_out", "input_dequant_scale_out"),
)
_KINDS = ("quantization_type_qkv", "quantization_type_out")

_WEIGHTS = (
    ("rmsnorm_X_enabled", "rmsnorm_X_gamma"),
    ("rmsnorm_QK_pre_rope_enabled", "rmsnorm_QK_pre_rope_W_Q"),
    ("rmsnorm_QK_pre_rope_enabled", "rmsnorm_QK_pre_rope_W_K"),
    ("rmsnorm_QK_post_rope_enabled", "rmsnorm_QK_post_rope_W_Q"),
    ("rmsnorm_QK_post_rope_enabled", "rmsnorm_QK_post_rope_W_K"),
)
"""A norm's weights, each behind the switch of its norm."""


def block_call(arguments: Mapping[str, Any]) -> BlockCall:
    """The validated call object of `attention_block_tkg`'s keyword arguments.

    Args:
        arguments: every keyword of `tkg.attention_block_tkg`; `backend` is not looked at.

    Raises:
        ValueError, TypeError: with all broken rules.
    """
    rules = Rules(BlockCall.operation, BLOCK_NAMES)
    args = with_handles(rules, arguments, _ARRAYS, _KINDS)
    require(rules, args, ("X", "W_qkv", "K_cache", "V_cache"))
    _check_on_chip_only(rules, args)
    _check_belongings(rules, args)
    cache = KVCache(
        k=args["K_cache"],
        v=args["V_cache"],
        transposed=bool(args["K_cache_transposed"]),
        block_table=args["active_blocks_table"],
        scale=_kv_scale(rules, args),
    )
    if not cache.is_sound:  # without it there is no telling heads and d_head
        check_cache(rules, cache)
        rules.raise_broken()
    block = _block(args, cache)
    check_block(rules, block)
    call = BlockCall(
        block=block,
        x=args["X"],
        cache=cache,
        cos=args["cos"],
        sin=args["sin"],
        mask=args["attention_mask"],
        pos_ids=args["pos_ids"],
        slot_ids=args["kv_cache_update_idx"] if args["update_cache"] else None,
        validate=bool(args["validate"]),
    )
    return checked(rules, call)


def with_handles(
    rules: Rules, arguments: Mapping[str, Any], arrays: tuple[str, ...], kinds: tuple[str, ...]
) -> dict[str, Any]:
    """`arguments` with a handle in place of every array.

    `arrays` and `kinds` name the arguments that must be arrays or None, and `QuantizationType`s;
    raises if some are not.
    """
    args = dict(arguments)
    for name in arrays:
        if args[name] is not None:
            args[name] = handle(rules, name, args[name])
    for name in kinds:
        if not isinstance(args[name], QuantizationType):
            rules.broken(name, "must be a QuantizationType", repr(args[name]), about_type=True)
    rules.raise_broken()
    return args


def require(rules: Rules, args: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise if one of these arguments is not given."""
    for name in names:
        if args[name] is None:
            rules.broken(name, "must be given", "None")
    rules.raise_broken()


def _check_on_chip_only(rules: Rules, args: Mapping[str, Any]) -> None:
    for name, neutral in (("out_in_sb", False), ("sbm", None)):
        if args[name] != neutral:
            rule = "exists only inside an NKI kernel"
            fix = "It keeps data on chip between kernels; on the host, leave it out"
            rules.broken(name, rule, repr(args[name]), fix)


def _check_belongings(rules: Rules, args: Mapping[str, Any]) -> None:
    """Check that no argument is given whose owner is switched off: it would be ignored."""
    for switch, name in _WEIGHTS:
        if args[name] is not None and not args[switch]:
            rules.broken(name, f"needs {switch}=True", args[name])
    _check_pair(rules, args, "cos", "sin")
    _check_pair(rules, args, "k_scale", "v_scale")
    if args["W_out"] is None:
        for name in ("bias_out", "weight_dequant_scale_out", "input_dequant_scale_out"):
            if args[name] is not None:
                rules.broken(name, "needs W_out", args[name])
        kind = args["quantization_type_out"]
        if kind is not QuantizationType.NONE:
            rules.broken("quantization_type_out", "needs W_out", kind.name)
    if args["update_cache"] and args["kv_cache_update_idx"] is None:
        rules.broken("slot_ids", "must be given with update_cache=True", "None")


def _check_pair(rules: Rules, args: Mapping[str, Any], one: str, other: str) -> None:
    if (args[one] is None) != (args[other] is None):
        given, missing = (one, other) if args[other] is None else (other, one)
        rules.broken(missing, f"must be given together with {given}", "None")


def _kv_scale(rules: Rules, args: Mapping[str, Any]) -> KVScale | None:
    validate = bool(args["validate"])
    values = [_scale_value(rules, name, args[name], validate) for name in ("k_scale", "v_scale")]
    if None in values:
        return None
    return KVScale(*(value for value in values if value is not None))


def _scale_value(
    rules: Rules, name: str, scale: Array | None, validate: bool
) -> float | Array | None:
    """The number in a `[1, 1]` or `[128, 1]` scale, or `None` where there is none. On a device it
    is the scale itself, for the backend there to read, unless `validate` says to look at it."""
    if scale is None:
        return None
    check_dtype(rules, name, scale, dtypes.FLOATS)
    if scale.shape not in tuple((rows, 1) for rows in SCALE_ROWS):
        rules.broken(name, "must have shape (1, 1) or (128, 1)", f"shape {scale.shape}")
        return None
    if scale.kind == "spec":
        return scale.first()
    if not (scale.on_host or validate):
        return scale
    check_equal_rows(rules, name, scale)
    value = scale.first()
    if not (math.isfinite(value) and value > 0):
        rules.broken(name, "must be positive and finite", value)
    return value


def _block(args: Mapping[str, Any], cache: KVCache) -> Block:
    geometry = cache.geometry
    heads = _heads(args["W_qkv"], geometry.kv_heads, geometry.d_head)
    scale = args["softmax_scale"]
    return Block(
        heads=heads,
        qkv=Linear(
            args["W_qkv"],
            args["bias_qkv"],
            args["quantization_type_qkv"],
            args["weight_dequant_scale_qkv"],
            args["input_dequant_scale_qkv"],
        ),
        out=_output_projection(args),
        softmax_scale=1.0 / math.sqrt(heads.d_head) if scale is None else scale,
        input_norm=_input_norm(args),
        hidden_dim_actual=args["X_hidden_dim_actual"],
        pre_rope_norm=_qk_norm(args, "rmsnorm_QK_pre_rope"),
        rope=_rope_style(args),
        post_rope_norm=_qk_norm(args, "rmsnorm_QK_post_rope"),
        sink=args["sink"],
        sliding_window=args["sliding_window"],
        transposed_out=bool(args["transposed_out"]),
        lnc=args["lnc"],
        skip_attention=bool(args["skip_attention"]),
    )


def _heads(weight: Array, kv_heads: int, d_head: int) -> Heads:
    """The heads that a QKV weight speaks of; rounded down if its columns do not divide."""
    groups = 0
    if weight.ndim == 2:
        groups = (weight.shape[1] // d_head - 2 * kv_heads) // kv_heads
    return Heads(max(groups, 1) * kv_heads, kv_heads, d_head)


def _output_projection(args: Mapping[str, Any]) -> Linear | None:
    if args["W_out"] is None:
        return None
    return Linear(
        args["W_out"],
        args["bias_out"],
        args["quantization_type_out"],
        args["weight_dequant_scale_out"],
        args["input_dequant_scale_out"],
    )


def _input_norm(args: Mapping[str, Any]) -> RMSNorm | None:
    if not args["rmsnorm_X_enabled"]:
        return None
    return RMSNorm(args["rmsnorm_X_gamma"], _eps(args, "rmsnorm_X_eps"))


def _qk_norm(args: Mapping[str, Any], norm: str) -> QKNorm | None:
    if not args[f"{norm}_enabled"]:
        return None
    return QKNorm(args[f"{norm}_W_Q"], args[f"{norm}_W_K"], _eps(args, f"{norm}_eps"))


def _eps(args: Mapping[str, Any], name: str) -> float:
    if args[name] is not None:
        return args[name]
    warnings.warn(
        f"attention_block_tkg: {name} is not given, so the NKI Library's {LIBRARY_EPS} is used; "
        "real models use 1e-5 or 1e-6",
        UserWarning,
        stacklevel=6,
    )
    return LIBRARY_EPS


def _rope_style(args: Mapping[str, Any]) -> str | None:
    if args["cos"] is None and args["sin"] is None:
        return None
    return "half" if args["rope_contiguous_layout"] else "interleaved"
