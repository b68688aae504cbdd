"""What a case is: one call of the block, named, described by its shapes and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Scaling = Literal["NONE", "STATIC", "ROW"]

PADDED = -1
"""A length that marks a padded row: `pos_ids` is -1, the output is 0, nothing is written."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of `attention_block_tkg`: its shapes and options, not its numbers.

    Attributes:
        name: unique; what tables and test ids print.
        tags: any of "smoke", "ci", "bench", "edge", "model".
        lengths: valid cache slots of each row, `PADDED` for a padded row. Its length is the batch.
        tokens: new tokens a row (S_tkg).
        hidden: H; `hidden_actual` is the part of it that is not padding, or `None` for all.
        q_heads, kv_heads, d_head: the heads.
        head_axis: the caches have a KV-head axis, also when there is only one head.
        cache: layout; "transposed" is the flat cache with K transposed.
        capacity: slots a row may have (S_max_ctx, or table columns * block_len).
        block_len: slots a page of the block cache.
        visible: what may be attended to: "positions" (`pos_ids`), a "causal" mask, a mask with
            "holes", or a mask in which some (row, head, token) sees "nothing".
        context: S_ctx of the mask; `None` for the longest row's length plus the new tokens.
        window: sliding window (positions only).
        dtype, weight_dtype, out_dtype, cache_dtype: of X, W_qkv, W_out and the caches; weights
            default to X's, or to FP8 where they are quantised.
        small_dtype: of norm weights, biases, cos and sin, sink.
        qkv, out: how each projection is quantised.
        static_format: FP8 format of quantised weights.
        scale_rows: 1 or 128, the first dimension of every scale.
        three_scales: the QKV weight scale of STATIC is [., 3].
        eps: of the input norm, `None` for no norm; `gamma`: with a weight.
        pre_norm, post_norm: eps of the per-head norms or `None`; `head_gamma`: with weights.
        x_rms: size of X's entries. Small ones make a wrong eps visible.
        rope: style or `None`; `rope_base`: the base of its angles.
        bias_qkv, bias_out, sink, softmax_scale: as in the call. `softmax_scale=None` leaves the
            default, or the default divided by `k_scale` for an FP8 cache.
        update: write the cache; `wide`: a slot a token; `skipped`: rows whose slot is SKIP.
        projection: "rows", "transposed" or `None` (no W_out); `lnc`: its layout.
        skip_attention: as in the call.
    """

    name: str
    tags: frozenset[str] = frozenset({"ci"})
    lengths: tuple[int, ...] = (37, 5)
    tokens: int = 1
    hidden: int = 128
    hidden_actual: int | None = None
    q_heads: int = 4
    kv_heads: int = 1
    d_head: int = 32
    head_axis: bool = True
    cache: Literal["flat", "transposed", "block"] = "flat"
    capacity: int = 64
    block_len: int = 16
    visible: Literal["positions", "causal", "holes", "nothing"] = "positions"
    context: int | None = None
    window: int | None = None
    dtype: str = "float32"
    weight_dtype: str | None = None
    out_dtype: str | None = None
    cache_dtype: str | None = None
    small_dtype: str = "float32"
    qkv: Scaling = "NONE"
    out: Scaling = "NONE"
    static_format: str = "float8_e4m3"
    scale_rows: int = 1
    three_scales: bool = False
    eps: float | None = 1e-5
    gamma: bool = True
    pre_norm: float | None = None
    post_norm: float | None = None
    head_gamma: bool = True
    x_rms: float = 0.05
    rope: Literal["half", "interleaved"] | None = "half"
    rope_base: float = 10000.0
    bias_qkv: bool = False
    bias_out: bool = False
    sink: bool = False
    softmax_scale: float | None = None
    update: bool = True
    wide: bool = False
    skipped: tuple[int, ...] = ()
    projection: Literal["rows", "transposed"] | None = "rows"
    lnc: int = 1
    skip_attention: bool = False

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def masked(self) -> bool:
        """Whether visibility is given by `attention_mask`."""
        return self.visible != "positions"

    @property
    def s_ctx(self) -> int:
        """S_ctx of the call: the mask's, or the cache's capacity."""
        if not self.masked:
            return self.capacity
        return self.context or max(0, *self.lengths) + self.tokens

    def inputs(self, seed: int = 0, invalid: float = float("nan")) -> dict[str, Any]:
        """Keyword arguments of `tkg.attention_block_tkg`: NumPy arrays.

        Every value that the contract says is never read (unused slots and pages, padded columns,
        padded rows, unused table entries) is `invalid`, or out of range where it is an integer.
        """
        from tkg.testing.inputs import block_inputs

        return block_inputs(self, seed, invalid)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class ProjectionCase:
    """One call of `output_projection_tkg`.

    Attributes:
        d_head, batch, heads, tokens, hidden: D, B, N, S and H of the call.
        dtype, weight_dtype: of `attention` and `weight`.
        quantization, static_format, scale_rows: as in `Case`.
        bias, transposed, lnc: as in the call.
    """

    name: str
    tags: frozenset[str] = frozenset({"ci"})
    d_head: int = 64
    batch: int = 2
    heads: int = 4
    tokens: int = 1
    hidden: int = 256
    dtype: str = "float32"
    weight_dtype: str | None = None
    quantization: Scaling = "NONE"
    static_format: str = "float8_e4m3"
    scale_rows: int = 1
    bias: bool = False
    transposed: bool = False
    lnc: int = 1

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        """Keyword arguments of `tkg.output_projection_tkg`: NumPy arrays."""
        from tkg.testing.inputs import projection_inputs

        return projection_inputs(self, seed)

    def __str__(self) -> str:
        return self.name
