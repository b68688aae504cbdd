"""Exactly which bytes an access touches, as runs of contiguous bytes."""

from __future__ import annotations

import numpy as np

from .tensor import Access


def boxes_meet(a: Access, b: Access) -> bool:
    """Whether the boxes of two accesses of one allocation share a byte."""
    p, q = a.box, b.box
    return (
        p[0] < q[1] and q[0] < p[1] and p[2] < q[3] and q[2] < p[3] and p[4] < q[5] and q[4] < p[5]
    )


def runs(access: Access) -> tuple[np.ndarray, int]:
    """(first bytes, sorted; length): the contiguous runs of an access, all of one length.

    Bytes count from the allocation's start as if it were dense (on chip, partition after
    partition).
    """
    shape, strides = list(access.shape), list(access.strides)
    length = 1
    while shape and (shape[-1] == 1 or strides[-1] in (length, 0)):
        size, step = shape.pop(), strides.pop()
        if size > 1 and step:
            length *= size
    starts = np.array([access.offset], np.int64)
    for size, step in zip(shape, strides, strict=True):
        if size > 1 and step:
            starts = (starts[:, None] + np.arange(size, dtype=np.int64) * step).reshape(-1)
    starts.sort()
    return starts * access.itemsize, length * access.itemsize


def touch(a: Access, b: Access) -> bool:
    """Whether two accesses of one allocation share a byte."""
    if not boxes_meet(a, b):
        return False
    (first, size), (second, width) = runs(a), runs(b)
    # For each run of `a`: the last run of `b` that starts before its end must reach into it.
    at = np.searchsorted(second, first + size) - 1
    return bool(((at >= 0) & (second[np.maximum(at, 0)] + width > first)).any())
