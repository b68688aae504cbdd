"""Constant matrices, made on chip: nothing is read from HBM for them.

They are stationary operands [K, M] of float32 matmuls, result[m] = sum_k matrix[k, m] * x[k].
"""

import nki.isa as nisa
import nki.language as nl


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


def identity(sbm, size, name):
    """[size, size]: result = x."""
    matrix = sbm.stack((size, size), nl.float32, name)
    ones = filled(sbm, (size, size), 1.0, name + ".ones")
    put_diagonal(matrix, matrix[:, :], ones, 1, 0)
    return matrix


def rotation(sbm, d_head, contiguous, name):
    """[d, d]: result = the pairs of x turned by a quarter: (r, i) becomes (-i, r).

    `contiguous`: pairs are (j, j + d/2); otherwise (2j, 2j + 1).
    """
    half = d_head // 2
    matrix = sbm.stack((d_head, d_head), nl.float32, name)
    plus = filled(sbm, (d_head, half), 1.0, name + ".plus")
    minus = filled(sbm, (d_head, half), -1.0, name + ".minus")
    if contiguous:
        put_diagonal(matrix, matrix[:, 0:half], minus, 1, half)
        put_diagonal(matrix, matrix[:, half:d_head], plus, 1, 0)
    else:
        put_diagonal(matrix, matrix[:, 0:d_head:2], minus, 2, 1)
        put_diagonal(matrix, matrix[:, 1:d_head:2], plus, 2, 0)
    return matrix


def expansion(sbm, d_head, contiguous, name):
    """[d/2, d]: result = one value a pair, on both elements of the pair."""
    half = d_head // 2
    matrix = sbm.stack((half, d_head), nl.float32, name)
    ones = filled(sbm, (half, half), 1.0, name + ".ones")
    if contiguous:
        put_diagonal(matrix, matrix[:, 0:half], ones, 1, 0)
        put_diagonal(matrix, matrix[:, half:d_head], ones, 1, 0)
    else:
        put_diagonal(matrix, matrix[:, 0:d_head:2], ones, 1, 0)
        put_diagonal(matrix, matrix[:, 1:d_head:2], ones, 1, 0)
    return matrix


def selection(sbm, d_head, parity, name):
    """[d, d/2]: result = the even (parity 0) or odd elements of x."""
    half = d_head // 2
    matrix = sbm.stack((d_head, half), nl.float32, name)
    ones = filled(sbm, (d_head, half), 1.0, name + ".ones")
    put_diagonal(matrix, matrix[:, :], ones, 2, parity)
    return matrix


def apply_matrix(sbm, matrix, x, name):
    """matrix^T @ x for x [K, n] float32, as a new float32 tile [M, n]; 512 columns at a time."""
    out = sbm.stack((matrix.shape[1], x.shape[1]), nl.float32, name)
    for start in range(0, x.shape[1], 512):
        stop = min(start + 512, x.shape[1])
        psum = nl.ndarray((matrix.shape[1], stop - start), nl.float32, buffer=nl.psum)
        nisa.nc_matmul(psum, matrix, x[:, start:stop], accumulate=False)
        nisa.tensor_copy(out[:, start:stop], psum)
    return out


def spread_row(sbm, row, partitions, name):
    """A row [1, n] on partition 0, on `partitions` partitions, float32: a matmul with ones."""
    wide = sbm.stack((1, row.shape[1]), nl.float32, name + ".row")
    nisa.tensor_copy(wide, row)
    ones = filled(sbm, (1, partitions), 1.0, name + ".ones")
    return apply_matrix(sbm, ones, wide, name)
