"""What an instruction's semantics read and write: NumPy values, with the state of each element
kept.

`value` and `float32` read, `write` and `write_bits` store. Reading an element that nobody wrote, or
that another tensor has taken, is a hazard: raised or reported as the run's options say.
"""

from __future__ import annotations

import numpy as np

from . import dtypes, running, views
from .enums import PSUM
from .memory import BY_MATMUL, WRITTEN
from .tensor import NkiTensor

# Destinations for which NumPy's own cast from float32 is the hardware's.
_PLAIN = frozenset(
    ("float32", "float16", "bfloat16", "float8_e4m3", "float8_e4m3fn", "float8_e5m2")
)


def value(op: str, argument: str, tensor: NkiTensor) -> np.ndarray:
    """The elements in their own dtype (a view: do not write to it)."""
    storage = tensor.storage
    if storage.shadow is not None:
        state = tensor.state
        if not state.all():
            unwritten(op, argument, tensor, state)
        elif covers(tensor):
            settle(tensor, state)
    return tensor.array


def float32(op: str, argument: str, tensor: NkiTensor) -> np.ndarray:
    """The elements as float32 (32-bit integers are rounded, as engines do)."""
    return dtypes.to_float32(value(op, argument, tensor))


def write(tensor: NkiTensor, values: np.ndarray | float, state: int = WRITTEN) -> None:
    """Store float32 `values` (or a number), cast to the tensor's dtype; shapes may differ."""
    array = tensor.array
    if isinstance(values, np.ndarray):
        if values.shape != array.shape:
            values = values.reshape(array.shape)
        if tensor.dtype not in _PLAIN:
            values = dtypes.cast(values, tensor.dtype)
    elif tensor.dtype not in _PLAIN:
        values = dtypes.cast(np.float32(values).reshape(1), tensor.dtype)[0]
    array[...] = values
    mark(tensor, state)


def write_bits(tensor: NkiTensor, values: np.ndarray) -> None:
    """Store values of the tensor's own dtype, bit for bit."""
    array = tensor.array
    array[...] = values if values.shape == array.shape else values.reshape(array.shape)
    mark(tensor, WRITTEN)


def covers(tensor: NkiTensor) -> bool:
    """Whether the view is the whole of its storage."""
    size = tensor.itemsize
    for extent in tensor.shape:
        size *= extent
    return size == tensor.storage.allocation.nbytes and views.is_dense(tensor.shape, tensor.strides)


def settle(tensor: NkiTensor, state: np.ndarray) -> None:
    """Every element is written: drop the shadow where one state says it all."""
    storage = tensor.storage
    if tensor.buffer is not PSUM:
        storage.shadow = None
    elif state.min() == state.max():
        storage.by_matmul = bool(state.flat[0] == BY_MATMUL)
        storage.shadow = None


def mark(tensor: NkiTensor, state: int = WRITTEN) -> None:
    """The elements are written now; overlapped tensors lose theirs."""
    storage = tensor.storage
    storage.written = True
    if storage.shadow is not None:
        if covers(tensor):
            storage.shadow = None
            storage.by_matmul = state == BY_MATMUL
        else:
            tensor.state[...] = state
    elif tensor.buffer is PSUM and storage.by_matmul != (state == BY_MATMUL):
        if covers(tensor):
            storage.by_matmul = state == BY_MATMUL
        else:
            storage.state_of_all()
            tensor.state[...] = state
    if storage.neighbours:
        access = tensor.access
        storage.take(access.box[:2], access.span)


def hazard(kind: str, text: str) -> None:
    """Raise, or note for the report, as the run's options say."""
    running.current().program.find(kind, running.site(), text)


def unwritten(op: str, argument: str, tensor: NkiTensor, state: np.ndarray) -> None:
    """Some elements that an instruction reads were never written, or were lost to another
    tensor."""
    storage = tensor.storage
    missing = np.argwhere(state == 0)
    first = tuple(int(i) for i in missing[0][: tensor.ndim])
    count = f"{len(missing)} of {state.size} elements, the first at {list(first)}"
    where = f"{running.site()}: {op}: {argument}: {tensor!r}"
    made = f"allocated at {storage.allocation.site}"
    if storage.taken_by is None:
        hazard(
            "uninitialised read",
            f"{where}: {count}, were never written ({made}); write them first, or read less",
        )
    else:
        hazard(
            "use after free",
            f"{where}: {count}, were overwritten through {storage.taken_by} allocated at"
            f" {storage.taken_by.site}, or never written ({made}); keep their addresses apart",
        )
