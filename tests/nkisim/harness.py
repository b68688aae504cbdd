"""Running instructions in a test.

    def body():
        a = tile(values)                       # an SBUF tile that holds `values`
        d = empty((128, 64), "float32")
        nisa.tensor_tensor(d, a, a, nl.add)
        return values_of(d)                    # a NumPy copy of its elements

    result = execute(body)                     # on one simulated trn2 core, all checks on

`execute(kernel, x, y)` passes arrays as HBM tensors, as a launch does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nkisim import dtypes, operands, running
from nkisim.enums import SBUF, MemoryRegion
from nkisim.kernel import Run, run
from nkisim.program import Options
from nkisim.record import Record
from nkisim.tensor import NkiTensor


def execute(body: Callable[..., Any], *arrays: Any, lnc: int = 1, **options: Any) -> Any:
    """What the body returns, run as a kernel."""
    return observe(body, *arrays, lnc=lnc, **options).result


def observe(body: Callable[..., Any], *arrays: Any, lnc: int = 1, **options: Any) -> Run:
    """The run: result and report."""
    return run(body, *arrays, lnc=lnc, options_=Options(**options))


def empty(
    shape: tuple[int, ...],
    dtype: str = "float32",
    buffer: MemoryRegion = SBUF,
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """An uninitialised tensor."""
    return running.current().allocate(shape, dtype, buffer, "", address)


def tile(
    values: np.ndarray,
    dtype: str | None = None,
    buffer: MemoryRegion = SBUF,
    address: tuple[int, int] | None = None,
) -> NkiTensor:
    """A tensor that holds the values, in their own dtype or cast to `dtype`."""
    name = dtypes.canonical(values.dtype) if dtype is None else dtype
    tensor = empty(values.shape, name, buffer, address)
    if dtype is None:
        operands.write_bits(tensor, values)
    else:
        operands.write(tensor, values.astype(np.float32))
    return tensor


def fill(tensor: NkiTensor, values: np.ndarray) -> NkiTensor:
    """Put values of its own dtype into a view."""
    operands.write_bits(tensor, values)
    return tensor


def values_of(tensor: NkiTensor) -> np.ndarray:
    """A copy of the elements, in their NumPy dtype."""
    return np.array(tensor.array)


LAYOUTS = ("dense", "columns", "stepped", "partitions", "permuted")


def place(
    shape: tuple[int, ...],
    dtype: str = "float32",
    layout: str = "dense",
    buffer: MemoryRegion = SBUF,
) -> NkiTensor:
    """An uninitialised view: of its own tensor, of part of a wider one, of every third element, of
    the upper partitions (64 at most), or with the free dimensions stored the other way round."""
    count, *free = shape
    if layout == "columns":
        return empty((count, *free[:-1], free[-1] + 5), dtype, buffer)[..., 2 : 2 + free[-1]]
    if layout == "stepped":
        return empty((count, *free[:-1], 3 * free[-1]), dtype, buffer)[..., 1::3]
    if layout == "partitions" and count <= 64:
        start = 32 if count <= 32 else 64
        return empty((start + count, *free), dtype, buffer)[start : start + count]
    if layout == "permuted":
        order = (0, *range(len(free), 0, -1))
        return empty((count, *reversed(free)), dtype, buffer).permute(order)
    return empty(shape, dtype, buffer)


def records(run_: Run, core: int = 0) -> list[Record]:
    """What one core executed, in order."""
    found = run_.report.program.cores[core].records
    assert found is not None
    return found
