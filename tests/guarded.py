"""Arrays beside memory that must not be touched: `python -m tests.guarded end|start [isa]`.

Every array of a call ends (or starts) at a page that cannot be read. A kernel that reads one
element too far, or follows a block-table entry that it should not look at, ends the process.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import sys
from typing import Any

import numpy as np

import tkg
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.cases import CASES, PROJECTION_CASES

PAGE = mmap.PAGESIZE
GUARD = 64 * PAGE
PROT_NONE = 0

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(array: np.ndarray, at_end: bool, keep: list[Any]) -> np.ndarray:
    """A copy of `array` between two unreadable regions, flush with the second or the first."""
    room = -(-max(array.nbytes, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, room + 2 * GUARD)
    keep.append(memory)
    view = np.frombuffer(memory, np.uint8)
    first = GUARD + (room - array.nbytes if at_end else 0)
    copy = view[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    base = view.ctypes.data
    for address in (base, base + GUARD + room):
        if libc.mprotect(address, GUARD, PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")
    return copy


def run(case: Case | ProjectionCase, at_end: bool) -> None:
    keep: list[Any] = []
    call: dict[str, Any] = {
        name: guarded(value, at_end, keep) if isinstance(value, np.ndarray) else value
        for name, value in case.inputs().items()
    }
    if isinstance(case, ProjectionCase):
        tkg.output_projection_tkg(**call, backend="cpu")
    else:
        tkg.attention_block_tkg(**call, backend="cpu")
    # `keep` is not closed: NumPy's views of it are still alive.


def main(place: str, prove: str = "") -> None:
    faulthandler.enable()
    if prove:
        keep: list[Any] = []
        array = guarded(np.zeros(5, np.float32), place == "end", keep)
        outside = 5 * 4 if place == "end" else -4
        ctypes.string_at(array.ctypes.data + outside, 4)
    for case in (*CASES, *PROJECTION_CASES):
        if "ci" in case.tags:
            print(case, flush=True)
            run(case, place == "end")


if __name__ == "__main__":
    main(*sys.argv[1:])
