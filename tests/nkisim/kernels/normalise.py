"""Softmax and RMS norm over rows, from instructions and from nki.language's own functions."""

# pyright: reportMissingImports=false

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nkisim.kernels.tiles import load, result_like


def column(tile):
    return nl.ndarray((tile.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)


@nki.jit
def softmax(x):
    """exp(x - max) / sum, a row a partition: the exponent's bias is -max, its sum comes with it."""
    result = result_like(x)
    for row in range(0, x.shape[0], 128):
        here = slice(row, min(row + 128, x.shape[0]))
        tile = load(x[here, :])
        lowest, total = column(tile), column(tile)
        nisa.tensor_reduce(dst=lowest, data=tile, op=nl.maximum, axis=1, negate=True)
        raised = nl.ndarray(tile.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(
            dst=raised, op=nl.exp, data=tile, bias=lowest, reduce_op=nl.add, reduce_res=total,
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
        )  # fmt: skip
        nisa.reciprocal(dst=total, data=total)
        nisa.tensor_scalar(dst=tile, data=raised, op0=nl.multiply, operand0=total)
        nisa.dma_copy(dst=result[here, :], src=tile)
    return result


@nki.jit
def softmax_by_language(x):
    result = result_like(x)
    nl.store(result, value=nl.softmax(nl.load(x), axis=1))
    return result


@nki.jit
def rms_norm(x, weight, epsilon=1e-6):
    """x / sqrt(mean(x**2) + epsilon) * weight; weight is (1, columns)."""
    columns = x.shape[1]
    result = result_like(x)
    spread = nl.broadcast_to(load(weight), (128, columns))
    for row in range(0, x.shape[0], 128):
        rows = min(128, x.shape[0] - row)
        tile = load(x[row : row + rows, :])
        squares = nl.ndarray(tile.shape, dtype=nl.float32, buffer=nl.sbuf)
        scale = column(tile)
        nisa.tensor_tensor(dst=squares, data1=tile, data2=tile, op=nl.multiply)
        nisa.tensor_reduce(dst=scale, data=squares, op=nl.add, axis=1)
        nisa.tensor_scalar(
            dst=scale, data=scale, op0=nl.multiply, operand0=1.0 / columns, op1=nl.add,
            operand1=epsilon,
        )  # fmt: skip
        nisa.activation(dst=scale, op=nl.rsqrt, data=scale)
        nisa.tensor_scalar(dst=squares, data=tile, op0=nl.multiply, operand0=scale)
        nisa.tensor_tensor(dst=tile, data1=squares, data2=spread[0:rows, :], op=nl.multiply)
        nisa.dma_copy(dst=result[row : row + rows, :], src=tile)
    return result


@nki.jit
def rms_norm_by_language(x, weight, epsilon=1e-6):
    """The same with a weight for each element, as nl.rms_norm takes it."""
    result = result_like(x)
    normal = nl.rms_norm(nl.load(x), nl.load(weight), axis=1, n=x.shape[1], epsilon=epsilon)
    nl.store(result, value=normal)
    return result
