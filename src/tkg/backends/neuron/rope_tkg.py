"""Rotary position embedding, with the head dimension on the partitions.

    y = t * cos + turn(t) * sin        turn: each pair (r, i) becomes (-i, r)

The turn is a matmul with a signed permutation, so either pairing costs the same, and so does any d.
Both elements of a pair have the same sin, so y = t * cos + turn(t * sin) too, which the tensor
engine adds up: `rope_terms`.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK, head_parts, load_small
from tkg.backends.neuron.matrices import (
    apply_matrices,
    expansion,
    filled,
    identity,
    pair_part,
    rotation,
)
from tkg.backends.neuron.sbuf_manager import SMALL


class RopeTables(nl.NKIObject):
    """cos and sin: for each part of a head [d/parts, R] float32; `turns[m][i]`: the block of the
    turn's matrix that takes part i of a head to part m, [d/parts, d/parts]. `same`: the identity,
    of a head that is not in parts; else None."""

    def __init__(self, cos, sin, turns, same):
        self.cos = cos
        self.sin = sin
        self.turns = turns
        self.same = same

    def scaled(self, sbm, column, name):
        """Tables that also multiply by `column` [128, 1]."""
        tables = []
        for kind, tiles in (("cos", self.cos), ("sin", self.sin)):
            scaled = []
            for i in range(len(tiles)):
                tile = sbm.stack(tiles[i].shape, nl.float32, f"{name}.{kind}.{i}")
                nisa.tensor_scalar(tile, tiles[i], nl.multiply, column[0 : tile.shape[0], :])
                scaled.append(tile)
            tables.append(scaled)
        return RopeTables(tables[0], tables[1], self.turns, self.same)


def load_rope(sbm, cos, sin, contiguous):
    """The tables of cos, sin [d/2, B, S] in HBM; they stay until the scope around is closed."""
    half = cos.shape[0]
    d_head = 2 * half
    rows = cos.shape[1] * cos.shape[2]
    parts, pairs = head_parts(d_head), pair_part(d_head)
    spread = []
    turns = []
    ones = filled(sbm, (max(d_head // parts, pairs), d_head // parts), 1.0, "rope.ones")
    square = ones[0 : d_head // parts, :]
    for m in range(parts):
        spread.append([])
        for k in range(half // pairs):
            name = f"rope.expansion.{k}.{m}"
            spread[m].append(expansion(sbm, d_head, contiguous, ones, name, (k, m, parts)))
        turns.append([])
        for i in range(parts):
            name = f"rope.turn.{i}.{m}"
            turns[m].append(rotation(sbm, d_head, contiguous, square, name, (i, m, parts)))
    tables = []
    for name, table in (("rope.cos", cos), ("rope.sin", sin)):
        wide = []
        for k in range(half // pairs):
            raw = sbm.stack((pairs, rows), table.dtype, f"{name}.raw.{k}")
            load_small(raw, table[k * pairs : (k + 1) * pairs, :, :])
            wide.append(sbm.stack((pairs, rows), nl.float32, f"{name}.wide.{k}"))
            nisa.tensor_copy(wide[k], raw)
        tables.append([apply_matrices(sbm, spread[m], wide, f"{name}.{m}") for m in range(parts)])
    same = identity(sbm, square, "rope.same") if parts == 1 else None
    return RopeTables(tables[0], tables[1], turns, same)


def rope_tkg(sbm, t, tables, name):
    """Rotates t [d, heads, R] float32 in place; of a head in parts [d/parts, heads*parts, R]."""
    size, columns, rows = t.shape
    parts = len(tables.cos)
    heads = columns // parts
    view = t.reshape((size, heads, parts, rows))
    sbm.open_scope(name)
    per_bank = max(1, BANK // rows)
    shape = (size, parts, min(per_bank, heads), rows)
    turned = sbm.stack(shape, nl.float32, name + ".turned")
    kept = sbm.stack(shape, nl.float32, name + ".kept")
    for first in range(0, heads, per_bank):
        count = min(per_bank, heads - first)
        pieces = [view[:, first : first + count, i, :] for i in range(parts)]
        for m in range(parts):
            sin = tables.sin[m].expand_dim(1).broadcast(1, count)
            cos = tables.cos[m].expand_dim(1).broadcast(1, count)
            psum = nl.ndarray((size, count, rows), nl.float32, buffer=nl.psum)
            # GpSimd has less to do than Vector.
            nisa.tensor_tensor(
                kept[:, m, 0:count, :], pieces[m], cos, nl.multiply, engine=nisa.engine.gpsimd
            )
            for i in range(parts):
                nisa.nc_matmul(psum, tables.turns[m][i], pieces[i], accumulate=i > 0)
            nisa.tensor_tensor(turned[:, m, 0:count, :], psum, sin, nl.multiply)
        for m in range(parts):
            both = [tile[:, m, 0:count, :] for tile in (kept, turned)]
            nisa.tensor_tensor(pieces[m], both[0], both[1], nl.add, engine=nisa.engine.gpsimd)
    sbm.close_scope(SMALL)


def rope_terms(sbm, t, tables, name):
    """[(x [d, heads*R] float32, matrix [d, d])]: the sum of matrix^T @ x is t [d, heads, R] turned.
    Only of heads that are not in parts."""
    size, heads, rows = t.shape
    terms = []
    # Engines side by side.
    for kind, table, matrix, engine in (
        ("kept", tables.cos[0], tables.same, nisa.engine.vector),
        ("turned", tables.sin[0], tables.turns[0][0], nisa.engine.gpsimd),
    ):
        x = sbm.stack(t.shape, nl.float32, f"{name}.{kind}")
        wide = table.expand_dim(1).broadcast(1, heads)
        nisa.tensor_tensor(x, t, wide, nl.multiply, engine=engine)
        terms.append((x.reshape((size, heads * rows)), matrix))
    return terms
