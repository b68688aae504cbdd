"""The rules for an attention layer by itself (`Block`), checked once a layer."""

from __future__ import annotations

import math

from tkg.contract import dtypes
from tkg.contract.block import Block, Heads, Linear, QKNorm
from tkg.contract.errors import Rules, is_whole
from tkg.contract.linear_rules import (
    check_dtype,
    check_linear,
    check_one_kind,
    check_vector,
)

ROPE_STYLES = ("half", "interleaved")


def check_block(rules: Rules, block: Block) -> None:
    """Check everything about a layer that does not depend on the step."""
    heads = block.heads
    check_heads(rules, heads)
    check_one_kind(rules, block.arrays.items())
    if check_linear(rules, "qkv", block.qkv, rows=None, sections=3):
        _check_qkv(rules, block)
    if block.input_norm is not None and block.qkv.weight.ndim == 2:
        weight, hidden = block.input_norm.weight, block.qkv.weight.shape[0]
        if weight is not None:
            check_vector(rules, "input_norm.weight", weight, hidden, "H")
        check_eps(rules, "input_norm.eps", block.input_norm.eps)
    if block.pre_rope_norm is not None:
        _check_qk_norm(rules, "pre_rope_norm", block.pre_rope_norm, heads)
    if block.post_rope_norm is not None:
        _check_qk_norm(rules, "post_rope_norm", block.post_rope_norm, heads)
    if block.rope is not None and block.rope not in ROPE_STYLES:
        rules.broken("rope", f"must be None or one of {ROPE_STYLES}", repr(block.rope))
    _check_softmax(rules, block)
    _check_out(rules, block, block.out)


def check_heads(rules: Rules, heads: Heads) -> bool:
    """Check the numbers of heads."""
    if not all(is_whole(number) for number in (heads.q, heads.kv, heads.d_head)):
        return rules.broken("heads", "must be whole numbers", heads, about_type=True)
    if heads.q < 1 or heads.kv < 1 or heads.d_head < 1:
        return rules.broken("heads", "must be at least 1 each", heads)
    if heads.q % heads.kv:
        return rules.broken("heads", "must have q a multiple of kv", heads)
    return heads.d_head % 2 == 0 or rules.broken("heads", "must have an even d_head", heads)


def check_eps(rules: Rules, field: str, eps: float) -> None:
    """Check an RMSNorm epsilon."""
    if not (isinstance(eps, (int, float)) and math.isfinite(eps) and eps >= 0):
        rules.broken(field, "must be a finite number >= 0", repr(eps))


def _check_qkv(rules: Rules, block: Block) -> None:
    heads, actual = block.heads, block.hidden_dim_actual
    hidden, columns = block.qkv.weight.shape
    if columns != heads.qkv_columns:
        rules.broken(
            "qkv.weight",
            f"must have (q_heads + 2 * kv_heads) * d_head = ({heads.q} + 2 * {heads.kv}) * "
            f"{heads.d_head} = {heads.qkv_columns} columns",
            f"shape {block.qkv.weight.shape}",
        )
    if actual is not None and not (is_whole(actual) and 1 <= actual <= hidden):
        rule = f"must be a whole number between 1 and H = {hidden}"
        rules.broken("hidden_dim_actual", rule, repr(actual))


def _check_qk_norm(rules: Rules, field: str, norm: QKNorm, heads: Heads) -> None:
    if norm.q_weight is not None:
        check_vector(rules, f"{field}.q_weight", norm.q_weight, heads.d_head, "d_head")
    if norm.k_weight is not None:
        check_vector(rules, f"{field}.k_weight", norm.k_weight, heads.d_head, "d_head")
    check_eps(rules, f"{field}.eps", norm.eps)


def _check_softmax(rules: Rules, block: Block) -> None:
    scale, window, sink = block.softmax_scale, block.sliding_window, block.sink
    if not (isinstance(scale, (int, float)) and math.isfinite(scale)):
        rules.broken("softmax_scale", "must be a finite number", repr(scale))
    if window is not None and not (is_whole(window) and 1 <= window < 2**63):
        rule = "must be None or a whole number, at least 1 and less than 2^63"
        rules.broken("sliding_window", rule, repr(window))
    if sink is not None:
        check_dtype(rules, "sink", sink, dtypes.FLOATS)
        if sink.shape != (block.heads.q, 1):
            rule = f"must have shape (q_heads, 1) = ({block.heads.q}, 1)"
            rules.broken("sink", rule, f"shape {sink.shape}")


def _check_out(rules: Rules, block: Block, out: Linear | None) -> None:
    check_lnc(rules, block.lnc)
    if out is None:
        if block.transposed_out:
            rules.broken("transposed_out", f"needs {rules.name('out.weight')}", "no projection")
        return
    rows = ("q_heads * d_head", block.heads.q, block.heads.d_head)
    if check_linear(rules, "out", out, rows=rows, sections=1):
        check_transposed(rules, out, block.transposed_out, block.lnc)


def check_lnc(rules: Rules, lnc: int) -> None:
    """Check the number of logical cores."""
    if not is_whole(lnc) or lnc not in (1, 2):
        rules.broken("lnc", "must be 1 or 2", repr(lnc))


def check_transposed(rules: Rules, out: Linear, transposed: bool, lnc: int) -> None:
    """Check that the output features divide into the transposed layout."""
    if not transposed or lnc not in (1, 2):
        return
    hidden = out.weight.shape[1]
    if hidden % (128 * lnc):
        rule = f"needs output features that are a multiple of 128 * lnc = {128 * lnc}"
        rules.broken("transposed_out", rule, hidden)
