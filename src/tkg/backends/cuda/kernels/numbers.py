"""Products and roundings, right on a GPU and under the interpreter.

Triton 3.9's interpreter multiplies bfloat16 as integers and cuts float32 off to bfloat16 instead of
rounding it. There, and only there, products are taken in float32 and rounding goes through bits.
"""

import triton
import triton.language as tl

from tkg.backends.cuda.environment import interpreting

INTERPRETED: tl.constexpr = tl.constexpr(interpreting())


@triton.jit
def rounded(x, KIND: tl.constexpr):
    """`x` rounded to nearest even to the dtype KIND."""
    if INTERPRETED and KIND == tl.bfloat16 and x.dtype == tl.float32:
        bits = x.to(tl.uint32, bitcast=True)
        upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        return tl.where(x != x, 0x7FC0, upper).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(KIND)


@triton.jit
def product(a, b, total):
    """`a @ b + total`, accumulated in float32."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
