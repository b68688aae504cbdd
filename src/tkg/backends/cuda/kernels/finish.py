"""The output projection's end: partial sums to the output.

    out[r, n] = (sum_j partial[j, r, n]) * scale[n] + bias[n];   0 for padded rows

in X's dtype. Program (row, column tile). `transposed`: out is [128, lnc, H / lnc / 128, R] with
n = h0 * (H / lnc) + h1 * (H / lnc / 128) + h2 for index [h1, h0, h2, r].
"""

import triton
import triton.language as tl

from tkg.backends.cuda.kernels.columns import add_splits, dequantized
from tkg.backends.cuda.kernels.numbers import rounded
from tkg.backends.cuda.kernels.rows import row_start


@triton.jit(do_not_specialize=["rows", "tokens", "prior"])
def finish(
    partial,
    scale,
    input_scale,
    bias,
    out,
    pos_ids,
    pos_stride,
    rows,
    tokens,
    prior,
    N,
    SPLITS: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    SCALE_KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    LNC: tl.constexpr,
):
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = column < N
    y = add_splits(partial, rows, row, N, column, ok, SPLITS, PADDED_SPLITS)
    y = dequantized(y, scale, input_scale, 0, column, ok, SCALE_KIND)
    if bias is not None:
        y += tl.load(bias + column, mask=ok, other=0.0).to(tl.float32)
    if pos_ids is not None:
        y = tl.where(row_start(pos_ids, pos_stride, row // tokens, prior) < 0, 0.0, y)
    at = row.to(tl.int64) * N + column
    if TRANSPOSED:
        part, inner = N // LNC, N // LNC // 128
        h0, h1, h2 = column // part, column % part // inner, column % inner
        at = ((h1 * LNC + h0).to(tl.int64) * inner + h2) * rows + row
    tl.store(out + at, rounded(y, out.dtype.element_ty), mask=ok)
