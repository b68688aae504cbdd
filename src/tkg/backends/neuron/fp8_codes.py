"""float8_e4m3fn, which NeuronCore-v3 has no dtype for: kernels get its codes as uint8.

A code is a sign, 4 bits of exponent with a bias of 7, and 3 of fraction (OCP 8-bit floating point
specification, 1.0). Shifted to the places of float16, whose bias is 15, it is the value over 2^8,
subnormals included; only the two NaN codes, exponent and fraction all ones, need a copy of their
own. Every value fits bfloat16, which the tensor engine multiplies.

Up to 240 the codes are those of float8_e4m3, the hardware's own: new K and V are clipped to that.
"""

import nki.isa as nisa
import nki.language as nl

ONE_SIGN = -0x4001  # all of int16 but the bit where sign extension leaves a second sign
BF16_NAN = 0x7FC0
FN_NAN = 0x7F  # and 0xFF
LARGEST = 0x77  # code of 240


class CodeReader(nl.NKIObject):
    """Turns tiles of codes, up to `shape`, into bfloat16."""

    def __init__(self, sbm, shape, name):
        self.values = sbm.stack(shape, nl.bfloat16, name + ".values")
        self.marks = sbm.stack(shape, nl.uint8, name + ".marks")

    def read(self, codes):
        """The values of `codes`, uint8; valid until the next read."""
        values, marks = self.values, self.marks
        for axis in range(len(codes.shape)):
            values = values.slice(axis, 0, codes.shape[axis])
            marks = marks.slice(axis, 0, codes.shape[axis])
        bits = values.view(nl.int16)
        nisa.tensor_copy(bits, codes.view(nl.int8))
        nisa.tensor_scalar(bits, bits, nl.left_shift, 7, op1=nl.bitwise_and, operand1=ONE_SIGN)
        nisa.tensor_scalar(values, bits.view(nl.float16), nl.multiply, 256.0)
        nisa.tensor_scalar(marks, codes, nl.bitwise_and, FN_NAN)
        nisa.tensor_scalar(marks, marks, nl.equal, float(FN_NAN))
        nisa.tensor_copy_predicated(bits, BF16_NAN, marks)
        return values


def reader_of(sbm, shape, dtype, name):
    """A CodeReader for tiles of codes; None for any other dtype, which is multiplied as it is."""
    return CodeReader(sbm, shape, name) if dtype == nl.uint8 else None


def values_of(reader, tile):
    """What the tensor engine multiplies."""
    return tile if reader == None else reader.read(tile)


def rounded_dtype(dtype):
    """In which dtype new K and V are rounded for a cache of `dtype`."""
    return nl.float8_e4m3 if dtype == nl.uint8 else dtype


def common_nan(sbm, tile, name):
    """In a float8_e4m3 tile within +-240: each NaN becomes the code that is NaN in both formats."""
    codes = tile.view(nl.uint8)
    sbm.open_scope(name)
    beyond = sbm.stack(tile.shape, nl.uint8, name)
    nisa.tensor_scalar(beyond, codes, nl.bitwise_and, FN_NAN)
    nisa.tensor_scalar(beyond, beyond, nl.greater, float(LARGEST))
    nisa.tensor_copy_predicated(codes, FN_NAN, beyond)
    sbm.close_scope()
