"""Rows as a projection wants them where the norm cannot be folded into it.

    y[r, k] = x[r, k] / sqrt(mean(x[r]^2) + eps) * gamma[k]     (as it is, without a norm)
    y = fp8(clip(y / input_scale, +-240))                       (STATIC)

x [R, K], any strides as in project.py; y [R, K] contiguous, in the dtype that the projection
computes in, which holds FP8 values exactly. Program: a row.
"""

import triton
import triton.language as tl

from tkg.backends.cuda.kernels.fp8 import round_fp8
from tkg.backends.cuda.kernels.numbers import rounded
from tkg.backends.cuda.kernels.project import at_inner


@triton.jit
def prepare(
    x,
    gamma,
    input_scale,
    y,
    K,
    eps,
    row_inner,
    row_outer_stride,
    row_inner_stride,
    k_inner,
    k_outer_stride,
    k_inner_stride,
    NORM: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0)
    x += at_inner(row, row_inner, row_outer_stride, row_inner_stride)
    root = 1.0
    if NORM:
        total = tl.zeros((BLOCK_K,), tl.float32)
        for k_tile in range(0, K, BLOCK_K):
            k = k_tile + tl.arange(0, BLOCK_K)
            at = at_inner(k, k_inner, k_outer_stride, k_inner_stride)
            value = tl.load(x + at, mask=k < K, other=0.0).to(tl.float32)
            total += value * value
        root = tl.sqrt_rn(tl.sum(total, 0) / K + eps)
    for k_tile in range(0, K, BLOCK_K):
        k = k_tile + tl.arange(0, BLOCK_K)
        at = at_inner(k, k_inner, k_outer_stride, k_inner_stride)
        value = tl.load(x + at, mask=k < K, other=0.0).to(tl.float32)
        if NORM:
            value = tl.div_rn(value, tl.zeros_like(value) + root)
        if gamma is not None:
            value *= tl.load(gamma + k, mask=k < K, other=0.0).to(tl.float32)
        if input_scale is not None:
            step = tl.zeros_like(value) + tl.load(input_scale).to(tl.float32)
            value = round_fp8(tl.div_rn(value, step))
        at = row.to(tl.int64) * K + k
        tl.store(y + at, rounded(value, y.dtype.element_ty), mask=k < K)
