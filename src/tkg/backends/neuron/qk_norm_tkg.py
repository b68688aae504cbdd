"""RMSNorm of each head of Q or K, with the head dimension on the partitions.

y[c, n, r] = t[c, n, r] / sqrt(sum_c t[c, n, r]^2 / d + eps) * weight[c]
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK, per_head_columns, reciprocal_root
from tkg.backends.neuron.matrices import filled
from tkg.backends.neuron.sbuf_manager import SMALL


def qk_norm_tkg(sbm, t, weight, eps, name, parts=1):
    """Normalises t [d, heads, R] float32 in place; of a head in parts [d/parts, heads*parts, R].
    `weight`: [1, d] in HBM, or None."""
    size, columns, rows = t.shape
    heads = columns // parts
    view = t.reshape((size, heads, parts, rows))
    sbm.open_scope(name)
    weights = per_head_columns(sbm, weight, size, parts, name + ".weight")
    ones = filled(sbm, (size, size), 1.0, name + ".ones")
    per_bank = min(heads, max(1, BANK // rows))
    squares = sbm.stack((size, parts, per_bank, rows), nl.float32, name + ".squares")
    rstd = sbm.stack((size, per_bank, rows), nl.float32, name + ".rstd")
    for first in range(0, heads, per_bank):
        count = min(per_bank, heads - first)
        inverse = rstd[:, 0:count, :]
        psum = nl.ndarray((size, count, rows), nl.float32, buffer=nl.psum)
        for i in range(parts):
            part, square = view[:, first : first + count, i, :], squares[:, i, 0:count, :]
            nisa.tensor_tensor(square, part, part, nl.multiply)
            nisa.nc_matmul(psum, ones, square, accumulate=i > 0)
        reciprocal_root(inverse, psum, 1.0 / (size * parts), eps)
        for i in range(parts):
            part = view[:, first : first + count, i, :]
            if weights == None:
                nisa.tensor_tensor(part, part, inverse, nl.multiply)
            else:
                column = weights[:, i : i + 1]
                nisa.scalar_tensor_tensor(part, part, nl.multiply, column, nl.multiply, inverse)
    sbm.close_scope(SMALL)
