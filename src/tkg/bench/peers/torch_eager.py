"""torch, eager: the block as careful PyTorch code for a CPU writes it.

The query heads of a KV head (and the new tokens) become the query rows of one
`scaled_dot_product_attention`, so that K and V are read once a group; `enable_gqa` and repeated
heads are slower on a CPU. A sink is the score of an extra slot, with K and V zero, by way of the
mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from tkg.bench.check import Answer
from tkg.bench.inputs import Call
from tkg.bench.peers import Setup


class Layer(NamedTuple):
    """Weights as `torch.nn.Linear` has them, `[out, in]`, and one layer's caches."""

    w_qkv: torch.Tensor
    w_out: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


class Fixed(NamedTuple):
    """What is the same in every copy of a layer: small tensors, and sizes."""

    gamma: torch.Tensor
    eps: float
    b_qkv: torch.Tensor | None
    b_out: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    norm_eps: float
    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor | None
    scale: float
    first: int


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Fixed], torch.Tensor]
"""Attention of q `[B, S, q_heads, d]` over K and V `[B, kv_heads, slots, d]`; shaped as q."""


def grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, fixed: Fixed) -> torch.Tensor:
    """`scaled_dot_product_attention`, the query heads of a group (and the tokens) as its rows."""
    batch, tokens, _, d = q.shape
    kv, group = k.shape[1], q.shape[2] // k.shape[1]
    rows = q.view(batch, tokens, kv, group, d).permute(0, 2, 3, 1, 4)
    y = F.scaled_dot_product_attention(
        rows.reshape(batch, kv, group * tokens, d), k, v, attn_mask=fixed.mask, scale=fixed.scale
    )
    y = y.view(batch, kv, group, tokens, d).permute(0, 3, 1, 2, 4)
    return y.reshape(batch, tokens, -1, d)


def block(x: torch.Tensor, layer: Layer, fixed: Fixed, attend: Attend = grouped) -> torch.Tensor:
    """`[B, S, H]` to `[B, S, H]`; writes the new K and V into the caches from slot `first` on."""
    batch, tokens, hidden = x.shape
    kv, d = layer.k.shape[1], layer.k.shape[3]
    h = F.rms_norm(x, (hidden,), fixed.gamma, fixed.eps)
    qkv = F.linear(h, layer.w_qkv, fixed.b_qkv).view(batch, tokens, -1, d)
    q, k, v = qkv.split((qkv.shape[2] - 2 * kv, kv, kv), dim=2)
    if fixed.q_norm is not None:
        q = F.rms_norm(q, (d,), fixed.q_norm, fixed.norm_eps)
        k = F.rms_norm(k, (d,), fixed.k_norm, fixed.norm_eps)
    q, k = (t * fixed.cos + rotated(t) * fixed.sin for t in (q, k))
    end = fixed.first + tokens
    layer.k[:, :, fixed.first : end] = k.transpose(1, 2)
    layer.v[:, :, fixed.first : end] = v.transpose(1, 2)
    y = attend(q, layer.k[:, :, :end], layer.v[:, :, :end], fixed)
    return F.linear(y.reshape(batch, tokens, -1), layer.w_out, fixed.b_out)


def rotated(x: torch.Tensor) -> torch.Tensor:
    """`(-second half, first half)` of each head."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class Torch:
    """A rotation of layers through one function."""

    calls_per_run = 1

    def __init__(self, setup: Setup, function: Callable[..., torch.Tensor]) -> None:
        torch.set_num_threads(setup.threads)
        self._function = function
        self._x = tensor(setup.call["X"])
        self._fixed = fixed_of(setup.call)
        layer = layer_of(setup.call)
        copies = (Layer(*(t.clone() for t in layer)) for _ in range(setup.copies - 1))
        self._layers = [layer, *copies]
        self._next = 0

    def settle(self) -> None:
        pass

    def run(self) -> None:
        layer = self._layers[self._next]
        self._next = (self._next + 1) % len(self._layers)
        with torch.no_grad():
            self._function(self._x, layer, self._fixed)

    def answer(self) -> Answer:
        layer = self._layers[0]
        with torch.no_grad():
            out = self._function(self._x, layer, self._fixed)
        first = self._fixed.first
        new = (t[:, :, first : first + out.shape[1]].transpose(1, 2) for t in (layer.k, layer.v))
        k, v = (t.float().numpy() for t in new)
        return Answer(out.reshape(-1, out.shape[-1]).float().numpy(), k, v)


def build(setup: Setup) -> Torch:
    """The contestant; see `Contestant`."""
    return Torch(setup, block)


def tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor with a copy of the array's numbers."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def layer_of(call: Call) -> Layer:
    """The layer of a call; a sink is a slot before the others."""
    weights = (tensor(np.ascontiguousarray(call[name].T)) for name in ("W_qkv", "W_out"))
    caches = (call["K_cache"], call["V_cache"])
    if "sink" in call:
        caches = tuple(np.pad(cache, ((0, 0), (0, 0), (1, 0), (0, 0))) for cache in caches)
    return Layer(*weights, *(tensor(cache) for cache in caches))


def fixed_of(call: Call) -> Fixed:
    """The rest of a call."""

    def small(name: str) -> torch.Tensor | None:
        return tensor(call[name][0]) if name in call else None

    gamma = small("rmsnorm_X_gamma")
    assert gamma is not None
    norm = "rmsnorm_QK_pre_rope"
    angles = (np.concatenate([call[t]] * 2).transpose(1, 2, 0)[:, :, None] for t in ("cos", "sin"))
    cos, sin = (tensor(np.ascontiguousarray(table)) for table in angles)
    return Fixed(
        gamma,
        call["rmsnorm_X_eps"],
        small("bias_qkv"),
        small("bias_out"),
        small(f"{norm}_W_Q"),
        small(f"{norm}_W_K"),
        call.get(f"{norm}_eps", 0.0),
        cos,
        sin,
        _mask(call, gamma.dtype),
        call["softmax_scale"],
        int(call["pos_ids"][0, 0]) + ("sink" in call),
    )


def _mask(call: Call, dtype: torch.dtype) -> torch.Tensor | None:
    """`None` for one token without a sink, else `[1, kv, group * S, slots]`, added to scores."""
    tokens, sink = call["X"].shape[1], call.get("sink")
    if tokens == 1 and sink is None:
        return None
    kv, slots = call["V_cache"].shape[1:3]
    later = torch.ones(tokens, slots, dtype=torch.bool).triu(slots - tokens + 1)
    mask: Any = torch.zeros(tokens, slots, dtype=dtype).masked_fill(later, -torch.inf)
    group = call["W_out"].shape[0] // (call["V_cache"].shape[3] * kv)
    mask = mask.expand(1, kv, group, tokens, slots)
    if sink is not None:
        scores = tensor(sink).view(1, kv, group, 1, 1).expand(1, kv, group, tokens, 1)
        mask = torch.cat((scores, mask), dim=-1)
    return mask.reshape(1, kv, group * tokens, -1)
