"""The end of a projection: its splits added, scaled, and the bias.

    y[r, n] = (sum_j partial[j, r, n]) * root[r] * scale[n] + bias[n]

Scales by KIND: 0 none; 1 STATIC, one weight scale; 3 STATIC, one for each of Q, K, V; 2 ROW, one a
column. STATIC multiplies by input_scale too. The splits are one tile's first axis, so the order of
the sum follows from their number.
"""

import triton
import triton.language as tl


@triton.jit
def add_splits(partial, rows, row, N, column, ok, SPLITS: tl.constexpr, PADDED: tl.constexpr):
    """`sum_j partial[j, row, column]` for a vector of columns; PADDED: SPLITS, a power of two."""
    split = tl.arange(0, PADDED)
    at = (split.to(tl.int64) * rows + row)[:, None] * N + column[None, :]
    return tl.sum(tl.load(partial + at, mask=(split < SPLITS)[:, None] & ok[None, :], other=0.0), 0)


@triton.jit
def inverse_root(squares, rows, row, K, eps, SPLITS: tl.constexpr, PADDED: tl.constexpr):
    """`1 / sqrt(mean(x[row]^2) + eps)` from the sums of squares of each split."""
    split = tl.arange(0, PADDED)
    part = tl.load(squares + split.to(tl.int64) * rows + row, mask=split < SPLITS, other=0.0)
    return tl.div_rn(1.0, tl.sqrt_rn(tl.sum(part, 0) / K + eps))


@triton.jit
def dequantized(y, scale, input_scale, section, column, ok, KIND: tl.constexpr):
    """`y` times the scales of its columns, which lie in `section` (0, 1, 2: Q, K, V)."""
    if KIND == 2:
        return y * tl.load(scale + column, mask=ok, other=0.0).to(tl.float32)
    elif KIND == 1:
        return y * (tl.load(scale).to(tl.float32) * tl.load(input_scale).to(tl.float32))
    elif KIND == 3:
        return y * (tl.load(scale + section).to(tl.float32) * tl.load(input_scale).to(tl.float32))
    else:
        return y
