"""torch's operations with flash-attn's decoding kernel as the attention."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch

from tkg.bench.peers import CannotRun, Setup
from tkg.bench.peers.cuda_graph import Graphed
from tkg.bench.peers.cuda_torch import graphed
from tkg.bench.peers.torch_eager import Fixed, block


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, fixed: Fixed) -> torch.Tensor:
    """As `torch_eager.Attend`; the caches' slots come before their heads for this library."""
    library: Any = importlib.import_module("flash_attn")
    caches = (k.transpose(1, 2), v.transpose(1, 2))
    return library.flash_attn_with_kvcache(q, *caches, softmax_scale=fixed.scale, causal=True)


def build(setup: Setup) -> Graphed:
    """The contestant; see `Contestant`."""
    if "sink" in setup.call:
        raise CannotRun("flash_attn_with_kvcache takes no sinks")
    return graphed(setup, partial(block, attend=attend))
