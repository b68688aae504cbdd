"""The words in which instructions state their legality. Each raises NkiValidationError naming the
kernel's line, the instruction, the argument, the rule, the value received and the fix.

Instructions call them only while `running.core.checks` is set.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NoReturn

from . import running
from .enums import PSUM, SBUF
from .enums import engine as Engine
from .errors import NkiNotImplementedError, NkiValidationError
from .tensor import NkiTensor

MAX_DIMS = 5  # of a view (nki-language-guide.rst)
MAX_COUNT = 65535  # elements of one dimension of an access pattern: uint16 (A2)
MAX_STEP = 32767  # of an access pattern, in elements: int16 (A2)


def refuse(op: str, argument: str, rule: str, fix: str) -> NoReturn:
    """`rule` includes the value received; `fix` completes "use ..."."""
    raise NkiValidationError(f"{running.site()}: {op}: {argument}: {rule}; use {fix}")


def tensors(op: str, **operands: Any) -> None:
    """Each operand is a tensor."""
    for argument, tensor in operands.items():
        if not isinstance(tensor, NkiTensor):
            refuse(op, argument, f"must be a tensor, got {tensor!r}", "an NkiTensor")


def tiles(op: str, **operands: Any) -> None:
    """Each operand is a tile that an engine can address: on chip, a legal start partition, a legal
    access pattern, no run-time index."""
    for argument, tensor in operands.items():
        if tensor.__class__ is not NkiTensor:
            tensors(op, **{argument: tensor})
        if not tensor._legal:
            _tile(op, argument, tensor)
            tensor._legal = True


def _tile(op: str, argument: str, tensor: NkiTensor) -> None:
    allocation = tensor.storage.allocation
    shape = tensor.shape
    if not allocation.on_chip:
        refuse(
            op, argument, f"{tensor!r} is in HBM; engines reach SBUF and PSUM", "dma_copy to SBUF"
        )
    if tensor.dynamic is not None:
        refuse(op, argument, f"{tensor!r} has a run-time index", "tensor_copy or dma_copy")
    if len(shape) > MAX_DIMS:
        refuse(op, argument, f"{tensor.ndim} dimensions; at most {MAX_DIMS}", "flatten_dims")
    start = tensor.access.box[0]
    if allocation.address is not None:
        start += allocation.address[0]
    if start and start not in start_partitions(shape[0]):
        legal = start_partitions(shape[0])
        refuse(
            op, argument, f"{tensor!r} starts at partition {start}; {shape[0]} partitions"
            f" start at {' or '.join(map(str, legal))}", "a legal start partition",
        )  # fmt: skip
    if allocation.row_bytes > MAX_STEP:
        _pattern(op, argument, tensor)


def _pattern(op: str, argument: str, tensor: NkiTensor) -> None:
    """Counts and steps fit the fields of an access pattern."""
    for size, step in zip(tensor.shape[1:], tensor.strides[1:], strict=True):
        if size > MAX_COUNT or (size > 1 and abs(step) > MAX_STEP):
            refuse(
                op, argument, f"{size} elements with step {step} in one dimension; at most"
                f" {MAX_COUNT} with a step of at most {MAX_STEP}", "reshape_dim to split it",
            )  # fmt: skip


def start_partitions(count: int) -> tuple[int, ...]:
    """Where an engine's access of `count` partitions may start (A2, "data access")."""
    if count > 64:
        return (0,)
    return (0, 64) if count > 32 else (0, 32, 64, 96)


def same_partitions(op: str, **operands: NkiTensor) -> None:
    first, *others = operands.items()
    for argument, tensor in others:
        if tensor.shape[0] != first[1].shape[0]:
            refuse(
                op, argument, f"{tensor.shape[0]} partitions, but {first[0]} has"
                f" {first[1].shape[0]}", "tiles with the same partitions",
            )  # fmt: skip


def same_elements(op: str, **operands: NkiTensor) -> None:
    """Same partitions, same number of elements in each (the shapes may differ)."""
    first, *others = operands.items()
    wanted = elements(first[1])
    for argument, tensor in others:
        if tensor.shape != first[1].shape and elements(tensor) != wanted:
            refuse(
                op, argument, f"shape {list(tensor.shape)} against {list(first[1].shape)} of"
                f" {first[0]}", "the same partitions and elements per partition",
            )  # fmt: skip


def elements(tensor: NkiTensor) -> tuple[int, int]:
    """(partitions, elements per partition)."""
    count = 1
    for size in tensor.shape[1:]:
        count *= size
    return tensor.shape[0], count


def in_sbuf(op: str, **operands: NkiTensor) -> None:
    for argument, tensor in operands.items():
        if tensor.buffer is not SBUF:
            refuse(op, argument, f"{tensor!r} is not in SBUF", "tensor_copy to an SBUF tile")


def in_psum(op: str, **operands: NkiTensor) -> None:
    for argument, tensor in operands.items():
        if tensor.buffer is not PSUM:
            refuse(op, argument, f"{tensor!r} is not in PSUM", "a tile with buffer=nl.psum")


def not_both_psum(op: str, **operands: NkiTensor) -> None:
    if all(tensor.buffer is PSUM for tensor in operands.values()):
        refuse(op, " and ".join(operands), "are all in PSUM; one at most", "a copy in SBUF of one")


def dtype_in(op: str, allowed: Collection[str], **operands: NkiTensor) -> None:
    for argument, tensor in operands.items():
        if tensor.dtype not in allowed:
            refuse(op, argument, f"dtype {tensor.dtype}", " or ".join(sorted(allowed)))


def same_dtype(op: str, **operands: NkiTensor) -> None:
    first, *others = operands.items()
    for argument, tensor in others:
        if tensor.dtype != first[1].dtype:
            refuse(
                op,
                argument,
                f"dtype {tensor.dtype}, but {first[0]} is {first[1].dtype}",
                "one dtype",
            )


def per_partition(op: str, like: NkiTensor, **operands: NkiTensor) -> None:
    """Each operand is a column: one element for each partition of `like`."""
    for argument, tensor in operands.items():
        if elements(tensor) != (like.shape[0], 1):
            refuse(op, argument, f"shape {list(tensor.shape)}", f"({like.shape[0]}, 1)")


def choose(op: str, wanted: Engine, allowed: tuple[Engine, ...]) -> Engine:
    """The engine that runs the instruction: the kernel's wish if the instruction can run there;
    the first of `allowed` if the kernel leaves it open."""
    if wanted is Engine.unknown:
        return allowed[0]
    if wanted not in allowed:
        names = " or ".join(f"nki.isa.engine.{engine.name}" for engine in allowed)
        refuse(op, "engine", f"{wanted} cannot run it", names)
    return wanted


def reach(op: str, engine: Engine, **operands: NkiTensor) -> None:
    """GpSimd has no way to PSUM (A3); other compute engines reach SBUF and PSUM."""
    if engine is Engine.gpsimd:
        in_sbuf(op, **operands)


def only_gen4(op: str) -> NoReturn:
    raise NkiNotImplementedError(
        f"{running.site()}: {op} needs a NeuronCore-v4 (trn3); {running.current().chip.name} is"
        f" generation {running.current().chip.generation}"
    )
