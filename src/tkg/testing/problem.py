"""A call, unpacked for analysis: float64 arrays, one layout, invalid values gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tkg.contract.dtypes import SKIP_SLOT

Call = Mapping[str, Any]


@dataclass(frozen=True)
class Weights:
    """A projection: `weight` [in, out], `bias` [out] or None, `mode`, and its scales.

    `columns` [out] multiplies `x @ weight` (1 where not quantised); `step` is STATIC's activation
    scale, else None. `dtype` is the stored weight's.
    """

    dtype: str
    weight: np.ndarray
    bias: np.ndarray | None
    columns: np.ndarray | None
    step: float | None


@dataclass(frozen=True)
class HeadNorm:
    """A per-head norm: weights `[d_head]` or None, and eps."""

    q: np.ndarray | None
    k: np.ndarray | None
    eps: float


@dataclass(frozen=True)
class Problem:
    """B rows, S new tokens, P cache slots before them.

    Attributes:
        x: `[B, S, H]`, padding cut off.
        alive: `[B]`, False for padded rows.
        k_cache, v_cache: `[B, kv, P, d]` in logical order; 0 where nobody looks.
        visible: `[B, q, S, P + S]` bool, the new tokens last.
        cos, sin: `[B, S, 1, d // 2]`, or None.
        dtype, cache_dtype: of the outputs and of the caches.
    """

    x: np.ndarray
    alive: np.ndarray
    norm: tuple[np.ndarray | None, float] | None
    qkv: Weights
    heads: tuple[int, int, int]
    pre: HeadNorm | None
    cos: np.ndarray | None
    sin: np.ndarray | None
    half: bool
    post: HeadNorm | None
    k_cache: np.ndarray
    v_cache: np.ndarray
    k_scale: float | None
    v_scale: float | None
    visible: np.ndarray
    sink: np.ndarray | None
    scale: float
    out: Weights | None
    skip_attention: bool
    dtype: str
    cache_dtype: str


def of_call(call: Call) -> Problem:
    """The problem that the keyword arguments of `attention_block_tkg` (NumPy arrays) state."""
    X, V = call["X"], call["V_cache"]
    batch, tokens, _ = X.shape
    paged = call.get("active_blocks_table") is not None
    d = V.shape[-1]
    kv = 1 if V.ndim == 3 else V.shape[2 if paged else 1]
    q = call["W_qkv"].shape[1] // d - 2 * kv
    hidden = call.get("X_hidden_dim_actual") or X.shape[2]
    visible = _visible(call, q)
    prior = visible.shape[-1] - tokens
    used = np.any(visible[..., :prior], axis=(1, 2))
    pos = call.get("pos_ids")
    alive = np.ones(batch, bool) if pos is None else np.invert(_is_skip(pos[:, 0]))
    cos, sin = (_angles(call.get(name), alive) for name in ("cos", "sin"))
    widths = (q * d, kv * d, kv * d)
    scale = call.get("softmax_scale")
    return Problem(
        x=_clean(X[..., :hidden], alive),
        alive=alive,
        norm=_norm(call, "rmsnorm_X", "rmsnorm_X_gamma", hidden),
        qkv=_weights(call, "qkv", widths, hidden),
        heads=(q, kv, d),
        pre=_head_norm(call, "pre"),
        cos=cos,
        sin=sin,
        half=call.get("rope_contiguous_layout", True),
        post=_head_norm(call, "post"),
        k_cache=_gathered(call, "K_cache", kv, prior, used),
        v_cache=_gathered(call, "V_cache", kv, prior, used),
        k_scale=_scalar(call.get("k_scale")),
        v_scale=_scalar(call.get("v_scale")),
        visible=visible,
        sink=None if call.get("sink") is None else _float64(call["sink"])[:, 0],
        scale=d**-0.5 if scale is None else scale,
        out=None if call.get("W_out") is None else _weights(call, "out", (), q * d),
        skip_attention=call.get("skip_attention", False),
        dtype=X.dtype.name,
        cache_dtype=V.dtype.name,
    )


def logical(cache: np.ndarray, *, paged: bool, transposed: bool = False) -> np.ndarray:
    """A view `[rows, slots, kv, d]` of a cache in any layout; paged caches are one long row."""
    if paged:
        pages = cache if cache.ndim == 4 else cache[:, :, None]
        return pages.reshape(1, -1, *pages.shape[2:])
    planes = cache if cache.ndim == 4 else cache[:, None]
    return planes.transpose(0, 3, 1, 2) if transposed else planes.transpose(0, 2, 1, 3)


def new_slots(call: Call) -> np.ndarray:
    """`[B, S]` int64: the slot each new token goes to, -1 for none. For `update_cache=True`."""
    batch, tokens = call["X"].shape[:2]
    index = np.asarray(call["kv_cache_update_idx"]).astype(np.int64)
    slots = np.where(_is_skip(index), -1, index)
    if index.shape[1] != tokens:
        slots = np.where(slots < 0, -1, slots + np.arange(tokens))
    pos = call.get("pos_ids")
    if pos is not None:
        slots = np.where(_is_skip(pos[:, :1]), -1, slots)
    return np.broadcast_to(slots, (batch, tokens))


def _is_skip(values: Any) -> np.ndarray:
    return np.isin(np.asarray(values).astype(np.int64), (-1, SKIP_SLOT))


def _float64(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def _scalar(scale: Any) -> float | None:
    return None if scale is None else float(_float64(scale)[0, 0])


def _clean(array: Any, alive: np.ndarray) -> np.ndarray:
    result = _float64(array)
    result[~alive] = 0.0
    return result


def _angles(table: Any, alive: np.ndarray) -> np.ndarray | None:
    if table is None:
        return None
    return _clean(np.asarray(table).transpose(1, 2, 0)[:, :, None], alive)


def _norm(call: Call, prefix: str, weight: str, length: int) -> Any:
    if not call.get(f"{prefix}_enabled"):
        return None
    eps = call.get(f"{prefix}_eps")
    gamma = call.get(weight)
    return None if gamma is None else _float64(gamma)[0, :length], 1e-3 if eps is None else eps


def _head_norm(call: Call, place: str) -> HeadNorm | None:
    prefix = f"rmsnorm_QK_{place}_rope"
    q, k = (_norm(call, prefix, f"{prefix}_W_{w}", call["V_cache"].shape[-1]) for w in "QK")
    return None if q is None else HeadNorm(q[0], k[0], q[1])


def _weights(call: Call, which: str, widths: tuple[int, ...], length: int) -> Weights:
    mode = getattr(call.get(f"quantization_type_{which}"), "name", "NONE")
    bias = call.get(f"bias_{which}")
    columns = step = None
    if mode != "NONE":
        columns = _float64(call[f"weight_dequant_scale_{which}"])[0]
        if mode == "STATIC":
            step = float(_float64(call[f"input_dequant_scale_{which}"])[0, 0])
            columns = np.repeat(columns, widths) if columns.size == 3 and widths else columns
            columns = columns * step
    stored = call[f"W_{which}"]
    weight = _float64(stored[:length])
    return Weights(
        stored.dtype.name, weight, None if bias is None else _float64(bias)[0], columns, step
    )


def _visible(call: Call, q: int) -> np.ndarray:
    batch, tokens = call["X"].shape[:2]
    mask = call.get("attention_mask")
    if mask is not None:
        return (np.asarray(mask) != 0).transpose(1, 2, 3, 0)
    table = call.get("active_blocks_table")
    if table is None:
        context = call["V_cache"].shape[-2]
    else:
        context = table.shape[1] * call["V_cache"].shape[1]
    prior = context - tokens
    first = np.asarray(call["pos_ids"]).astype(np.int64)[:, :1]
    first = np.where(_is_skip(first), -1, first)
    query = first + np.arange(tokens)
    slot = np.arange(prior)
    old = (slot < first)[:, None] & np.ones((tokens, 1), bool)
    new = np.tril(np.ones((tokens, tokens), bool))
    new = np.broadcast_to(new, (batch, tokens, tokens)) & (first >= 0)[:, :, None]
    key = np.concatenate([np.broadcast_to(slot, (batch, prior)), query], axis=1)
    visible = np.concatenate([old, new], axis=2)
    window = call.get("sliding_window")
    if window is not None:
        visible &= key[:, None, :] > query[:, :, None] - window
    return np.broadcast_to(visible[:, None], (batch, q, *visible.shape[1:]))


def _gathered(call: Call, name: str, kv: int, prior: int, used: np.ndarray) -> np.ndarray:
    """`[B, kv, prior, d]`, 0 in slots that no token of the row may attend to."""
    cache, table = call[name], call.get("active_blocks_table")
    transposed = name == "K_cache" and call.get("K_cache_transposed", False)
    view = logical(cache, paged=table is not None, transposed=transposed)
    if table is None:
        rows = view[:, :prior]
    else:
        n = cache.shape[1]
        slot = np.arange(prior)
        pages = np.asarray(table).astype(np.int64)[:, slot // n]
        rows = view[0, np.where(used, pages, 0) * n + slot % n]
    return np.where(used[:, :, None, None], rows.astype(np.float64), 0.0).transpose(0, 2, 1, 3)
