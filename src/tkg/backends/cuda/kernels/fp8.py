"""FP8 in kernels, through its bits: exact on every GPU, and under the interpreter.

Where four codes are a word, two are taken apart at a time: half of the instructions of a loop over
them (sm_90), and loads that wait for no arithmetic.

A byte is sign, 4 exponent bits (bias 7), 3 mantissa bits. Moved to float16's places it is the value
times 2^-8 (the biases differ by 8), subnormals included. Above 240 the two formats differ: e4m3 has
Inf at 0x78 and NaN above, e4m3fn has finite values up to 448 and NaN at 0x7f.
"""

import triton
import triton.language as tl


@triton.jit
def decode_fp8(bits, FN: tl.constexpr):
    """uint8 codes as float16 values, exactly; `FN`: the format is e4m3fn."""
    code = bits.to(tl.uint16)
    magnitude = code & 0x7F
    value = (((code & 0x80) << 8) | (magnitude << 7)).to(tl.float16, bitcast=True) * 256.0
    if FN:
        return tl.where(magnitude == 0x7F, float("nan"), value)
    else:
        special = ((code & 0x80) << 8) | tl.where(magnitude == 0x78, 0x7C00, 0x7E00).to(tl.uint16)
        return tl.where(magnitude >= 0x78, special.to(tl.float16, bitcast=True), value)


@triton.jit
def float16_bits(codes, FN: tl.constexpr):
    """The float16 bits, times 2^-8, of two codes in the upper bytes of a word's halves; Inf and
    NaN in full."""
    bits = ((codes >> 1) & 0x3F803F80) | (codes & 0x80008000)
    if FN:  # 0x7f: the sum reaches bit 14, from which the exponent's ones and a quiet bit follow
        special = ((bits & 0x7FFF7FFF) + 0x00800080) & 0x40004000
        return bits | ((special << 1) - (special >> 5))
    else:  # from 0x78 on: the exponent's ones before the mantissa that is there
        special = ((bits & 0x7FFF7FFF) + 0x04000400) & 0x40004000
        return bits | ((special << 1) - (special >> 4))


@triton.jit
def lower_half(word):
    """The float16 in the lower half of a word, of a code's value times 2^-8."""
    return (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True) * 256.0


@triton.jit
def decode_fp8_words(words, FN: tl.constexpr):
    """int32 words `[M, W]` of four codes each, the first in the lowest byte, as float16 values
    `[M, 4 W]`, exactly."""
    word = words.to(tl.uint32, bitcast=True)
    even, odd = float16_bits(word << 8, FN), float16_bits(word, FN)
    first = tl.interleave(lower_half(even), lower_half(even >> 16))
    second = tl.interleave(lower_half(odd), lower_half(odd >> 16))
    return tl.interleave(first, second)


@triton.jit
def encode_fp8(x):
    """float32 values as codes of `fp8(clip(x, +-240))`, ties to even; the same in both formats.

    Normal numbers: add half a step to the bits and cut. Subnormals are multiples of 2^-9, the gap
    between neighbours of 2^14 in float32, so an addition rounds them.
    """
    bits = x.to(tl.uint32, bitcast=True)
    size = (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True)
    size = tl.where(size < 240.0, size, 240.0)
    raw = size.to(tl.uint32, bitcast=True)
    normal = ((raw + 0x7FFFF + ((raw >> 20) & 1)) >> 20) - 960  # 960: the biases, 120 << 3
    subnormal = (size + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000  # the bits of 2^14
    magnitude = tl.where(size < 0.015625, subnormal, normal)
    magnitude = tl.where(x != x, 0x7F, magnitude)
    return (magnitude | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def round_fp8(x):
    """float32 values rounded to FP8, as float32: `fp8(clip(x, +-240))`."""
    return decode_fp8(encode_fp8(x), False).to(tl.float32)
