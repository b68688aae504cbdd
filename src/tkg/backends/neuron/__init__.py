"""The Neuron backend: NKI kernels, on a NeuronCore or on its simulator nkisim."""

from typing import Any

from tkg.backends.neuron.calls import attention_block, output_projection
from tkg.backends.neuron.launch import unavailable
from tkg.backends.neuron.limits import unsupported


def prepare(part: Any) -> Any:
    """Weights are read as they are: the kernels need no form of their own."""
    return part


__all__ = ["attention_block", "output_projection", "prepare", "unavailable", "unsupported"]
