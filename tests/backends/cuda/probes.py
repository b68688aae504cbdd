"""Kernels that do one thing, to look at it."""

# pyright: reportArgumentType=false
import triton
import triton.language as tl

from tkg.backends.cuda.kernels.fp8 import decode_fp8, decode_fp8_words, encode_fp8
from tkg.backends.cuda.kernels.numbers import rounded


@triton.jit
def decode(codes, out, SIZE: tl.constexpr, FN: tl.constexpr):
    """uint8 codes to float32."""
    i = tl.arange(0, SIZE)
    tl.store(out + i, decode_fp8(tl.load(codes + i), FN).to(tl.float32))


@triton.jit
def decode_words(words, out, COUNT: tl.constexpr, FN: tl.constexpr):
    """Two rows of words."""
    row, at = tl.arange(0, 2)[:, None], tl.arange(0, COUNT // 2)[None, :]
    value = decode_fp8_words(tl.load(words + row * (COUNT // 2) + at), FN)
    at = tl.arange(0, COUNT * 2)[None, :]
    tl.store(out + row * (COUNT * 2) + at, value.to(tl.float32))


@triton.jit
def encode(values, out, SIZE: tl.constexpr):
    """float32 to uint8 codes."""
    i = tl.arange(0, SIZE)
    tl.store(out + i, encode_fp8(tl.load(values + i)))


@triton.jit
def round_16(values, out, SIZE: tl.constexpr, BF16: tl.constexpr):
    """float32 to 16 bits and back."""
    i = tl.arange(0, SIZE)
    x = tl.load(values + i)
    y = rounded(x, tl.bfloat16) if BF16 else rounded(x, tl.float16)
    tl.store(out + i, y.to(tl.float32))
