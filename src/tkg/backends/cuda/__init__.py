"""The CUDA backend: Triton kernels for NVIDIA GPUs, on torch tensors.

With `TRITON_INTERPRET=1` in the environment the same kernels run under Triton's interpreter, on
torch tensors on the CPU: slow, and right. torch and triton are loaded when the first call runs.
"""

from __future__ import annotations

from typing import Any

from tkg.backends.cuda.environment import device, unavailable
from tkg.backends.cuda.errors import check
from tkg.backends.cuda.limits import unsupported
from tkg.contract.block import BlockCall
from tkg.contract.output import BlockOutput
from tkg.contract.projection import ProjectionCall

__all__ = [
    "attention_block",
    "check",
    "device",
    "output_projection",
    "prepare",
    "unavailable",
    "unsupported",
]


def prepare(part: Any) -> Any:
    """Weights are used where they lie: nothing needs preparing."""
    return part


def attention_block(call: BlockCall) -> BlockOutput:
    """Run a block call; updates the caches in place if it says so. Outputs are torch tensors."""
    from tkg.backends.cuda import calls

    return calls.attention_block(call)


def output_projection(call: ProjectionCall) -> Any:
    """Run a projection call; returns a torch tensor."""
    from tkg.backends.cuda import calls

    return calls.output_projection(call)
