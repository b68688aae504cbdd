"""The drop-in calls: describe -> choose a backend -> run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tkg.backends import registry
from tkg.contract.block import BlockCall
from tkg.contract.cost import Call
from tkg.contract.keywords import block_call
from tkg.contract.output import caches
from tkg.contract.projection import ProjectionCall, projection_call
from tkg.contract.quantization import QuantizationType
from tkg.contract.repeats import Calls, RepeatCall, no_repeat

NONE = QuantizationType.NONE

_CALLS = Calls()


def attention_block_tkg(
    *,
    X: Any,
    X_hidden_dim_actual: int | None = None,
    rmsnorm_X_enabled: bool = False,
    rmsnorm_X_eps: float | None = None,
    rmsnorm_X_gamma: Any = None,
    W_qkv: Any,
    bias_qkv: Any = None,
    quantization_type_qkv: QuantizationType = NONE,
    weight_dequant_scale_qkv: Any = None,
    input_dequant_scale_qkv: Any = None,
    rmsnorm_QK_pre_rope_enabled: bool = False,
    rmsnorm_QK_pre_rope_eps: float | None = None,
    rmsnorm_QK_pre_rope_W_Q: Any = None,
    rmsnorm_QK_pre_rope_W_K: Any = None,
    cos: Any = None,
    sin: Any = None,
    rope_contiguous_layout: bool = True,
    rmsnorm_QK_post_rope_enabled: bool = False,
    rmsnorm_QK_post_rope_eps: float | None = None,
    rmsnorm_QK_post_rope_W_Q: Any = None,
    rmsnorm_QK_post_rope_W_K: Any = None,
    K_cache_transposed: bool = False,
    active_blocks_table: Any = None,
    K_cache: Any,
    V_cache: Any,
    attention_mask: Any = None,
    pos_ids: Any = None,
    sliding_window: int | None = None,
    sink: Any = None,
    softmax_scale: float | None = None,
    update_cache: bool = False,
    kv_cache_update_idx: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
    W_out: Any = None,
    bias_out: Any = None,
    quantization_type_out: QuantizationType = NONE,
    weight_dequant_scale_out: Any = None,
    input_dequant_scale_out: Any = None,
    transposed_out: bool = False,
    out_in_sb: bool = False,
    sbm: Any = None,
    skip_attention: bool = False,
    backend: str | None = None,
    lnc: int = 1,
    validate: bool = False,
) -> tuple[Any, Any, Any]:
    """The attention block of token generation, in one call.

    Input RMSNorm, QKV projection, RMSNorm of each Q and K head, RoPE, RMSNorm again, attention
    over the KV cache and the new tokens, cache update, output projection; every stage that has a
    switch or an array is optional. NumPy arrays (with `ml_dtypes` for bfloat16 and float8) or
    torch tensors go in, all of one kind; the same kind comes out. Sums are in float32 or
    wider. docs/contract.md has the exact meaning of every argument.

    Sizes: B rows, S_tkg new tokens a row (1 to 128), H hidden size, d_head (even), S_ctx the
    context length of this call, new tokens included. The numbers of KV heads and of query heads
    follow from the cache and from `W_qkv`.

    Args:
        X: `[B, S_tkg, H]` float32, float16 or bfloat16, the new tokens' hidden states.
        X_hidden_dim_actual: true H where X is padded; what lies beyond is never read.
        rmsnorm_X_enabled, rmsnorm_X_eps, rmsnorm_X_gamma: input RMSNorm; gamma `[1, H]`. An eps
            of `None` means 1e-3, with a warning.
        W_qkv: `[H, (q_heads + 2 * kv_heads) * d_head]`; columns: all Q, all K, all V heads.
        bias_qkv: `[1, columns]`.
        quantization_type_qkv, weight_dequant_scale_qkv, input_dequant_scale_qkv: see
            `QuantizationType`; STATIC scales `[1|128, 1]` (weight also `[1|128, 3]`), ROW
            `[1|128, columns]`.
        rmsnorm_QK_pre_rope_enabled, _eps, _W_Q, _W_K: RMSNorm of each head before RoPE; weights
            `[1, d_head]`.
        cos, sin: `[d_head // 2, B, S_tkg]`, both or neither.
        rope_contiguous_layout: True pairs (i, i + d/2), False pairs (2i, 2i + 1).
        rmsnorm_QK_post_rope_enabled, _eps, _W_Q, _W_K: the same after RoPE.
        K_cache, V_cache: flat `[B, S_max_ctx, d_head]` or `[B, kv_heads, S_max_ctx, d_head]`;
            block `[num_blocks, block_len, d_head]` or `[num_blocks, block_len, kv_heads, d_head]`.
        K_cache_transposed: flat K is `[B, d_head, S_max_ctx]` or
            `[B, kv_heads, d_head, S_max_ctx]`.
        active_blocks_table: `[B, S_ctx // block_len]` int32 or uint32; makes the cache a block
            cache. Entries that no valid position needs are never read.
        attention_mask: `[S_ctx, B, q_heads, S_tkg]` uint8 or bool; nonzero = may attend. The last
            S_tkg entries are the new tokens, those before are cache slots in logical order.
        pos_ids: `[B, S_tkg]` integers instead of a mask: `pos_ids[b, 0]` cache slots are valid,
            the new tokens are causal. -1 or 2^32-1: a padded row, its output is exactly 0.
        sliding_window: with `pos_ids`, a token at position p attends to positions > p - window.
        sink: `[q_heads, 1]`, a logit a head that joins the softmax's denominator only.
        softmax_scale: `scores = (Q @ K^T) * softmax_scale`; `None` means `1 / sqrt(d_head)`.
        update_cache: write the new K and V into the caches, in place.
        kv_cache_update_idx: `[B, 1]` first slot of each row's tokens, or `[B, S_tkg]` a slot
            each; flat: slots of the row, block: physical slots `block * block_len + offset`.
            2^32-1 skips.
        k_scale, v_scale: `[1, 1]` or `[128, 1]`, for an FP8 cache and only then: **multipliers
            applied before the cast to FP8, which the block does not undo**. Fold `1 / k_scale`
            into `softmax_scale` and `1 / v_scale` into `W_out`, or use the object API.
        W_out: `[q_heads * d_head, H_out]`; `None` returns the attention output.
        bias_out, quantization_type_out, weight_dequant_scale_out, input_dequant_scale_out: as
            for QKV.
        transposed_out: with `W_out`, output `[128, lnc, H_out // lnc // 128, B * S_tkg]`.
        out_in_sb, sbm: exist only inside an NKI kernel and are refused here.
        skip_attention: Q after RoPE and norms takes the place of the attention output.
        backend: `"reference"`, `"cpu"`, `"cuda"`, `"neuron"`; `None`: where the arrays are.
        lnc: logical cores, 1 or 2.
        validate: for arrays on a device, whose values are otherwise not looked at: read positions,
            slots, table, mask and cache scales back and check them before anything runs. On the
            host they always are.

    Returns:
        `(out, K_out, V_out)`. out: `[B, q_heads, d_head, S_tkg]` without `W_out`, otherwise
        `[B * S_tkg, H_out]` or transposed; X's dtype. K_out and V_out: the caches passed in, or
        with `update_cache=False` the new tokens `[d_head, B, S_tkg]` and `[B, 1, S_tkg, d_head]`
        (`[kv_heads, d_head, B, S_tkg]` and `[B, kv_heads, S_tkg, d_head]`), cache's dtype.

    Raises:
        ValueError, TypeError: the call is illegal; all broken rules, and nothing was written.
        Unsupported: legal, but not on the backend asked for; every reason.
    """
    arguments = locals()
    alike = _CALLS.like(X, W_qkv, K_cache, sliding_window)
    out = alike.repeat(arguments)
    if out is not None:
        return out, K_cache, V_cache
    call = block_call(arguments)
    outputs = run_block(call, backend)
    if alike.count():
        alike.repeat = _repeat(call, backend, arguments)
    return outputs


def output_projection_tkg(
    attention: Any,
    weight: Any,
    bias: Any = None,
    quantization_type: QuantizationType = NONE,
    weight_scale: Any = None,
    input_scale: Any = None,
    TRANSPOSE_OUT: bool = False,
    OUT_IN_SB: bool = False,
    *,
    backend: str | None = None,
    lnc: int = 1,
) -> Any:
    """Output projection: `out[b*S+s, h] = sum_{n,d} attention[d,b,n,s] weight[n*D+d, h] + bias[h]`.

    Args:
        attention: `[D, B, N, S]` float32, float16 or bfloat16.
        weight: `[N * D, H]`; float32, float16 or bfloat16, FP8 if quantised.
        bias: `[1, H]`.
        quantization_type, weight_scale, input_scale: see `QuantizationType`; STATIC scales
            `[1|128, 1]`, ROW `[1|128, H]`.
        TRANSPOSE_OUT: output `[128, lnc, H // lnc // 128, B * S]` instead of `[B * S, H]`.
        OUT_IN_SB: exists only inside an NKI kernel and is refused here.
        backend, lnc: as in `attention_block_tkg`.

    Returns:
        The output in attention's dtype and kind of array.

    Raises:
        ValueError, TypeError, Unsupported: as `attention_block_tkg`.
    """
    return run_projection(projection_call(locals()), backend)


OPERATIONS: dict[Callable[..., Any], Callable[[dict[str, Any]], Call]] = {
    attention_block_tkg: block_call,
    output_projection_tkg: projection_call,
}


def describe(operation: Callable[..., Any], /, *args: Any, **arguments: Any) -> Call:
    """The frozen, validated, printable call object of an operation's arguments; runs nothing.

    Args:
        operation: `tkg.attention_block_tkg` or `tkg.output_projection_tkg`.
        args, arguments: its arguments; `ArraySpec`s may stand for arrays. `backend` is not one.

    Raises:
        ValueError, TypeError: the call is illegal.
    """
    if operation not in OPERATIONS:
        known = " or ".join(f"tkg.{function.__name__}" for function in OPERATIONS)
        raise ValueError(f"describe: operation must be {known}; got {operation!r}")
    bound = inspect.signature(operation).bind(*args, **arguments)
    bound.apply_defaults()
    if bound.arguments.pop("backend") is not None:
        raise ValueError("describe: backend is no part of a call; leave it out")
    return OPERATIONS[operation](bound.arguments)


def run_block(call: BlockCall, backend: str | None) -> tuple[Any, Any, Any]:
    """Run a validated block call; returns what `attention_block_tkg` returns."""
    output = registry.run(backend, call)
    return call.x.like(output.out), *caches(call, output)


def _repeat(call: BlockCall, backend: str | None, arguments: dict[str, Any]) -> RepeatCall:
    """The backend's function for calls like this one of `attention_block_tkg`."""
    module = registry.load(registry.choose_for(backend, call.device))
    make = getattr(module, "repeat_call", None)
    return (make and make(call, arguments)) or no_repeat


def run_projection(call: ProjectionCall, backend: str | None) -> Any:
    """Run a validated projection call."""
    return call.attention.like(registry.run(backend, call))
