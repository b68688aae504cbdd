"""RMSNorm of each head of Q or K, with the head dimension on the partitions.

y[c, n, r] = t[c, n, r] / sqrt(sum_c t[c, n, r]^2 / d + eps) * weight[c]
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK, per_head_columns
from tkg.backends.neuron.matrices import filled


def qk_norm_tkg(sbm, t, weight, eps, name):
    """Normalises t [d, heads, R] float32 in place. `weight`: [1, d] in HBM, or None."""
    d_head, heads, rows = t.shape
    sbm.open_scope(name)
    column = per_head_columns(sbm, weight, d_head, 1, name + ".weight")
    ones = filled(sbm, (d_head, d_head), 1.0, name + ".ones")
    bias = filled(sbm, (d_head, 1), eps, name + ".eps")
    per_bank = max(1, BANK // rows)
    squares = sbm.stack((d_head, per_bank, rows), nl.float32, name + ".squares")
    rstd = sbm.stack((d_head, per_bank, rows), nl.float32, name + ".rstd")
    for first in range(0, heads, per_bank):
        count = min(per_bank, heads - first)
        part = t[:, first : first + count, :]
        square, inverse = squares[:, 0:count, :], rstd[:, 0:count, :]
        nisa.tensor_tensor(square, part, part, nl.multiply)
        psum = nl.ndarray((d_head, count, rows), nl.float32, buffer=nl.psum)
        nisa.nc_matmul(psum, ones, square, accumulate=False)
        nisa.activation(inverse, nl.rsqrt, psum, bias=bias, scale=1.0 / d_head)
        if weight == None:
            nisa.tensor_tensor(part, part, inverse, nl.multiply)
        else:
            nisa.scalar_tensor_tensor(part, part, nl.multiply, column, nl.multiply, inverse)
    sbm.close_scope()
