"""Constant matrices, made on chip: nothing is read from HBM for them.

They are stationary operands [K, M] of float32 matmuls, result[m] = sum_k matrix[k, m] * x[k].
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK, head_parts


def filled(sbm, shape, value, name, dtype=nl.float32):
    """A tile with the same number everywhere."""
    tile = sbm.stack(shape, dtype, name)
    nisa.memset(tile, value)
    return tile


def put_diagonal(matrix, columns, value_tile, step, offset):
    """matrix[k, c] = value where k == step*i + offset for the i-th of `columns`, 0 elsewhere.

    `columns` is a view of some of the matrix's columns; `value_tile` is as large and holds the
    value.
    """
    count = columns.shape[1]
    nisa.affine_select(
        columns,
        [[-step, count]],
        1,
        value_tile[0 : columns.shape[0], 0:count],
        0.0,
        cmp_op=nl.equal,
        offset=-offset,
    )


WHOLE = (0, 0, 1)
"""The block of a matrix that is all of it: (part of the rows, part of the columns, parts)."""


def column_sets(d_head, contiguous, block):
    """[(columns of a block as a slice, the first one's element of the head, whether it is the first
    of its pair)]: each of its pairs' first and second elements."""
    size = d_head // block[2]
    start = block[1] * size
    if contiguous:
        end = max(0, min(size, d_head // 2 - start))
        sets = [(slice(0, end), start, True), (slice(end, size), start + end, False)]
    else:
        odd = start % 2
        sets = [
            (slice(odd, size, 2), start + odd, True),
            (slice(1 - odd, size, 2), start + 1 - odd, False),
        ]
    return [entry for entry in sets if entry[0].start < size and entry[0].start < entry[0].stop]


def identity(sbm, ones, name):
    """result = x; `ones` as large."""
    matrix = sbm.stack(ones.shape, nl.float32, name)
    put_diagonal(matrix, matrix[:, :], ones, 1, 0)
    return matrix


def rotation(sbm, d_head, contiguous, ones, name, block=WHOLE):
    """[d, d]: result = the pairs of x turned by a quarter: (r, i) becomes (-i, r). `ones`: as large
    as what is returned.

    `contiguous`: pairs are (j, j + d/2); otherwise (2j, 2j + 1). `block`: which [d/parts, d/parts]
    of it.
    """
    size = d_head // block[2]
    matrix = sbm.stack((size, size), nl.float32, name)
    minus = filled(sbm, (size, size), -1.0, name + ".minus")
    away = d_head // 2 if contiguous else 1
    for columns, first, leads in column_sets(d_head, contiguous, block):
        other = first + away if leads else first - away
        value = minus if leads else ones
        step = 1 if contiguous else 2
        put_diagonal(matrix, matrix[:, columns], value, step, other - block[0] * size)
    return matrix


def pair_part(d_head):
    """Pairs of a head that lie on the partitions together."""
    return d_head // 2 // head_parts(d_head // 2)


def selection(sbm, d_head, parity, name, block=WHOLE):
    """[d, d/2]: result = the even (parity 0) or odd elements of x. `block`: d/parts of the rows,
    and of the columns as many as `pair_part` says."""
    size = d_head // block[2]
    columns = pair_part(d_head)
    matrix = sbm.stack((size, columns), nl.float32, name)
    ones = filled(sbm, (size, columns), 1.0, name + ".ones")
    offset = 2 * block[1] * columns + parity - block[0] * size
    put_diagonal(matrix, matrix[:, :], ones, 2, offset)
    return matrix


def apply_matrix(sbm, matrix, x, name):
    """matrix^T @ x for x [K, n] float32, as a new float32 tile [M, n]."""
    return apply_matrices(sbm, (matrix,), (x,), name)


def apply_matrices(sbm, matrices, xs, name, dtype=nl.float32, factor=1.0):
    """The sum of matrix^T @ x over pairs [K, M], [K, n], times a number, as a new tile [M, n]; 512
    columns at a time."""
    width = matrices[0].shape[1]
    count = xs[0].shape[1]
    out = sbm.stack((width, count), dtype, name)
    for start in range(0, count, 512):
        stop = min(start + 512, count)
        psum = nl.ndarray((width, stop - start), nl.float32, buffer=nl.psum)
        for i in range(len(matrices)):
            nisa.nc_matmul(psum, matrices[i], xs[i][:, start:stop], accumulate=i > 0)
        if factor == 1.0:
            nisa.tensor_copy(out[:, start:stop], psum)
        else:
            nisa.tensor_scalar(out[:, start:stop], psum, nl.multiply, factor)
    return out


def add_terms(terms, cuts, out, factor=1.0, limit=0.0):
    """out [M, cuts, n] = the sums of matrix[:, cut]^T @ x over the terms (x [K, n], matrix), for
    each of the `cuts`, slices of M columns; times a number, and within +-`limit` if there is one.
    """
    count = out.shape[2]
    step = BANK // len(cuts)
    for start in range(0, count, step):
        here = slice(start, min(start + step, count))
        psum = nl.ndarray((out.shape[0], len(cuts), here.stop - start), nl.float32, buffer=nl.psum)
        for i in range(len(terms)):
            x, matrix = terms[i]
            for c in range(len(cuts)):
                nisa.nc_matmul(psum[:, c, :], matrix[:, cuts[c]], x[:, here], accumulate=i > 0)
        target = out[:, :, here]
        if limit > 0.0:
            nisa.tensor_scalar(target, psum, nl.minimum, limit, op1=nl.maximum, operand1=-limit)
        else:
            nisa.tensor_scalar(target, psum, nl.multiply, factor)


def spread_row(sbm, row, partitions, name):
    """A row [1, n] on partition 0, on `partitions` partitions, float32: a matmul with ones."""
    wide = sbm.stack((1, row.shape[1]), nl.float32, name + ".row")
    nisa.tensor_copy(wide, row)
    ones = filled(sbm, (1, partitions), 1.0, name + ".ones")
    return apply_matrix(sbm, ones, wide, name)
