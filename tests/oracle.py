"""A second, naive reading of the contract: loops, float64, nothing shared with any backend.

It exists to disagree. It was written from the contract's text alone and is compared with every
backend, the reference included. Every loop is over one row, head or token; the only array
arithmetic is a dot product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

MANTISSA_AND_MIN_EXPONENT = {
    np.dtype(np.float32): (23, -126),
    np.dtype(np.float16): (10, -14),
    np.dtype(ml_dtypes.bfloat16): (7, -126),
    np.dtype(ml_dtypes.float8_e4m3): (3, -6),
    np.dtype(ml_dtypes.float8_e4m3fn): (3, -6),
}
FP8 = (np.dtype(ml_dtypes.float8_e4m3), np.dtype(ml_dtypes.float8_e4m3fn))
SKIP = (-1, 2**32 - 1)


def round_to(value: np.ndarray, dtype: Any) -> np.ndarray:
    """float64 values rounded once, to nearest even, to `dtype`'s grid (still float64).

    `ml_dtypes` goes through float32, which rounds twice; here nothing does. Overflow is not
    modelled: no test gets near it.
    """
    bits, low = MANTISSA_AND_MIN_EXPONENT[np.dtype(dtype)]
    value = np.asarray(value, np.float64)
    _, exponent = np.frexp(
        np.where(np.isfinite(value), value, 0.0)
    )  # value = m * 2^e, m in [.5, 1)
    step = np.ldexp(1.0, np.maximum(exponent - 1, low) - bits)
    return np.rint(value / step) * step


def fp8(value: np.ndarray, dtype: Any = ml_dtypes.float8_e4m3) -> np.ndarray:
    return round_to(np.clip(value, -240.0, 240.0), dtype)


def wide(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64, copy=False)


def scale_of(array: Any) -> float:
    """The number in a [1, 1] or [128, 1] scale."""
    return float(wide(array)[0, 0])


@dataclass
class Answer:
    """What the contract says a call returns, before the final rounding of `out`."""

    out: np.ndarray
    k_new: np.ndarray  # [B, S, kv, d], on the cache dtype's grid
    v_new: np.ndarray
    k_raw: np.ndarray  # the same before rounding (and before clipping), scaled if the cache is FP8
    v_raw: np.ndarray
    K_out: np.ndarray
    V_out: np.ndarray


def rms_norm(x: np.ndarray, weight: Any, eps: float | None, length: int | None = None):
    length = x.size if length is None else length
    eps = 1e-3 if eps is None else eps
    y = x / np.sqrt(np.sum(x * x) / length + eps)
    return y if weight is None else y * wide(weight)[0, : x.size]


def linear(
    x: np.ndarray, weight: Any, bias: Any, mode: str, weight_scale, input_scale, thirds=None
):
    """`thirds`: for QKV, the column ranges that a STATIC [., 3] weight scale is for."""
    w = wide(weight)[: x.size]
    columns = w.shape[1]
    if mode == "NONE":
        y = x @ w
    elif mode == "ROW":
        y = (x @ w) * wide(weight_scale)[0]
    else:
        step = scale_of(input_scale)
        per_column = np.full(columns, scale_of(weight_scale))
        if thirds is not None and np.asarray(weight_scale).shape[1] == 3:
            for part, (start, stop) in enumerate(thirds):
                per_column[start:stop] = wide(weight_scale)[0, part]
        y = (fp8(x / step) @ w) * step * per_column
    return y if bias is None else y + wide(bias)[0]


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, contiguous: bool) -> np.ndarray:
    half = x.size // 2
    y = np.empty_like(x)
    for i in range(half):
        first, second = (i, i + half) if contiguous else (2 * i, 2 * i + 1)
        y[first] = x[first] * cos[i] - x[second] * sin[i]
        y[second] = x[first] * sin[i] + x[second] * cos[i]
    return y


def attention_block(call: dict[str, Any]) -> Answer:
    """The answer of `tkg.attention_block_tkg(**call)`, NumPy arguments only. Changes nothing."""
    return _Block(call).answer()


class _Block:
    def __init__(self, call: dict[str, Any]) -> None:
        self.call = call = dict(call)
        for weight in ("W_qkv", "W_out"):
            if call.get(weight) is not None:
                call[weight] = wide(call[weight])  # once, not once a token
        X, K = call["X"], call["K_cache"]
        self.B, self.S, self.H = X.shape
        self.table = call.get("active_blocks_table")
        self.transposed = call.get("K_cache_transposed", False)
        V = call["V_cache"]
        self.d = V.shape[-1]
        if self.table is not None:
            self.kv = V.shape[2] if V.ndim == 4 else 1
            self.block_len = V.shape[1]
        else:
            self.kv = V.shape[1] if V.ndim == 4 else 1
        self.q = call["W_qkv"].shape[1] // self.d - 2 * self.kv
        self.cache_dtype = np.dtype(K.dtype)
        mask = call.get("attention_mask")
        if mask is not None:
            self.S_ctx = mask.shape[0]
        elif self.table is not None:
            self.S_ctx = self.table.shape[1] * self.block_len
        else:
            self.S_ctx = V.shape[-2]

    def padded(self, b: int) -> bool:
        pos = self.call.get("pos_ids")
        return pos is not None and int(pos[b, 0]) in SKIP

    def mode(self, name: str) -> str:
        value = self.call.get(name)
        return "NONE" if value is None else value.name

    # ---- one token's Q, K, V ----------------------------------------------------------------
    def qkv(self, b: int, s: int):
        call = self.call
        H = call.get("X_hidden_dim_actual") or self.H
        x = wide(call["X"][b, s])[:H]
        if call.get("rmsnorm_X_enabled"):
            x = rms_norm(x, call.get("rmsnorm_X_gamma"), call.get("rmsnorm_X_eps"), H)
        q_end, k_end = self.q * self.d, (self.q + self.kv) * self.d
        thirds = [(0, q_end), (q_end, k_end), (k_end, k_end + self.kv * self.d)]
        y = linear(
            x,
            call["W_qkv"],
            call.get("bias_qkv"),
            self.mode("quantization_type_qkv"),
            call.get("weight_dequant_scale_qkv"),
            call.get("input_dequant_scale_qkv"),
            thirds,
        )
        heads = [y[i * self.d : (i + 1) * self.d] for i in range(self.q + 2 * self.kv)]
        for i in range(self.q + self.kv):
            heads[i] = self.norm_and_rotate(heads[i], b, s, "Q" if i < self.q else "K")
        return heads[: self.q], heads[self.q : self.q + self.kv], heads[self.q + self.kv :]

    def norm_and_rotate(self, x: np.ndarray, b: int, s: int, which: str) -> np.ndarray:
        call = self.call
        x = self.head_norm(x, "pre", which)
        if call.get("cos") is not None:
            cos, sin = wide(call["cos"][:, b, s]), wide(call["sin"][:, b, s])
            x = rotate(x, cos, sin, call.get("rope_contiguous_layout", True))
        return self.head_norm(x, "post", which)

    def head_norm(self, x: np.ndarray, place: str, which: str) -> np.ndarray:
        prefix = f"rmsnorm_QK_{place}_rope"
        if not self.call.get(f"{prefix}_enabled"):
            return x
        weight = self.call.get(f"{prefix}_W_{which}")
        return rms_norm(x, weight, self.call.get(f"{prefix}_eps"))

    def store(self, x: np.ndarray, scale_name: str):
        """What goes to the cache, and the value it is rounded from."""
        scale = self.call.get(scale_name)
        if scale is None:
            return round_to(x, self.cache_dtype), x
        raw = x * scale_of(scale)
        return fp8(raw, self.cache_dtype), raw

    # ---- the cache --------------------------------------------------------------------------
    def cached(self, name: str, b: int, h: int, slot: int) -> np.ndarray:
        cache = self.call[name]
        if self.table is not None:
            page = int(self.table[b, slot // self.block_len])
            row = cache[page, slot % self.block_len]
            return wide(row[h] if cache.ndim == 4 else row)
        plane = cache[b, h] if cache.ndim == 4 else cache[b]
        if name == "K_cache" and self.transposed:
            return wide(plane[:, slot])
        return wide(plane[slot])

    def write(self, name: str, cache: np.ndarray, b: int, h: int, slot: int, x: np.ndarray) -> None:
        x = x.astype(cache.dtype)
        if self.table is not None:
            place = cache[slot // self.block_len, slot % self.block_len]
            if cache.ndim == 4:
                place[h] = x
            else:
                place[:] = x
            return
        plane = cache[b, h] if cache.ndim == 4 else cache[b]
        if name == "K_cache" and self.transposed:
            plane[:, slot] = x
        else:
            plane[slot] = x

    # ---- attention --------------------------------------------------------------------------
    def visible(self, b: int, head: int, s: int):
        """(cache slots, new tokens) that token s of row b may attend to."""
        prior = self.S_ctx - self.S
        mask = self.call.get("attention_mask")
        if mask is not None:
            column = mask[:, b, head, s]
            slots = [j for j in range(prior) if column[j]]
            return slots, [t for t in range(self.S) if column[prior + t]]
        first = int(self.call["pos_ids"][b, 0])
        position = first + s
        window = self.call.get("sliding_window")
        lowest = 0 if window is None else position - window + 1
        slots = [j for j in range(first) if j >= lowest]
        return slots, [t for t in range(s + 1) if first + t >= lowest]

    def attend(self, b, head, s, q, k_new, v_new) -> np.ndarray:
        call = self.call
        h = head // (self.q // self.kv)
        scale = call.get("softmax_scale")
        scale = 1.0 / np.sqrt(self.d) if scale is None else scale
        slots, new = self.visible(b, head, s)
        keys = [self.cached("K_cache", b, h, j) for j in slots] + [k_new[b, t, h] for t in new]
        values = [self.cached("V_cache", b, h, j) for j in slots] + [v_new[b, t, h] for t in new]
        if not keys:
            return np.zeros(self.d)
        scores = [float(np.dot(q, k)) * scale for k in keys]
        sink = call.get("sink")
        top = max(scores + ([] if sink is None else [float(wide(sink)[head, 0])]))
        weights = [np.exp(x - top) for x in scores]
        total = sum(weights)
        if sink is not None:
            total += np.exp(float(wide(sink)[head, 0]) - top)
        result = np.zeros(self.d)
        for w, v in zip(weights, values, strict=True):
            result += (w / total) * v
        return result

    # ---- all --------------------------------------------------------------------------------
    def answer(self) -> Answer:
        call, B, S = self.call, self.B, self.S
        shape = (B, S, self.kv, self.d)
        k_new, v_new, k_raw, v_raw = (np.zeros(shape) for _ in range(4))
        queries = np.zeros((B, S, self.q, self.d))
        for b in range(B):
            for s in range(S):
                if self.padded(b):
                    continue
                q, k, v = self.qkv(b, s)
                queries[b, s] = q
                for h in range(self.kv):
                    k_new[b, s, h], k_raw[b, s, h] = self.store(k[h], "k_scale")
                    v_new[b, s, h], v_raw[b, s, h] = self.store(v[h], "v_scale")
        heads = np.zeros((B, S, self.q, self.d))
        for b in range(B):
            for s in range(S):
                for head in range(self.q):
                    if self.padded(b):
                        continue
                    if call.get("skip_attention"):
                        heads[b, s, head] = queries[b, s, head]
                    else:
                        heads[b, s, head] = self.attend(
                            b, head, s, queries[b, s, head], k_new, v_new
                        )
        K_out, V_out = self.caches_after(k_new, v_new)
        return Answer(self.project(heads), k_new, v_new, k_raw, v_raw, K_out, V_out)

    def caches_after(self, k_new: np.ndarray, v_new: np.ndarray):
        call, axis = self.call, self.call["V_cache"].ndim == 4
        if not call.get("update_cache", False):
            k, v = k_new.transpose(2, 3, 0, 1), v_new.transpose(0, 2, 1, 3)
            k = k if axis else k[0]
            return k.astype(self.cache_dtype), v.astype(self.cache_dtype)
        K_out, V_out = call["K_cache"].copy(), call["V_cache"].copy()
        index = call["kv_cache_update_idx"]
        for b in range(self.B):
            for s in range(self.S):
                first = int(index[b, s] if index.shape[1] == self.S else index[b, 0])
                slot = first if index.shape[1] == self.S or first in SKIP else first + s
                if self.padded(b) or slot in SKIP:
                    continue
                for h in range(self.kv):
                    self.write("K_cache", K_out, b, h, slot, k_new[b, s, h])
                    self.write("V_cache", V_out, b, h, slot, v_new[b, s, h])
        return K_out, V_out

    def project(self, heads: np.ndarray) -> np.ndarray:
        call, B, S = self.call, self.B, self.S
        if call.get("W_out") is None:
            return heads.transpose(0, 2, 3, 1)
        out = np.zeros((B * S, call["W_out"].shape[1]))
        for b in range(B):
            for s in range(S):
                if self.padded(b):
                    continue
                out[b * S + s] = linear(
                    heads[b, s].reshape(-1),
                    call["W_out"],
                    call.get("bias_out"),
                    self.mode("quantization_type_out"),
                    call.get("weight_dequant_scale_out"),
                    call.get("input_dequant_scale_out"),
                )
        return transposed(out, call.get("lnc", 1)) if call.get("transposed_out") else out


def transposed(rows: np.ndarray, lnc: int) -> np.ndarray:
    """[rows, H] to [128, lnc, H // lnc // 128, rows], index by index."""
    n, H = rows.shape
    per_core = H // lnc
    inner = per_core // 128
    result = np.zeros((128, lnc, inner, n))
    for h0 in range(lnc):
        for h1 in range(128):
            for h2 in range(inner):
                result[h1, h0, h2] = rows[:, h0 * per_core + h1 * inner + h2]
    return result


def output_projection(call: dict[str, Any]) -> np.ndarray:
    """The answer of `tkg.output_projection_tkg(**call)` before the final rounding."""
    attention, weight = call["attention"], call["weight"]
    D, B, N, S = attention.shape
    mode = call.get("quantization_type")
    out = np.zeros((B * S, weight.shape[1]))
    for b in range(B):
        for s in range(S):
            x = np.concatenate([wide(attention[:, b, n, s]) for n in range(N)])
            out[b * S + s] = linear(
                x,
                weight,
                call.get("bias"),
                "NONE" if mode is None else mode.name,
                call.get("weight_scale"),
                call.get("input_scale"),
            )
    return transposed(out, call.get("lnc", 1)) if call.get("TRANSPOSE_OUT") else out
