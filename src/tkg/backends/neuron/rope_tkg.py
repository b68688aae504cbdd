"""Rotary position embedding, with the head dimension on the partitions.

    y = t * cos + turn(t) * sin        turn: each pair (r, i) becomes (-i, r)

The turn is a matmul with a signed permutation, so either pairing costs the same, and so does any d.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK
from tkg.backends.neuron.matrices import apply_matrix, expansion, rotation


class RopeTables(nl.NKIObject):
    """cos and sin [d, R] float32, and the turn's matrix [d, d]."""

    def __init__(self, cos, sin, turn):
        self.cos = cos
        self.sin = sin
        self.turn = turn


def load_rope(sbm, cos, sin, contiguous):
    """The tables of cos, sin [d/2, B, S] in HBM; they stay until the scope around is closed."""
    half = cos.shape[0]
    rows = cos.shape[1] * cos.shape[2]
    spread = expansion(sbm, 2 * half, contiguous, "rope.expansion")
    tables = []
    for name, table in (("rope.cos", cos), ("rope.sin", sin)):
        raw = sbm.stack((half, rows), table.dtype, name + ".raw")
        nisa.dma_copy(raw, table)
        wide = sbm.stack((half, rows), nl.float32, name + ".wide")
        nisa.tensor_copy(wide, raw)
        tables.append(apply_matrix(sbm, spread, wide, name))
    return RopeTables(tables[0], tables[1], rotation(sbm, 2 * half, contiguous, "rope.turn"))


def rope_tkg(sbm, t, tables, name):
    """Rotates t [d, heads, R] float32 in place."""
    d_head, heads, rows = t.shape
    sbm.open_scope(name)
    per_bank = max(1, BANK // rows)
    turned = sbm.stack((d_head, per_bank, rows), nl.float32, name + ".turned")
    for first in range(0, heads, per_bank):
        count = min(per_bank, heads - first)
        part = t[:, first : first + count, :]
        here = turned[:, 0:count, :]
        cos = tables.cos.expand_dim(1).broadcast(1, count)
        sin = tables.sin.expand_dim(1).broadcast(1, count)
        psum = nl.ndarray((d_head, count, rows), nl.float32, buffer=nl.psum)
        nisa.nc_matmul(psum, tables.turn, part, accumulate=False)
        nisa.tensor_tensor(here, psum, sin, nl.multiply)
        nisa.tensor_tensor(part, part, cos, nl.multiply)
        nisa.tensor_tensor(part, part, here, nl.add)
    sbm.close_scope()
