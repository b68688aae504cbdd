"""Sizes of tiles and numbers of programs.

What a row's sums depend on follows from sizes of the layer and from the row, never from the batch:
the splits of a projection from its weight's shape, tiles of positions from d_head and the dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

PROGRAMS = 528
"""Programs that a projection is cut into: 4 for each of the 132 multiprocessors of an H100."""

INTERPRETED_PROGRAMS = 8
"""The same under the interpreter, which runs one at a time."""

MOST_SPLITS = 32
SPLIT_UNIT = 128
WINDOW_UNIT = 64
"""Of a row's cache slots (the same numbers as in kernels/rows.py)."""

BLOCK_COLUMNS = 128
"""Columns of a weight in a projection's tile: 256 bytes of a row at 16 bits."""

FINISH_COLUMNS = 256


@dataclass(frozen=True)
class ProjectionPlan:
    """How `x [rows, K] @ W [K, N]` is cut.

    Attributes:
        splits, k_split: splits of K and features in each.
        block_k: features in a tile.
        block_rows: rows in a tile; does not change the order of any sum.
    """

    splits: int
    k_split: int
    block_k: int
    block_rows: int


@dataclass(frozen=True)
class AttentionPlan:
    """Tiles of the attention kernel: rows (query heads x tokens) and positions."""

    block_m: int
    block_p: int
    warps: int


def up(n: int, multiple: int) -> int:
    """The number of `multiple`s that cover n."""
    return -(-n // multiple)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def projection(rows: int, shape: tuple[int, int], narrow: bool, programs: int) -> ProjectionPlan:
    """The plan of a projection with a weight of `shape` [K, N]; `narrow`: 16-bit products."""
    k, n = shape
    block_k = 64 if narrow else 32
    tiles = up(k, block_k)
    splits = min(max(programs // up(n, BLOCK_COLUMNS), 1), tiles, MOST_SPLITS)
    k_split = up(tiles, splits) * block_k
    block_rows = min(max(power_of_two(rows), 16), 64)
    return ProjectionPlan(up(k, k_split), k_split, block_k, block_rows)


def attention(rows: int, d_head: int, narrow: bool) -> AttentionPlan:
    """The plan of attention for `rows` = group * S_tkg; `narrow`: 16-bit products."""
    d = max(power_of_two(d_head), 16)
    most_rows = 64 if d <= 128 else 32 if d <= 256 else 16
    block_p = 64 if d <= 128 else 32
    block_m = min(max(power_of_two(rows), 16), most_rows)
    return AttentionPlan(block_m, block_p if narrow else block_p // 2, 4)


def most_splits(longest: int) -> int:
    """Splits of the longest row there may be."""
    return min(max(up(longest, SPLIT_UNIT), 1), MOST_SPLITS)
