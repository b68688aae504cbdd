"""torch.compile of the eager function, in its default mode, for the row's exact shapes."""

from __future__ import annotations

import os
import shutil

import torch

from tkg.bench.peers import CannotRun, Setup
from tkg.bench.peers.torch_eager import Torch, block


def build(setup: Setup) -> Torch:
    """The contestant; see `Contestant`. The code is compiled at the first call."""
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if not any(map(shutil.which, compilers)):
        raise CannotRun(f"needs a C++ compiler ({' or '.join(compilers)})")
    torch.compiler.reset()
    return Torch(setup, torch.compile(block, dynamic=False, fullgraph=True))
