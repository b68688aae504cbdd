"""What kernels ask of a row of the batch: how many cache slots are valid, and how they are split.

`prior` is S_ctx - S_tkg. With a mask (`pos_ids` is None) a row has `prior` slots. A row whose
`pos_ids[b, 0]` is -1, 2^32-1 or out of range has -1: it is padded.
"""

import triton
import triton.language as tl

MOST_SPLITS: tl.constexpr = tl.constexpr(32)
SPLIT_UNIT: tl.constexpr = tl.constexpr(128)
WINDOW_UNIT: tl.constexpr = tl.constexpr(64)
"""A row's slots are cut into at most MOST_SPLITS, of a multiple of SPLIT_UNIT slots. The first slot
of a window is taken down to a multiple of WINDOW_UNIT, which tiles of positions divide."""


@triton.jit
def row_start(pos_ids, pos_stride, row, prior):
    """Valid cache slots of a row, -1 for a padded row."""
    if pos_ids is None:
        return tl.cast(prior, tl.int64)
    else:
        start = tl.load(pos_ids + row.to(tl.int64) * pos_stride).to(tl.int64)
        return tl.where((start >= 0) & (start <= prior), start, -1)


@triton.jit
def row_splits(start, window):
    """First slot to look at, number of splits, slots a split: from the row's own length only.

    Up to MOST_SPLITS * SPLIT_UNIT slots, splits begin at the same slots whatever the length. A row
    without slots has one split.
    """
    first = start * 0
    if window is not None:
        first = tl.maximum(start - window + 1, 0) // WINDOW_UNIT * WINDOW_UNIT
    units = (tl.maximum(start - first, 1) + SPLIT_UNIT - 1) // SPLIT_UNIT
    each = (units + MOST_SPLITS - 1) // MOST_SPLITS
    return first, (units + each - 1) // each, each * SPLIT_UNIT


@triton.jit
def report(errors, word: tl.constexpr, row, value):
    """Keep the largest (row, value) of a broken rule; decoded in errors.py.

    64 bits: row + 1 in the upper 30, value + 2^32 in the lower 34, clipped to fit.
    """
    value = tl.minimum(tl.maximum(value, -4294967296), 8589934591)
    tl.atomic_max(errors + word, ((row.to(tl.int64) + 1) << 34) + (value + 4294967296))
