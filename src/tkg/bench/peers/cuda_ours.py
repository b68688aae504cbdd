"""tkg's cuda backend: the drop-in call, captured."""

from __future__ import annotations

from functools import partial

import torch

import tkg
from tkg.bench.check import Answer, answer_of
from tkg.bench.inputs import BIG, Call
from tkg.bench.peers import Setup
from tkg.bench.peers.cuda_graph import Graphed
from tkg.testing.placed import back, tensor


def build(setup: Setup) -> Graphed:
    """The contestant; see `Contestant`."""
    arrays = {name: value for name, value in setup.call.items() if hasattr(value, "dtype")}
    small = {name: tensor(value, "cuda") for name, value in arrays.items() if name not in BIG}
    copies = [
        setup.call | small | {name: tensor(setup.call[name], "cuda") for name in BIG}
        for _ in range(setup.copies)
    ]

    def answer(out: torch.Tensor) -> Answer:
        caches = (back(copies[0][name]) for name in ("K_cache", "V_cache"))
        return answer_of(setup.call, back(out), *caches)

    def step(call: Call) -> torch.Tensor:
        return tkg.attention_block_tkg(**call, backend="cuda")[0]

    return Graphed([partial(step, call) for call in copies], answer)
