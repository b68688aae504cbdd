"""What is known only while the kernel runs: loop bounds, conditions, rows to gather and scatter."""

# pyright: reportMissingImports=false

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nkisim.kernels.tiles import load, result_like


@nki.jit
def copy_some(x, count):
    """The first count[0, 0] columns of a row x, zeros after them: a loop with a run-time bound."""
    result = result_like(x)
    nisa.dma_copy(dst=result, src=nl.zeros(x.shape, dtype=x.dtype, buffer=nl.sbuf))
    bound = nisa.register_alloc()
    nisa.register_load(bound, load(count))
    one = nl.ndarray((1, 1), dtype=x.dtype, buffer=nl.sbuf)

    def copy(i):
        nisa.dma_copy(dst=one, src=x.ap([[1, 1], [1, 1]], scalar_offset=i, indirect_dim=1))
        nisa.dma_copy(dst=result.ap([[1, 1], [1, 1]], scalar_offset=i, indirect_dim=1), src=one)

    nl.fori_loop(0, bound, copy)
    return result


@nki.jit
def times(x, count):
    """x * count[0, 0] by repeated addition: the condition is computed by the loop's body."""
    value = load(x)
    left = load(count)
    total = nl.zeros(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    condition = nisa.register_alloc()
    nisa.register_load(condition, left)

    def again(register):
        nisa.tensor_tensor(dst=total, data1=total, data2=value, op=nl.add)
        nisa.tensor_scalar(dst=left, data=left, op0=nl.subtract, operand0=1)
        nisa.register_load(register, left)
        return register

    nl.while_loop(condition, again)
    result = result_like(x)
    nisa.dma_copy(dst=result, src=total)
    return result


@nki.jit
def blocks_plus(x, amount):
    """x + amount, block of 128 rows after block, in a device loop over the first row."""
    result = result_like(x)
    columns = x.shape[1]
    pattern = [[columns, 128], [1, columns]]
    tile = nl.ndarray((128, columns), dtype=x.dtype, buffer=nl.sbuf)

    def block(row):
        nisa.dma_copy(dst=tile, src=x.ap(pattern, scalar_offset=row))
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=amount)
        nisa.dma_copy(dst=result.ap(pattern, scalar_offset=row), src=tile)

    nl.fori_loop(0, x.shape[0], block, step=128)
    return result


@nki.jit
def select(x, index):
    """x[index[0, 0]]."""
    result = result_like(x, x.shape[1:])
    nisa.dma_copy(dst=result, src=x.select(0, load(index)))
    return result


@nki.jit
def gather(table, rows):
    """table[rows[:, 0]], one row a partition."""
    count, width = rows.shape[0], table.shape[1]
    picked = nl.ndarray((count, width), dtype=table.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=picked, src=table.ap([[width, count], [1, width]], vector_offset=load(rows)))
    result = result_like(table, picked.shape)
    nisa.dma_copy(dst=result, src=picked)
    return result


@nki.jit
def scatter(values, rows, table):
    """table[rows[:, 0]] = values, in place; rows outside the table are left out."""
    count, width = values.shape
    nisa.dma_copy(
        dst=table.vector_select(0, load(rows)), src=load(values), oob_mode=nisa.oob_mode.skip
    )
    return table
