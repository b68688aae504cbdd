"""torch's operations with FlashInfer's batched decode as the attention."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch

from tkg.bench.inputs import Call
from tkg.bench.peers import CannotRun, Setup
from tkg.bench.peers.cuda_graph import Graphed
from tkg.bench.peers.cuda_torch import graphed
from tkg.bench.peers.torch_eager import Attend, Fixed, block

WORKSPACE_BYTES = 128 * 2**20
"""What FlashInfer's documentation asks for."""


def planned(call: Call) -> Attend:
    """Attention planned for the call: each row of the flat cache is one page of its length."""
    library: Any = importlib.import_module("flashinfer")
    batch, kv, slots, d = call["V_cache"].shape
    q_heads = call["W_out"].shape[0] // d
    page = {"dtype": torch.int32, "device": "cuda"}
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(
        workspace, kv_layout="HND", use_tensor_cores=True
    )
    dtype = getattr(torch, call["V_cache"].dtype.name)
    wrapper.plan(
        torch.arange(batch + 1, **page),
        torch.arange(batch, **page),
        torch.full((batch,), slots, **page),
        q_heads,
        kv,
        d,
        slots,
        q_data_type=dtype,
        kv_data_type=dtype,
        sm_scale=call["softmax_scale"],
    )

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, fixed: Fixed) -> torch.Tensor:
        del fixed
        return wrapper.run(q[:, 0], (k, v))[:, None]

    return attend


def build(setup: Setup) -> Graphed:
    """The contestant; see `Contestant`."""
    if "sink" in setup.call or setup.call["X"].shape[1] != 1:
        raise CannotRun("FlashInfer's decode takes one new token a row and no sinks")
    return graphed(setup, partial(block, attend=planned(setup.call)))
