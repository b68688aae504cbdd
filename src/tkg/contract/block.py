"""The attention block: what a layer is (`Block`) and one call of it (`BlockCall`).

Both are frozen and, once built by `contract.keywords` or by the object API, validated: a backend
gets a `BlockCall` and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tkg.contract.arrays import AnyArray, Array, index_values, own_handle
from tkg.contract.cache import KVCache
from tkg.contract.once import once
from tkg.contract.quantization import QuantizationType


class Part:
    """A named part of a block: turns the arrays that its fields hold into `Array` handles.

    `_arrays` names those fields, `_required` those of them that may not be `None`, `_parts` the
    fields that hold other parts.
    """

    _arrays: tuple[str, ...] = ()
    _required: tuple[str, ...] = ()
    _parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self._arrays:
            value = getattr(self, name)
            if value.__class__ is not Array and (value is not None or name in self._required):
                own_handle(self, name, value)


@dataclass(frozen=True)
class Heads:
    """Numbers of query heads and of KV heads, and elements a head (`d_head`)."""

    q: int
    kv: int
    d_head: int

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.q // self.kv

    @property
    def qkv_columns(self) -> int:
        return (self.q + 2 * self.kv) * self.d_head

    def sections(self) -> tuple[int, int, int]:
        """Columns of Q, K and V in the QKV projection."""
        return self.q * self.d_head, self.kv * self.d_head, self.kv * self.d_head


@dataclass(frozen=True)
class RMSNorm(Part):
    """`x / sqrt(mean(x^2) + eps) * weight`, in float32.

    Attributes:
        weight: `[1, n]` float32, float16 or bfloat16; `None` for all ones.
        eps: non-negative.
    """

    weight: AnyArray
    eps: float
    _arrays = ("weight",)


@dataclass(frozen=True)
class QKNorm(Part):
    """RMSNorm of each head of Q and of K, before or after RoPE.

    Attributes:
        q_weight, k_weight: `[1, d_head]` float32, float16 or bfloat16; `None` for all ones.
        eps: non-negative.
    """

    q_weight: AnyArray
    k_weight: AnyArray
    eps: float
    _arrays = ("q_weight", "k_weight")


@dataclass(frozen=True)
class Linear(Part):
    """A projection `y = x @ weight + bias`, with FP8 scales if it is quantised.

    Attributes:
        weight: `[in, out]`; float32, float16 or bfloat16, or FP8 if quantised.
        bias: `[1, out]`, or `None`.
        quantization: see `QuantizationType`.
        weight_scale: STATIC `[1, 1]` or `[128, 1]` (for QKV also `[1|128, 3]`: Q, K, V);
            ROW `[1|128, out]`. All rows of a `[128, n]` scale are equal.
        input_scale: STATIC only, `[1, 1]` or `[128, 1]`.
        prepared: a backend's own form of the projection, made once by the object API.
    """

    weight: AnyArray
    bias: AnyArray = None
    quantization: QuantizationType = QuantizationType.NONE
    weight_scale: AnyArray = None
    input_scale: AnyArray = None
    prepared: Any = field(default=None, repr=False, compare=False)
    _arrays = ("weight", "bias", "weight_scale", "input_scale")
    _required = ("weight",)

    def input_scale_value(self) -> float | None:
        """STATIC's activation scale."""
        return None if self.input_scale is None else self.input_scale.first()

    def column_scale(self, sections: tuple[int, ...], precision: type = np.float32) -> Any:
        """What each output column of `x @ W` is multiplied by, `[out]`; `None` if unquantised.

        STATIC: `input_scale * weight_scale` (of the column's section); ROW: `weight_scale`.
        `sections` are the widths of the parts that a `[1, 3]` weight scale speaks of.
        """
        if self.quantization is QuantizationType.NONE:
            return None
        assert self.weight_scale is not None
        scale = self.weight_scale.numpy()[0].astype(precision)
        if self.quantization is QuantizationType.ROW:
            return scale
        widths = sections if scale.size == len(sections) else (sum(sections),)
        return np.repeat(scale * precision(self.input_scale_value()), widths)


@dataclass(frozen=True)
class Block(Part):
    """An attention layer: everything about it that does not change from step to step.

    Attributes:
        heads: `Heads`.
        qkv: projection to all Q heads, then all K heads, then all V heads: `[H, columns]`.
        out: output projection `[q_heads * d_head, H_out]`, or `None` for the attention output.
        input_norm: RMSNorm of the hidden states, or `None`.
        hidden_dim_actual: true H where X is padded; columns and rows beyond are never read.
        pre_rope_norm, post_rope_norm: `QKNorm` before and after RoPE, or `None`.
        rope: `"half"` rotates pairs (i, i + d/2), `"interleaved"` (2i, 2i + 1); `None` = no RoPE.
        sink: `[q_heads, 1]`, a logit a query head that joins the softmax's denominator only.
        softmax_scale: multiplies `Q @ K^T`.
        attention_scale: multiplies the attention output (1, unless the object API folds an FP8
            cache's `1 / v_scale` into it).
        sliding_window: a token at position p attends to positions > p - window.
        transposed_out: output as `[128, lnc, H_out // lnc // 128, B * S_tkg]`.
        lnc: logical cores, 1 or 2: the layout of `transposed_out`.
        skip_attention: Q takes the place of the attention output (for testing).
        prepared: a backend's own form of the layer, made once by the object API.
    """

    heads: Heads
    qkv: Linear
    out: Linear | None
    softmax_scale: float
    input_norm: RMSNorm | None = None
    hidden_dim_actual: int | None = None
    pre_rope_norm: QKNorm | None = None
    rope: str | None = None
    post_rope_norm: QKNorm | None = None
    sink: AnyArray = None
    attention_scale: float = 1.0
    sliding_window: int | None = None
    transposed_out: bool = False
    lnc: int = 1
    skip_attention: bool = False
    prepared: Any = field(default=None, repr=False, compare=False)
    _arrays = ("sink",)
    _parts = ("qkv", "out", "input_norm", "pre_rope_norm", "post_rope_norm")

    @once
    def arrays(self) -> dict[str, Array]:
        """Every array of the layer by its field's name."""
        return arrays_of(self)

    @property
    def hidden(self) -> int:
        """H that counts: the actual one where X is padded."""
        return self.hidden_dim_actual or self.qkv.weight.shape[0]


@dataclass(frozen=True)
class BlockCall(Part):
    """One call of a block: the new tokens, the cache, and who may attend to what.

    Attributes:
        block: the layer.
        x: `[B, S_tkg, H]` float32, float16 or bfloat16.
        cache: the KV cache.
        cos, sin: `[d_head // 2, B, S_tkg]`, both or neither.
        mask: `[S_ctx, B, q_heads, S_tkg]` uint8 or bool; its last S_tkg entries are the new
            tokens, those before are cache slots in logical order.
        pos_ids: `[B, S_tkg]` integers, instead of a mask: `pos_ids[b, 0]` slots are valid.
        slot_ids: `[B, 1]` or `[B, S_tkg]` integers, where the new tokens go; `None` = no update.
        validate: read values that are on a device back and check them too, which waits for it.
    """

    block: Block
    x: AnyArray
    cache: KVCache
    cos: AnyArray = None
    sin: AnyArray = None
    mask: AnyArray = None
    pos_ids: AnyArray = None
    slot_ids: AnyArray = None
    validate: bool = False
    _arrays = ("x", "cos", "sin", "mask", "pos_ids", "slot_ids")

    operation = "attention_block_tkg"

    @once
    def batch(self) -> int:
        return self.x.shape[0]

    @once
    def tokens(self) -> int:
        """S_tkg."""
        return self.x.shape[1]

    @property
    def context(self) -> int:
        """S_ctx, the new tokens included."""
        if self.mask is not None:
            return self.mask.shape[0]
        length = self.cache.geometry.length
        table = self.cache.block_table
        return length if table is None else table.shape[1] * length

    @once
    def prior(self) -> int:
        """Cache slots in S_ctx: `S_ctx - S_tkg`."""
        return self.context - self.tokens

    def readable(self, array: Array) -> bool:
        """Whether the checks may look at an array's values."""
        return array.on_host or (self.validate and array.kind != "spec")

    @once
    def positions(self) -> np.ndarray | None:
        """`pos_ids` as int64, -1 for "none"; `None` with a mask, or where it is not `readable`."""
        if self.pos_ids is None or not self.readable(self.pos_ids):
            return None
        return index_values(self.pos_ids)

    @once
    def start(self) -> np.ndarray | None:
        """`[B]` int64: valid cache slots of each row, -1 for a padded row; `None` with a mask."""
        return None if self.positions is None else np.ascontiguousarray(self.positions[:, 0])

    @once
    def slots(self) -> np.ndarray | None:
        """`[B, S_tkg]` int64: where each token goes, -1 for nowhere; `None` for no update, or
        where `slot_ids` is not `readable`."""
        ids = self.slot_ids
        if ids is None or not self.readable(ids):
            return None
        slots = index_values(ids)
        if slots.shape[1] < self.tokens:
            slots = np.where(slots == -1, -1, slots + np.arange(self.tokens))
        if self.start is not None and -1 in self.start.tolist():
            slots[self.start == -1] = -1  # whatever stands behind it
        return slots

    def out_shape(self) -> tuple[int, ...]:
        """Shape of `out` (docs/contract.md, outputs)."""
        block, rows = self.block, self.batch * self.tokens
        if block.out is None:
            return self.batch, block.heads.q, block.heads.d_head, self.tokens
        return projection_shape(block.out.weight.shape[1], rows, block.transposed_out, block.lnc)

    @property
    def own_arrays(self) -> tuple[tuple[str, Array | None], ...]:
        """The arrays that this step may have, without the layer's, by their fields' names."""
        cache = self.cache
        return (
            ("x", self.x),
            ("cos", self.cos),
            ("sin", self.sin),
            ("cache.k", cache.k),
            ("cache.v", cache.v),
            ("cache.block_table", cache.block_table),
            ("mask", self.mask),
            ("pos_ids", self.pos_ids),
            ("slot_ids", self.slot_ids),
        )

    @property
    def arrays(self) -> dict[str, Array]:
        """Every array of the call by its field's name."""
        own = {field: array for field, array in self.own_arrays if array is not None}
        return own | self.block.arrays

    @property
    def device(self) -> str:
        """Where all arrays of the call are."""
        return self.x.device

    def __str__(self) -> str:
        heads, rows = self.block.heads, f"B={self.batch} S_tkg={self.tokens} S_ctx={self.context}"
        head = f"{self.operation}: {rows} heads={heads.q}/{heads.kv} d_head={heads.d_head}"
        parts = [f"  {name}: {array}" for name, array in self.arrays.items()]
        return "\n".join([f"{head}, {self.cache.layout} cache", *parts])


def projection_shape(hidden: int, rows: int, transposed: bool, lnc: int) -> tuple[int, ...]:
    """Shape of a projection's output: `[rows, H]`, or `[128, lnc, H // lnc // 128, rows]`."""
    return (128, lnc, hidden // lnc // 128, rows) if transposed else (rows, hidden)


def arrays_of(part: Part, prefix: str = "") -> dict[str, Array]:
    """Every array of a part and of the parts in it, by its field's dotted name."""
    found: dict[str, Array] = {}
    for name in part._parts:
        inner = getattr(part, name)
        if inner is not None:
            found |= arrays_of(inner, f"{prefix}{name}.")
    for name in part._arrays:
        array = getattr(part, name)
        if array is not None:
            found[prefix + name] = array
    return found
