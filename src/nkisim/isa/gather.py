"""GpSimd: gathers within SBUF, by indices known at run time."""

from __future__ import annotations

import numpy as np

from .. import rules, running
from ..enums import engine as Engine
from ..operands import hazard, value, write_bits
from ..record import NkiInstruction
from ..tensor import NkiTensor

_GROUP = 16  # partitions of one GpSimd core (ISA, local_gather)
_MOST = 4096  # indices a core


def nc_n_gather(
    dst: NkiTensor, data: NkiTensor, indices: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """dst[p, i] = data[p, indices[p, i]], the free dimensions of each operand taken as one. Bits
    are kept; indices are uint32."""
    word = "nc_n_gather"
    core = running.current()
    if core.checks:
        rules.tiles(word, dst=dst, data=data, indices=indices)
        rules.in_sbuf(word, dst=dst, data=data, indices=indices)
        rules.same_partitions(word, dst=dst, data=data)
        rules.same_elements(word, dst=dst, indices=indices)
        rules.same_dtype(word, dst=dst, data=data)
        rules.dtype_in(word, ("uint32",), indices=indices)
    table = value(word, "data", data).reshape(data.shape[0], -1)
    places = value(word, "indices", indices).reshape(data.shape[0], -1).astype(np.int64)
    places = _in_range(word, "indices", places, table.shape[1])
    write_bits(dst, np.take_along_axis(table, places, axis=1))
    return core.issue(word, Engine.gpsimd, (data, indices), (dst,), name)


def local_gather(
    dst: NkiTensor,
    src_buffer: NkiTensor,
    index: NkiTensor,
    num_elem_per_idx: int = 1,
    num_valid_indices: int | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """Each GpSimd core gathers for its 16 partitions with one list of indices: those of its
    partitions in `index`, partition by partition first (index[0, 0], index[1, 0], ...).

    Index i is where `num_elem_per_idx` elements start in the flattened free dimensions of
    `src_buffer`; they become elements i * num_elem_per_idx and on of dst. Bits are kept. Record:
    `indices` a core, `each` elements an index.
    """
    word = "local_gather"
    core = running.current()
    partitions, columns = rules.elements(index)
    count = columns * _GROUP if num_valid_indices is None else num_valid_indices
    each = num_elem_per_idx
    if core.checks:
        _local_legal(dst, src_buffer, index, each, count)
    table = value(word, "src_buffer", src_buffer).reshape(partitions, -1)
    lists = value(word, "index", index).reshape(-1, _GROUP, columns)
    # One row a core, in the order that the core reads.
    starts = lists.transpose(0, 2, 1).reshape(len(lists), -1)[:, :count].astype(np.int64)
    places = (starts[:, :, None] + np.arange(each)).reshape(len(lists), -1)
    places = _in_range(word, "index", places, table.shape[1])
    write_bits(dst, np.take_along_axis(table, np.repeat(places, _GROUP, axis=0), axis=1))
    return core.issue(
        word, Engine.gpsimd, (src_buffer, index), (dst,), name, indices=count, each=each
    )  # fmt: skip


def _local_legal(
    dst: NkiTensor, source: NkiTensor, index: NkiTensor, each: int, count: int
) -> None:
    word = "local_gather"
    rules.tiles(word, dst=dst, src_buffer=source, index=index)
    rules.in_sbuf(word, dst=dst, src_buffer=source, index=index)
    rules.same_partitions(word, src_buffer=source, index=index, dst=dst)
    rules.same_dtype(word, src_buffer=source, dst=dst)
    rules.dtype_in(word, ("uint16",), index=index)
    partitions, columns = rules.elements(index)
    if partitions % _GROUP:
        rules.refuse(word, "index", f"{partitions} partitions", f"a multiple of {_GROUP}")
    if each not in (1, 2, 4, 8, 16, 32):
        rules.refuse(word, "num_elem_per_idx", f"got {each}", "1, 2, 4, 8, 16 or 32")
    most = min(columns * _GROUP, _MOST)
    if not 1 <= count <= most:
        rules.refuse(word, "num_valid_indices", f"{count} indices a core", f"1 to {most}")
    found = rules.elements(dst)[1]
    if found != count * each:
        # Hardware ignores both numbers otherwise (NKI 0.6.0 release notes, known issues).
        rules.refuse(
            word, "dst", f"{found} elements a partition for {count} indices of {each}",
            f"num_valid_indices * num_elem_per_idx = {count * each}",
        )  # fmt: skip


def _in_range(word: str, argument: str, places: np.ndarray, size: int) -> np.ndarray:
    """The places, kept inside the partition: what an index outside reads is not defined."""
    if places.max() < size:
        return places
    hazard(
        "index out of bounds",
        f"{running.site()}: {word}: {argument}: reaches element {places.max()} of the {size} in a"
        " partition; use indices inside",
    )
    return np.minimum(places, size - 1)
