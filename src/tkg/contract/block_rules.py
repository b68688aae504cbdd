"""The rules for an attention layer by itself (`Block`), checked once a layer."""

from __future__ import annotations

import math

from tkg.contract import dtypes
from tkg.contract.block import Block, Heads, Linear, QKNorm
from tkg.contract.errors import Rules
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
    check_one_kind(rules, block.arrays)
    if check_linear(rules, "qkv", block.qkv, rows=None, sections=3):
        columns = block.qkv.weight.shape[1]
        rules.check(
            columns == heads.qkv_columns,
            "qkv.weight",
            f"must have (q_heads + 2 * kv_heads) * d_head = ({heads.q} + 2 * {heads.kv}) * "
            f"{heads.d_head} = {heads.qkv_columns} columns",
            f"shape {block.qkv.weight.shape}",
        )
        _check_hidden(rules, block)
    if block.input_norm is not None and block.qkv.weight.ndim == 2:
        hidden = block.qkv.weight.shape[0]
        check_vector(rules, "input_norm.weight", block.input_norm.weight, hidden, "H")
        check_eps(rules, "input_norm.eps", block.input_norm.eps)
    for field in ("pre_rope_norm", "post_rope_norm"):
        _check_qk_norm(rules, field, getattr(block, field), heads)
    rules.check(
        block.rope is None or block.rope in ROPE_STYLES,
        "rope",
        f"must be None or one of {ROPE_STYLES}",
        repr(block.rope),
    )
    _check_softmax(rules, block)
    _check_out(rules, block, block.out)


def check_heads(rules: Rules, heads: Heads) -> bool:
    """Check the numbers of heads."""
    ok = rules.check(
        min(heads.q, heads.kv, heads.d_head) >= 1, "heads", "must be at least 1 each", heads
    )
    ok = ok and rules.check(heads.q % heads.kv == 0, "heads", "must have q a multiple of kv", heads)
    return ok and rules.check(heads.d_head % 2 == 0, "heads", "must have an even d_head", heads)


def check_eps(rules: Rules, field: str, eps: float) -> None:
    """Check an RMSNorm epsilon."""
    ok = isinstance(eps, (int, float)) and math.isfinite(eps) and eps >= 0
    rules.check(ok, field, "must be a finite number >= 0", repr(eps))


def _check_hidden(rules: Rules, block: Block) -> None:
    hidden, actual = block.qkv.weight.shape[0], block.hidden_dim_actual
    rules.check(
        actual is None or 1 <= actual <= hidden,
        "hidden_dim_actual",
        f"must be between 1 and H = {hidden}",
        actual,
    )


def _check_qk_norm(rules: Rules, field: str, norm: QKNorm | None, heads: Heads) -> None:
    if norm is None:
        return
    check_vector(rules, f"{field}.q_weight", norm.q_weight, heads.d_head, "d_head")
    check_vector(rules, f"{field}.k_weight", norm.k_weight, heads.d_head, "d_head")
    check_eps(rules, f"{field}.eps", norm.eps)


def _check_softmax(rules: Rules, block: Block) -> None:
    scale, window, sink = block.softmax_scale, block.sliding_window, block.sink
    scale_ok = isinstance(scale, (int, float)) and math.isfinite(scale)
    rules.check(scale_ok, "softmax_scale", "must be a finite number", repr(scale))
    rules.check(
        window is None or window >= 1, "sliding_window", "must be None or at least 1", window
    )
    if sink is not None:
        check_dtype(rules, "sink", sink, dtypes.FLOATS)
        rule = f"must have shape (q_heads, 1) = ({block.heads.q}, 1)"
        rules.check(sink.shape == (block.heads.q, 1), "sink", rule, f"shape {sink.shape}")


def _check_out(rules: Rules, block: Block, out: Linear | None) -> None:
    rules.check(block.lnc in (1, 2), "lnc", "must be 1 or 2", block.lnc)
    if out is None:
        ok = not block.transposed_out
        rules.check(ok, "transposed_out", f"needs {rules.name('out.weight')}", "no projection")
        return
    features = block.heads.q * block.heads.d_head
    rows = (features, f"q_heads * d_head = {block.heads.q} * {block.heads.d_head}")
    if check_linear(rules, "out", out, rows=rows, sections=1):
        check_transposed(rules, out, block.transposed_out, block.lnc)


def check_transposed(rules: Rules, out: Linear, transposed: bool, lnc: int) -> None:
    """Check that the output features divide into the transposed layout."""
    if transposed and lnc in (1, 2):
        hidden = out.weight.shape[1]
        rule = f"needs output features that are a multiple of 128 * lnc = {128 * lnc}"
        rules.check(hidden % (128 * lnc) == 0, "transposed_out", rule, hidden)
