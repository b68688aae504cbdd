"""The object API: describe a layer once, call it at every step.

`AttentionBlock` and `Projection` check and prepare their weights when they are made; a call
checks only what changes from step to step. They build the same call objects as the drop-in
functions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from tkg import api
from tkg.backends import registry
from tkg.contract.arrays import AnyArray, Array, handle, indices, library
from tkg.contract.block import Block, BlockCall, Heads, Linear, QKNorm, RMSNorm
from tkg.contract.block_rules import check_block, check_lnc
from tkg.contract.cache import KVCache
from tkg.contract.call_rules import checked
from tkg.contract.errors import Rules, is_whole
from tkg.contract.linear_rules import check_linear
from tkg.contract.projection import ProjectionCall, checked_attention
from tkg.contract.repeats import RepeatProjection, Repeats

_STEP_NAMES = {"slot_ids": "slots", "cos": "rope[0]", "sin": "rope[1]"}
_PROJECTION_NAMES = {"attention": "x as [in, rows, 1, 1]", "projection.weight": "linear.weight"}
"""Field of a call to the parameter that it comes from, where the two differ."""


class AttentionBlock:
    """An attention layer for token generation.

    Args:
        heads: numbers of query and KV heads, and `d_head`.
        qkv: projection to all Q heads, then all K heads, then all V heads.
        out: output projection, or `None` for the attention output.
        input_norm: RMSNorm of the hidden states, or `None`.
        pre_rope_norm, post_rope_norm: RMSNorm of each Q and K head around RoPE, or `None`.
        rope: `"half"` (NeoX, Hugging Face), `"interleaved"` (GPT-J, GGUF's llama files) or `None`.
        sink: `[q_heads, 1]` attention sink logits, or `None`.
        softmax_scale: default `1 / sqrt(d_head)`.
        sliding_window: a token at position p attends to positions > p - window.
        hidden_dim_actual: true hidden size where the hidden states are padded.
        lnc: logical cores of the neuron backend, 1 or 2.
        backend: as in `attention_block_tkg`.

    The cpu backend copies the weights of `qkv` and `out`, in the order in which it reads them, and
    keeps no reference to the arrays given; the others use those.

    Raises:
        ValueError, TypeError: the layer is illegal; all broken rules.
        Unsupported: the named backend cannot run here.
    """

    def __init__(
        self,
        *,
        heads: Heads,
        qkv: Linear,
        out: Linear | None = None,
        input_norm: RMSNorm | None = None,
        pre_rope_norm: QKNorm | None = None,
        rope: str | None = None,
        post_rope_norm: QKNorm | None = None,
        sink: AnyArray = None,
        softmax_scale: float | None = None,
        sliding_window: int | None = None,
        hidden_dim_actual: int | None = None,
        lnc: int = 1,
        backend: str | None = None,
    ) -> None:
        rules = Rules("AttentionBlock")
        _check_kind(rules, "heads", heads, Heads)
        _check_kind(rules, "qkv", qkv, Linear)
        for field, part, kind in (
            ("out", out, Linear),
            ("input_norm", input_norm, RMSNorm),
            ("pre_rope_norm", pre_rope_norm, QKNorm),
            ("post_rope_norm", post_rope_norm, QKNorm),
        ):
            if part is not None:
                _check_kind(rules, field, part, kind)
        rules.raise_broken()
        block = Block(
            heads=heads,
            qkv=qkv,
            out=out,
            softmax_scale=heads.d_head**-0.5 if softmax_scale is None else softmax_scale,
            input_norm=input_norm,
            pre_rope_norm=pre_rope_norm,
            rope=rope,
            post_rope_norm=post_rope_norm,
            sink=sink,
            sliding_window=sliding_window,
            hidden_dim_actual=hidden_dim_actual,
            lnc=lnc,
        )
        check_block(rules, block)
        rules.raise_broken()
        chosen = registry.choose_for(backend, qkv.weight.device, "AttentionBlock")
        self.backend = chosen.name
        module = registry.load(chosen)
        self.block = module.prepare(block)
        self._make_repeat = getattr(module, "repeat", None)
        self._repeats = Repeats()

    def __call__(
        self,
        x: AnyArray,
        cache: KVCache,
        pos_ids: AnyArray,
        *,
        rope: tuple[AnyArray, AnyArray] | None = None,
        slots: AnyArray = None,
        validate: bool = False,
    ) -> Any:
        """Run one step: attend, and write the new tokens into the cache.

        Args:
            x: `[B, S_tkg, H]` hidden states.
            cache: updated in place. The scale of an FP8 cache is folded in here: the output is
                that of the unscaled values.
            pos_ids: `[B, S_tkg]` integers, consecutive; `pos_ids[b, 0]` tokens of row b are in
                the cache. -1: a padded row.
            rope: `(cos, sin)` of these positions, as `rope_tables` makes them.
            slots: `[B, S_tkg]` where the tokens go; default: token at position p goes to slot p
                (block cache: through the block table).
            validate: as in `attention_block_tkg`.

        Returns:
            `[B, S_tkg, H_out]`, or without an output projection `[B, q_heads, d_head, S_tkg]`.

        Raises:
            ValueError, TypeError, Unsupported: as `attention_block_tkg`.
        """
        rules = Rules("AttentionBlock", _STEP_NAMES)
        angles = _angles(rules, rope)
        repeat = self._repeats.of(cache)
        if repeat is not None and not validate and rules.unbroken:
            out = repeat(x, *cache.sources, pos_ids, *angles, slots)
            if out is not None:
                return out
        return self._checked_step(rules, x, cache, pos_ids, angles, slots=slots, validate=validate)

    def _checked_step(
        self,
        rules: Rules,
        x: AnyArray,
        cache: KVCache,
        pos_ids: AnyArray,
        angles: tuple[AnyArray, AnyArray],
        *,
        slots: AnyArray,
        validate: bool,
    ) -> Any:
        """The same, with all of Python's checks; the cache's next step may be a repeat of it."""
        if not isinstance(cache, KVCache):
            kind = type(cache).__name__
            rules.broken("cache", "must be a tkg.KVCache", kind, about_type=True)
        hidden, positions = _given(rules, "x", x), _given(rules, "pos_ids", pos_ids)
        cos, sin = (handle(rules, *given) for given in zip(("cos", "sin"), angles, strict=True))
        given_slots = handle(rules, "slot_ids", slots)
        rules.raise_broken()
        block = self.block
        if cache.scale is not None and cache.is_sound:
            block = replace(
                block,
                softmax_scale=block.softmax_scale / cache.scale.k,
                attention_scale=1.0 / cache.scale.v,
            )
        call = BlockCall(
            block=block,
            x=hidden,
            cache=cache,
            cos=cos,
            sin=sin,
            pos_ids=positions,
            slot_ids=given_slots
            if slots is not None
            else _own_slots(rules, cache, positions, validate),
            validate=validate,
        )
        call = checked(rules, call)
        out = api.run_block(call, self.backend)[0]
        if block.out is not None:
            out = out.reshape(call.batch, call.tokens, -1)
        if self._make_repeat is not None:
            self._repeats.keep(cache, self._make_repeat(call, given_slots, tuple(out.shape)))
        return out


def _check_kind(rules: Rules, field: str, part: object, kind: type) -> None:
    """Check that a part of a layer is an object of its class."""
    if not isinstance(part, kind):
        got = type(part).__name__
        rules.broken(field, f"must be a tkg.{kind.__name__}", got, about_type=True)


def _given(rules: Rules, field: str, value: Any) -> Array | None:
    """The handle of an array that must be given."""
    if value is None:
        rules.broken(field, "must be given", "None")
    return handle(rules, field, value)


def _angles(rules: Rules, rope: Any) -> tuple[Any, Any]:
    """cos and sin of a step."""
    if rope is None:
        return None, None
    try:
        cos, sin = rope
    except (TypeError, ValueError):
        rules.broken("rope", "must be a pair (cos, sin)", type(rope).__name__, about_type=True)
        return None, None
    return cos, sin


def _own_slots(rules: Rules, cache: KVCache, positions: Array | None, validate: bool) -> Any:
    """The slot of each position: itself, or through the block table; -1 for those of a padded row.

    A table entry that names no block is a broken rule; on a device, where nobody looks, its tokens
    get a slot that there is none of. Shapes and positions that make no sense are left to the call's
    checks.
    """
    table = cache.block_table
    if positions is None or table is None or positions.ndim != 2 or table.ndim != 2:
        return positions
    xp, geometry, position = library(positions), cache.geometry, indices(positions)
    blocks, length = geometry.outer, geometry.length
    column = xp.clip(position // length, 0, table.shape[1] - 1)
    take = xp.take_along_axis if xp is np else xp.take_along_dim
    entries = take(indices(table), column, 1)
    unused = (position < 0) | (position[:, :1] < 0)
    wrong = ~unused & (position < table.shape[1] * length) & ((entries < 0) | (entries >= blocks))
    nowhere = blocks * length
    if (positions.on_host or validate) and bool(wrong.any()):
        row, token = xp.argwhere(wrong)[0].tolist()
        rules.broken(
            "cache.block_table",
            f"must hold blocks from 0 to num_blocks - 1 = {blocks - 1} wherever a new token goes",
            f"{int(entries[row, token])} at [{row}, {int(column[row, token])}]",
        )
        nowhere = -1
    slots = xp.where(wrong, nowhere, entries * length + position % length)
    return positions.like(xp.where(unused, -1, slots))


class Projection:
    """A projection `y = x @ weight + bias`, run by `output_projection_tkg`'s kernel.

    Args:
        linear: the weight `[in, out]`, its bias and scales.
        lnc, backend: as in `AttentionBlock`.

    The cpu backend copies the weight, as `AttentionBlock` does.

    Raises:
        ValueError, TypeError: the projection is illegal; all broken rules.
        Unsupported: the named backend cannot run here.
    """

    def __init__(self, linear: Linear, backend: str | None = None, lnc: int = 1) -> None:
        rules = Rules("Projection")
        _check_kind(rules, "linear", linear, Linear)
        rules.raise_broken()
        check_linear(rules, "linear", linear, rows=None, sections=1)
        check_lnc(rules, lnc)
        rules.raise_broken()
        chosen = registry.choose_for(backend, linear.weight.device, "Projection")
        self.backend = chosen.name
        self.lnc = lnc
        module = registry.load(chosen)
        self.linear = module.prepare(linear)
        self._make_repeat = getattr(module, "repeat_projection", None)
        self._repeat: RepeatProjection | None = None

    def __call__(self, x: AnyArray) -> Any:
        """Project `x` `[..., in]`; returns `[..., out]` in x's dtype.

        Raises:
            ValueError, TypeError, Unsupported: as `output_projection_tkg`.
        """
        repeat = self._repeat  # another thread may put another one there meanwhile
        if repeat is not None:
            out = repeat(x)
            if out is not None:
                return out
        rules = Rules("Projection", _PROJECTION_NAMES)
        given = _given(rules, "x", x)
        features = self.linear.weight.shape[0]
        if given is not None and (given.ndim == 0 or min(given.shape) == 0):
            rules.broken("x", "must be [..., in], all sizes at least 1", f"shape {given.shape}")
        elif given is not None and given.shape[-1] != features:
            rule = f"must have in = {features} features, the rows of linear.weight"
            rules.broken("x", rule, f"shape {given.shape}")
        rules.raise_broken()
        # [D, B, N, S] with all features in D: a view, so nothing is copied on the way in.
        attention = x.reshape(-1, x.shape[-1]).T[:, :, None, None]
        call = ProjectionCall(attention, self.linear, lnc=self.lnc)
        call = checked_attention(rules, call)
        out = api.run_projection(call, self.backend).reshape(*x.shape[:-1], -1)
        if self._make_repeat is not None and given is not None:
            self._repeat = self._make_repeat(call, given, tuple(out.shape))
        return out


def rope_tables(
    positions: AnyArray, d_head: int, base: float = 10000.0, inv_freq: AnyArray = None
) -> tuple[Any, Any]:
    """cos and sin of RoPE's angles, `angle[i, b, s] = positions[b, s] * inv_freq[i]`.

    Args:
        positions: `[B, S]` integers; -1 (a padded row) gives the angle 0.
        d_head: even.
        base: `inv_freq[i] = base ** (-2i / d_head)` (RoFormer, arXiv 2104.09864).
        inv_freq: `[d_head // 2]` instead of `base`, for scaled RoPE.

    Returns:
        `(cos, sin)`, float32 `[d_head // 2, B, S]`, of positions' kind of array.

    Raises:
        ValueError, TypeError: with all broken rules.
    """
    rules = Rules("rope_tables")
    given = _given(rules, "positions", positions)
    if given is not None and (given.ndim != 2 or not given.dtype.startswith(("int", "uint"))):
        rules.broken("positions", "must be [B, S] integers", given)
    if not (is_whole(d_head) and d_head >= 2 and d_head % 2 == 0):
        rules.broken("d_head", "must be an even whole number, at least 2", repr(d_head))
    if not (isinstance(base, (int, float, np.number)) and math.isfinite(base) and base > 0):
        rules.broken("base", "must be a positive, finite number", repr(base))
    own = None if inv_freq is None else handle(rules, "inv_freq", inv_freq)
    rules.raise_broken()
    assert given is not None
    if own is not None and own.shape != (d_head // 2,):
        rule = f"must have shape (d_head // 2,) = ({d_head // 2},)"
        rules.broken("inv_freq", rule, f"shape {own.shape}")
    rules.raise_broken()
    xp, place = library(given), {} if given.on_host else {"device": given.device}
    if own is None:
        frequencies = base ** (-xp.arange(0, d_head, 2, dtype=xp.float64, **place) / d_head)
    else:
        values = own.numpy() if own.on_host else own.source
        frequencies = xp.asarray(values, dtype=xp.float64, **place)
    angles = frequencies[:, None, None] * indices(given).clip(0)
    cos, sin = (xp.asarray(table, dtype=xp.float32) for table in (xp.cos(angles), xp.sin(angles)))
    return given.like(cos), given.like(sin)
