"""Wrong calls: each a mistake that some implementation has made, expressed as a legal call.

Run instead of the right call, each must fail the check of the right call. `applies` says for which
cases the mistake changes the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from tests.calls import Call, without
from tkg.testing.case import Case


@dataclass(frozen=True)
class Control:
    """`fails`: the checks of which at least one must fail."""

    name: str
    applies: Callable[[Case], bool]
    wrong: Callable[[Case, Call], Call]
    fails: frozenset[str] = frozenset({"out"})

    def __str__(self) -> str:
        return self.name


def _attends(case: Case) -> bool:
    return not case.skip_attention and max(case.lengths) > 0 and case.window != 1


def _alive(case: Case) -> bool:
    return max(case.lengths) >= 0


def _by_position(case: Case) -> bool:
    return _attends(case) and not case.masked


def _fp8_cache(case: Case) -> bool:
    return (case.cache_dtype or "").startswith("float8")


def _own_softmax_scale(case: Case) -> bool:
    """Not the default one; an FP8 cache's scale is folded into it."""
    default = case.d_head**-0.5
    return _fp8_cache(case) or not np.isclose(case.softmax_scale or default, default)


def _drop_a_position(case: Case, call: Call) -> Call:
    pos = call["pos_ids"]
    return call | {"pos_ids": np.where(pos[:, :1] > 0, pos - 1, pos)}


def _shift_slots(case: Case, call: Call) -> Call:
    """Slot j holds what slot j + 1 should: V only, so that the pairing with K is lost."""
    axis = 1 if case.cache == "block" else call["V_cache"].ndim - 2
    cleaned = np.nan_to_num(call["V_cache"].astype(np.float32)).astype(call["V_cache"].dtype)
    return call | {"V_cache": np.roll(cleaned, 1, axis)}


def _page_read_twice(case: Case, call: Call) -> Call:
    """A row's second page in place of its first. (Two pages swapped would change nothing.)"""
    table = call["active_blocks_table"].copy()
    row = int(np.argmax(case.lengths))
    table[row, 0] = table[row, 1]
    return call | {"active_blocks_table": table}


def _interleaved_groups(case: Case, call: Call) -> Call:
    """Query head h uses KV head h % kv instead of h // group: Q columns and W_out rows permuted."""
    group = case.q_heads // case.kv_heads
    order = np.arange(case.q_heads).reshape(case.kv_heads, group).T.ravel()
    d = case.d_head
    elements = (order[:, None] * d + np.arange(d)).ravel()
    W_qkv = call["W_qkv"].copy()
    W_qkv[:, : elements.size] = W_qkv[:, elements]
    return call | {"W_qkv": W_qkv, "W_out": call["W_out"][elements]}


def _window(by: int) -> Callable[[Case, Call], Call]:
    def wrong(case: Case, call: Call) -> Call:
        return call | {"sliding_window": call["sliding_window"] + by, **_finite(call)}

    return wrong


def _finite(call: Call) -> Call:
    """Caches whose unused slots hold ones: a mistake must show by itself, not through NaN."""
    return {
        name: np.where(np.isnan(call[name].astype(np.float32)), 1, call[name]).astype(
            call[name].dtype
        )
        for name in ("K_cache", "V_cache")
    }


def _unrounded_kv(case: Case, call: Call) -> Call:
    return call | {name: call[name].astype(np.float32) for name in ("K_cache", "V_cache")}


def _multiplied(name: str, factor: float) -> Callable[[Case, Call], Call]:
    return lambda case, call: call | {name: (call[name] * factor).astype(call[name].dtype)}


def _first_scale_for_all(case: Case, call: Call) -> Call:
    scale = call["weight_dequant_scale_qkv"]
    return call | {"weight_dequant_scale_qkv": np.repeat(scale[:, :1], 3, axis=1)}


def _ocp_bytes_as_nki(case: Case, call: Call) -> Call:
    """OCP bytes taken for NKI's: what is above 240 becomes Inf or NaN; below, they are equal."""
    return call | {"W_qkv": call["W_qkv"].view(ml_dtypes.float8_e4m3)}


def _swapped_tokens(case: Case, call: Call) -> Call:
    """New tokens see the ones after them instead of the ones before."""
    mask = call["attention_mask"].copy()
    mask[-case.tokens :] = mask[-case.tokens :][::-1]
    return call | {"attention_mask": mask}


CONTROLS = (
    Control(
        "rope-style",
        lambda case: case.rope is not None and case.d_head > 2 and _attends(case),
        lambda case, call: call | {"rope_contiguous_layout": not call["rope_contiguous_layout"]},
        frozenset({"out", "K"}),
    ),
    Control(
        "rope-left-out",
        lambda case: case.rope is not None and _attends(case),
        lambda case, call: without(call, "cos", "sin"),
        frozenset({"out", "K"}),
    ),
    Control(
        "rope-next-frequency",
        lambda case: case.rope is not None and case.d_head > 2 and _attends(case),
        lambda case, call: call | {"cos": np.roll(call["cos"], 1, 0)},
        frozenset({"out", "K"}),
    ),
    Control("one-position-less", _by_position, _drop_a_position),
    Control(
        "values-one-slot-off",
        lambda case: _attends(case) and max(case.lengths) > 1 and case.cache != "block",
        _shift_slots,
    ),
    Control(
        "page-read-twice",
        lambda case: (
            _by_position(case)
            and case.cache == "block"
            and case.window is None
            and max(case.lengths) > 2 * case.block_len
        ),
        _page_read_twice,
    ),
    Control(
        "groups-interleaved",
        lambda case: (
            case.kv_heads > 1
            and case.q_heads > case.kv_heads
            and case.projection == "rows"
            and case.qkv == case.out == "NONE"
            and not case.bias_qkv
            and _attends(case)
        ),
        _interleaved_groups,
    ),
    Control(
        "window-one-more",
        # A paged row whose window is the new token alone has no page for one slot more.
        lambda case: (
            case.window is not None
            and max(case.lengths) >= case.window
            and (case.window > 1 or case.cache != "block")
        ),
        _window(1),
    ),
    Control(
        "window-one-less",
        lambda case: case.window is not None and case.window > 1 and max(case.lengths) > 1,
        _window(-1),
    ),
    Control(
        "sink-left-out",
        lambda case: case.sink and _attends(case),
        lambda case, call: without(call, "sink"),
    ),
    Control(
        "default-softmax-scale",
        lambda case: _own_softmax_scale(case) and _attends(case),
        lambda case, call: without(call, "softmax_scale"),
    ),
    Control(
        "unrounded-kv",
        lambda case: (case.cache_dtype or case.dtype) in ("bfloat16", "float16") and _attends(case),
        _unrounded_kv,
        frozenset({"out", "K", "V", "caches"}),
    ),
    Control(
        "k-scale-reciprocal",
        _fp8_cache,
        lambda case, call: call | {"k_scale": 1 / call["k_scale"]},
        frozenset({"K"}),
    ),
    Control(
        "v-scale-ignored",
        _fp8_cache,
        lambda case, call: call | {"v_scale": np.ones_like(call["v_scale"])},
        frozenset({"V"}),
    ),
    Control(
        "wrong-eps",
        lambda case: _alive(case) and case.eps is not None and case.x_rms < 0.1,
        lambda case, call: call | {"rmsnorm_X_eps": call["rmsnorm_X_eps"] * 10},
        frozenset({"out", "V"}),
    ),
    Control(
        "norm-over-padding",
        lambda case: case.hidden_actual is not None and case.eps is not None,
        lambda case, call: (
            without(call, "X_hidden_dim_actual")
            | {
                name: np.nan_to_num(call[name].astype(np.float32)).astype(call[name].dtype)
                for name in ("X", "W_qkv")
            }
        ),
        frozenset({"out", "V"}),
    ),
    Control(
        "gamma-left-out",
        lambda case: _alive(case) and case.eps is not None and case.gamma,
        lambda case, call: without(call, "rmsnorm_X_gamma"),
        frozenset({"out", "V"}),
    ),
    Control(
        "head-norm-left-out",
        lambda case: case.pre_norm is not None and _attends(case),
        lambda case, call: {k: v for k, v in call.items() if "QK_pre_rope" not in k},
        frozenset({"out", "K"}),
    ),
    Control(
        "head-norm-on-the-other-side-of-rope",
        lambda case: (
            case.pre_norm is not None
            and case.post_norm is None
            and case.head_gamma
            and case.rope is not None
            and _attends(case)
        ),
        lambda case, call: {k.replace("pre_rope", "post_rope"): v for k, v in call.items()},
        frozenset({"out", "K"}),
    ),
    Control(
        "qkv-bias-left-out",
        lambda case: case.bias_qkv,
        lambda case, call: without(call, "bias_qkv"),
        frozenset({"out", "V"}),
    ),
    Control(
        "out-bias-left-out",
        lambda case: case.bias_out and _alive(case),
        lambda case, call: without(call, "bias_out"),
    ),
    Control(
        "weight-scale-ignored",
        lambda case: case.qkv != "NONE",
        _multiplied("weight_dequant_scale_qkv", 1.5),
        frozenset({"out", "V"}),
    ),
    Control(
        "input-scale-ignored",
        lambda case: case.qkv == "STATIC",
        _multiplied("input_dequant_scale_qkv", 1.5),
        frozenset({"out", "V"}),
    ),
    Control("first-scale-for-all", lambda case: case.three_scales, _first_scale_for_all),
    Control(
        "out-scale-ignored",
        lambda case: case.out != "NONE",
        _multiplied("weight_dequant_scale_out", 1.01),
    ),
    Control(
        "out-input-scale-ignored",
        lambda case: case.out == "STATIC",
        _multiplied("input_dequant_scale_out", 1.01),
    ),
    Control(
        "fp8-format-reinterpreted",
        lambda case: case.qkv != "NONE" and case.static_format == "float8_e4m3fn",
        _ocp_bytes_as_nki,
        frozenset({"out", "V"}),
    ),
    Control(
        "new-tokens-reversed",
        lambda case: case.visible == "causal" and case.tokens > 1,
        _swapped_tokens,
    ),
    Control(
        "attention-left-out",
        _attends,
        lambda case, call: call | {"skip_attention": True},
    ),
    Control(
        "slots-one-off",
        lambda case: (
            case.update
            and _alive(case)
            and not case.skipped
            and not case.wide
            and max(case.lengths) + case.tokens < case.capacity
            and case.cache != "block"
        ),
        lambda case, call: (
            call | {"kv_cache_update_idx": call["kv_cache_update_idx"] + np.uint32(1)}
        ),
        frozenset({"K", "V", "caches"}),
    ),
    Control(
        "written-where-skipped",
        lambda case: bool(case.skipped) and case.cache != "block",
        lambda case, call: (
            call | {"kv_cache_update_idx": np.array(case.lengths, np.uint32)[:, None]}
        ),
        frozenset({"caches"}),
    ),
)
