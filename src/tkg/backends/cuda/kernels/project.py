"""Partial sums of a projection: `partial[j, r, n] = sum_k x[r, k] gamma[k] W[k, n]`, k in split j.

    x        [R, K], any strides: rows are (row // row_inner, row % row_inner), features the same
    W        [K, N], rows contiguous; FP8 as bytes, or WORDS: as int32 words of four, [K, N/4]
    partial  [splits, R, N] float32
    squares  [splits, R] float32, sums of x[r, k]^2 over split j, for the RMSNorm that the next
             kernel applies; None without one

Program (row tile, column tile, split); row tiles come first, so that those that share a part of W
run together and find it in L2. The columns of W are on the rows of the matrix product and x on its
columns: then one shape of instruction serves any number of rows, and as splits and tiles of K
follow from W alone, the bits of a row do not depend on the others. Squares are summed by programs
of one more column tile, in tiles of 16 rows whatever BLOCK_R is.
"""

import triton
import triton.language as tl

from tkg.backends.cuda.kernels.fp8 import decode_fp8, decode_fp8_words
from tkg.backends.cuda.kernels.numbers import product, rounded

SQUARE_ROWS: tl.constexpr = tl.constexpr(16)


@triton.jit
def at_inner(index, inner, outer_stride, inner_stride):
    """Offsets of a two-part axis; `inner` None: it has one part."""
    if inner is None:
        return index.to(tl.int64) * inner_stride
    else:
        outer, rest = (index // inner).to(tl.int64), (index % inner).to(tl.int64)
        return outer * outer_stride + rest * inner_stride


@triton.jit
def sum_squares(x, row_at, k_low, k_high, out, row, row_ok, features, BLOCK_K: tl.constexpr):
    """Sums of squares of 16 rows over features k_low to k_high, into `out[row]`."""
    inner, outer_stride, inner_stride = features
    total = tl.zeros((SQUARE_ROWS, BLOCK_K), tl.float32)
    for k_tile in range(k_low, k_high, BLOCK_K):
        k = k_tile + tl.arange(0, BLOCK_K)
        at = row_at[:, None] + at_inner(k, inner, outer_stride, inner_stride)[None, :]
        value = tl.load(x + at, mask=row_ok[:, None] & (k < k_high)[None, :], other=0.0)
        total += value.to(tl.float32) * value.to(tl.float32)
    tl.store(out + row, tl.sum(total, 1), mask=row_ok)


@triton.jit(do_not_specialize=["rows"])
def project(
    x,
    weight,
    gamma,
    partial,
    squares,
    rows,
    K,
    N,
    row_inner,
    row_outer_stride,
    row_inner_stride,
    k_inner,
    k_outer_stride,
    k_inner_stride,
    weight_stride,
    K_SPLIT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr,
    FP8: tl.constexpr,
    WORDS: tl.constexpr,
    FN: tl.constexpr,
):
    split = tl.program_id(2)
    first_row, first_column = tl.program_id(0) * BLOCK_R, tl.program_id(1) * BLOCK_N
    k_low = split * K_SPLIT
    k_high = tl.minimum(k_low + K_SPLIT, K)
    if squares is not None:
        if first_column >= N:
            for tile in range(BLOCK_R // SQUARE_ROWS):
                row = first_row + tile * SQUARE_ROWS + tl.arange(0, SQUARE_ROWS)
                row_at = at_inner(row, row_inner, row_outer_stride, row_inner_stride)
                features = (k_inner, k_outer_stride, k_inner_stride)
                out = squares + split.to(tl.int64) * rows
                sum_squares(x, row_at, k_low, k_high, out, row, row < rows, features, BLOCK_K)
            return
    row = first_row + tl.arange(0, BLOCK_R)
    column = first_column + tl.arange(0, BLOCK_N)
    row_at = at_inner(row, row_inner, row_outer_stride, row_inner_stride)
    total = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for k_tile in range(k_low, k_high, BLOCK_K):
        k = k_tile + tl.arange(0, BLOCK_K)
        k_ok = k < k_high
        k_at = k.to(tl.int64)[:, None] * weight_stride
        if WORDS:
            word = first_column // 4 + tl.arange(0, BLOCK_N // 4)
            ok = k_ok[:, None] & (word < N // 4)[None, :]
            w = decode_fp8_words(tl.load(weight + k_at + word[None, :], mask=ok, other=0), FN)
        else:
            ok = k_ok[:, None] & (column < N)[None, :]
            w = tl.load(weight + k_at + column[None, :], mask=ok, other=0)
            if FP8:
                w = decode_fp8(w, FN)
        at = at_inner(k, k_inner, k_outer_stride, k_inner_stride)[:, None] + row_at[None, :]
        value = tl.load(x + at, mask=k_ok[:, None] & (row < rows)[None, :], other=0.0)
        if gamma is not None:
            factor = tl.load(gamma + k, mask=k_ok, other=0.0).to(tl.float32)
            value = value.to(tl.float32) * factor[:, None]
        total = product(tl.trans(w.to(COMPUTE)), rounded(value, COMPUTE), total)
    at = (split.to(tl.int64) * rows + row)[None, :] * N + column[:, None]
    tl.store(partial + at, total, mask=(row < rows)[None, :] & (column < N)[:, None])
