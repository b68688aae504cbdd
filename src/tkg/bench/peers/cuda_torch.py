"""torch on a GPU: the eager operations of `torch_eager`, captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tkg.bench.check import Answer
from tkg.bench.peers import Setup
from tkg.bench.peers.cuda_graph import Graphed
from tkg.bench.peers.torch_eager import Layer, block, fixed_of, layer_of, tensor


def build(setup: Setup) -> Graphed:
    """The contestant; see `Contestant`."""
    return graphed(setup, block)


def graphed(setup: Setup, function: Callable[..., torch.Tensor]) -> Graphed:
    """A rotation through a function with the arguments of `torch_eager.block`."""
    x = tensor(setup.call["X"]).cuda()
    fixed = fixed_of(setup.call)
    fixed = type(fixed)(*map(_moved, fixed))
    layer = Layer(*map(_moved, layer_of(setup.call)))
    layers = [layer, *(Layer(*(t.clone() for t in layer)) for _ in range(setup.copies - 1))]

    def answer(out: torch.Tensor) -> Answer:
        end = fixed.first + x.shape[1]
        new = (t[:, :, fixed.first : end].transpose(1, 2) for t in (layers[0].k, layers[0].v))
        k, v = (t.float().cpu().numpy() for t in new)
        return Answer(out.reshape(-1, out.shape[-1]).float().cpu().numpy(), k, v)

    return Graphed([partial(function, x, one, fixed) for one in layers], answer)


def _moved(value: Any) -> Any:
    return value.cuda() if isinstance(value, torch.Tensor) else value
