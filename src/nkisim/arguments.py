"""Kernel arguments and results: NumPy arrays and torch tensors in, the same kind out."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from . import dtypes, running
from .core import storage_of_input
from .enums import PRIVATE_HBM, SHARED_HBM, MemoryRegion
from .errors import NkiValidationError
from .memory import Storage
from .operands import hazard
from .tensor import NkiTensor, Shape, dense

# torch dtypes that NumPy cannot name, by their bits.
_TORCH_BITS = {
    "bfloat16": ("int16", ml_dtypes.bfloat16),
    "float8_e4m3fn": ("uint8", ml_dtypes.float8_e4m3fn),
    "float8_e5m2": ("uint8", ml_dtypes.float8_e5m2),
}


def is_torch(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def as_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor's memory as NumPy (shared where torch can share it)."""
    tensor = tensor.detach()
    bits = _TORCH_BITS.get(str(tensor.dtype).removeprefix("torch."))
    if bits is None:
        return tensor.numpy()
    import torch

    return tensor.view(getattr(torch, bits[0])).numpy().view(bits[1])


def as_torch(array: np.ndarray) -> Any:
    """A NumPy array as torch; float8_e4m3, which torch lacks, becomes float8_e4m3fn by value."""
    import torch

    if array.dtype == ml_dtypes.float8_e4m3:
        array = array.astype(ml_dtypes.float8_e4m3fn)
    for name, (bits, dtype) in _TORCH_BITS.items():
        if array.dtype == dtype:
            integers = np.ascontiguousarray(array).view(bits)
            return torch.from_numpy(integers).view(getattr(torch, name))
    return torch.from_numpy(np.ascontiguousarray(array))


class Bound:
    """The arguments of one launch (of one rank), bound to HBM storages."""

    def __init__(self, shared: bool):
        self.buffer: MemoryRegion = SHARED_HBM if shared else PRIVATE_HBM
        self.inputs: list[tuple[Any, np.ndarray, Storage]] = []
        self.torch = False

    def bind(self, value: Any, name: str) -> Any:
        """Arrays become HBM tensors, also within tuples, lists and dicts; the rest stays."""
        if isinstance(value, np.ndarray):
            return self._tensor(value, value, name)
        if is_torch(value):
            self.torch = True
            return self._tensor(value, as_numpy(value), name)
        if isinstance(value, (tuple, list)):
            items = [self.bind(item, f"{name}[{i}]") for i, item in enumerate(value)]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            return {key: self.bind(item, f"{name}[{key!r}]") for key, item in value.items()}
        return value

    def _tensor(self, owner: Any, array: np.ndarray, name: str) -> NkiTensor:
        for other, _, storage in self.inputs:
            if other is owner:
                return dense(storage)
        core = running.current()
        shape = array.shape or (1,)
        dtype = dtypes.canonical(array.dtype)
        values = array
        if dtype == "float8_e4m3fn" and core.chip.generation < 4:
            # Before NeuronCore-v4 such arguments arrive as float8_e4m3 (NKI 0.2.0 release notes).
            dtype = "float8_e4m3"
            values = dtypes.cast(dtypes.to_float32(array), dtype)
        allocation = core.describe(shape, dtype, self.buffer, name)
        allocation.kind = "input"
        storage = storage_of_input(allocation, values)
        self.inputs.append((owner, array, storage))
        tensor = dense(storage)
        tensor.shape = Shape(tensor.shape)
        return tensor

    def write_back(self) -> None:
        """Inputs that the kernel wrote are updated in place, once the kernel has succeeded."""
        written = [(array, storage) for _, array, storage in self.inputs if storage.written]
        for array, storage in written:
            if not array.flags.writeable:
                raise NkiValidationError(
                    f"kernel argument {storage.allocation.name}: the kernel writes to it, but the"
                    " array is read-only; pass a writable array"
                )
        for array, storage in written:
            array[...] = dense(storage).array.reshape(array.shape)

    def result(self, value: Any) -> Any:
        """HBM tensors become arrays of the callers' kind; a returned input is the caller's own."""
        if isinstance(value, NkiTensor):
            return self._output(value)
        if isinstance(value, (tuple, list)):
            return type(value)(self.result(item) for item in value)
        if isinstance(value, dict):
            return {key: self.result(item) for key, item in value.items()}
        return value

    def _output(self, tensor: NkiTensor) -> Any:
        if tensor.on_chip:
            raise tensor.refusal("return", "a kernel's results are in HBM", "nl.shared_hbm")
        storage = tensor.storage
        for owner, _, given in self.inputs:
            if given is storage and tensor.shape == storage.allocation.shape:
                return owner
        storage.allocation.kind = "output"
        if tensor.buffer is PRIVATE_HBM:
            running.current().program.note(
                f"{tensor!r} is returned from private HBM; NKI 0.3 wants nl.shared_hbm for results"
            )
        if storage.shadow is not None and not tensor.state.all():
            missing = int((tensor.state == 0).sum())
            hazard(
                "unwritten output",
                f"{storage.allocation.site}: return: {tensor!r}: {missing} of {tensor.size}"
                " elements were never written; write all of it",
            )
        array = np.array(tensor.array)
        if tensor.dtype == "bool":
            array = array.view(np.bool_)
        return as_torch(array) if self.torch else array
