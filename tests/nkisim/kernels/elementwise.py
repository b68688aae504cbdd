"""Tensor addition on one core and on two; load, exp, store as in AWS's overview of DMA."""

# pyright: reportMissingImports=false

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nkisim.kernels.tiles import load, result_like


def add_rows(result, a, b, first, last):
    """result = a + b for these rows, in tiles of (128, 512)."""
    for row in range(first, last, 128):
        for column in range(0, a.shape[1], 512):
            here = (slice(row, row + 128), slice(column, column + 512))
            total = nl.ndarray((128, 512), dtype=a.dtype, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=total, data1=load(a[here]), data2=load(b[here]), op=nl.add)
            nisa.dma_copy(dst=result[here], src=total)


@nki.jit
def add(a, b):
    """a + b; rows a multiple of 128, columns of 512. Each program does its share of the rows."""
    assert a.shape == b.shape and a.shape[0] % (128 * nl.num_programs()) == 0
    assert a.shape[1] % 512 == 0
    result = result_like(a)
    share = a.shape[0] // nl.num_programs()
    first = nl.program_id() * share
    add_rows(result, a, b, first, first + share)
    return result


@nki.jit
def add_whole(a, b):
    """a + b of at most 128 rows, with the functions of nki.language."""
    result = result_like(a)
    nl.store(result, value=nl.add(nl.load(a), nl.load(b)))
    return result


@nki.jit
def exponential(x):
    """exp(x) in bfloat16: one load, one activation, one store."""
    raised = nl.ndarray(x.shape, dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.activation(dst=raised, op=nl.exp, data=load(x))
    result = result_like(x)
    nisa.dma_copy(src=raised, dst=result)
    return result
