"""torch.compile of the eager function in mode max-autotune, captured in the same kind of graph."""

from __future__ import annotations

import torch

from tkg.bench.peers import Setup
from tkg.bench.peers.cuda_graph import Graphed
from tkg.bench.peers.cuda_torch import graphed
from tkg.bench.peers.torch_eager import block


def build(setup: Setup) -> Graphed:
    """The contestant; see `Contestant`. Its own graphs are off: all layers go into one of ours."""
    torch.compiler.reset()
    mode = "max-autotune-no-cudagraphs"
    return graphed(setup, torch.compile(block, dynamic=False, fullgraph=True, mode=mode))
