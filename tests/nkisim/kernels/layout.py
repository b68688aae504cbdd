"""Kernels that are all about where elements lie: transposes and pooling through access patterns."""

# pyright: reportMissingImports=false

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nkisim.kernels.tiles import drain, load, result_like


@nki.jit
def transpose_rows(x, shape):
    """Each row of x is a flattened matrix of this shape; each row of the result its transpose.

    One copy an element, as in AWS's tutorial.
    """
    rows, columns = shape
    source = load(x)
    turned = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    for r in range(rows):
        for c in range(columns):
            nisa.tensor_copy(
                dst=turned[:, nl.ds(c * rows + r, 1)], src=source[:, nl.ds(r * columns + c, 1)]
            )
    result = result_like(x)
    nisa.dma_copy(dst=result, src=turned)
    return result


@nki.jit
def transpose_rows_at_once(x, shape):
    """The same with one copy: a permuted view of the tile."""
    source = load(x)
    turned = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    matrices = source.reshape((x.shape[0], *shape)).permute((0, 2, 1))
    nisa.tensor_copy(dst=turned.reshape(matrices.shape), src=matrices)
    result = result_like(x)
    nisa.dma_copy(dst=result, src=turned)
    return result


@nki.jit
def transpose(x):
    """x.T of at most (128, 128), through the Tensor engine."""
    turned = nl.ndarray((x.shape[1], x.shape[0]), dtype=x.dtype, buffer=nl.psum)
    nisa.nc_transpose(dst=turned, data=load(x))
    result = result_like(x, turned.shape)
    drain(result, turned)
    return result


def windows(tile, size):
    """(C, H, W) seen as (C, H/size, W/size, size, size)."""
    channels, height, width = tile.shape
    return tile.ap(
        [
            [height * width, channels],
            [size * width, height // size],
            [size, width // size],
            [width, size],
            [1, size],
        ]
    )


@nki.jit
def average_pool(x, size):
    """The mean of each size by size window of (C, H, W)."""
    total = nl.sum(windows(load(x), size), axis=[3, 4])
    mean = nl.ndarray(total.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=mean, data=total, op0=nl.multiply, operand0=1.0 / (size * size))
    result = result_like(x, mean.shape)
    nisa.dma_copy(dst=result, src=mean)
    return result


@nki.jit
def maximum_pool(x, size):
    """The greatest element of each window."""
    greatest = nl.max(windows(load(x), size), axis=[3, 4])
    result = result_like(x, greatest.shape)
    nl.store(result, value=greatest)
    return result


@nki.jit
def even_and_odd(x):
    """The even columns and the odd columns."""
    tile = load(x)
    results = []
    for first in (0, 1):
        half = tile[:, first : x.shape[1] : 2]
        result = result_like(x, half.shape)
        nl.store(result, value=half)
        results.append(result)
    return tuple(results)
