"""Rotary position embedding, with the head dimension on the partitions.

    y = t * cos + turn(t) * sin        turn: each pair (r, i) becomes (-i, r)

The turn is a matmul with a signed permutation, so either pairing costs the same, and so does any d.
Both elements of a pair have the same sin, so y = t * cos + turn(t * sin) too, which the tensor
engine adds up: `rope_terms`.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK, head_parts, load_small
from tkg.backends.neuron.matrices import filled, identity, rotation
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
                factor = column[0 : tile.shape[0], :].broadcast(1, tile.shape[1])
                gpsimd = nisa.engine.gpsimd  # Vector is busy with Q
                nisa.tensor_tensor(tile, tiles[i], factor, nl.multiply, engine=gpsimd)
                scaled.append(tile)
            tables.append(scaled)
        return RopeTables(tables[0], tables[1], self.turns, self.same)


def load_rope(sbm, cos, sin, contiguous):
    """The tables of cos, sin [d/2, B, S] in HBM; they stay until the scope around is closed."""
    d_head = 2 * cos.shape[0]
    rows = cos.shape[1] * cos.shape[2]
    parts = head_parts(d_head)
    size = d_head // parts
    turns = []
    ones = filled(sbm, (size, size), 1.0, "rope.ones")
    for m in range(parts):
        blocks = [(i, m, parts) for i in range(parts)]
        names = [f"rope.turn.{i}.{m}" for i in range(parts)]
        turns.append(
            [rotation(sbm, d_head, contiguous, ones, names[i], blocks[i]) for i in range(parts)]
        )
    # Two cores have their weights sooner, and their tensor engines other work then.
    few = rows == 1 and parts == 1 and nl.num_programs(0) == 1
    tables = []
    for name, table in (("rope.cos", cos), ("rope.sin", sin)):
        if few and table.dtype == nl.float32:
            tables.append([turned_row(sbm, table, contiguous, ones, name)])
        else:
            tables.append(table_parts(sbm, table, contiguous, parts, name))
    same = identity(sbm, ones, "rope.same") if parts == 1 else None
    return RopeTables(tables[0], tables[1], turns, same)


def table_parts(sbm, table, contiguous, parts, name):
    """A table [d/2, B, S] in HBM as [d/parts, R] float32 for each part of a head. Each value comes
    to both elements of its pair, so the tensor engine need not copy it."""
    size = 2 * table.shape[0] // parts
    rows = table.shape[1] * table.shape[2]
    tiles = []
    for m in range(parts):
        raw = sbm.stack((size, rows), table.dtype, f"{name}.raw.{m}")
        for first, count, source in pair_spans(table, contiguous, (m, parts)):
            load_small(raw[first : first + count, :], source)
        tiles.append(sbm.stack((size, rows), nl.float32, f"{name}.{m}"))
        nisa.tensor_copy(tiles[m], raw)
    return tiles


def turned_row(sbm, table, contiguous, ones, name):
    """The same of one row and a head that is not in parts: one piece for DMA, not one for each
    partition; a matmul with 1 turns it."""
    half = table.shape[0]
    row = sbm.stack((1, half), nl.float32, f"{name}.row")
    load_small(row, table.ap([[0, 1], [1, half]], offset=0))
    pairs = row.expand_dim(1).broadcast(1, 2) if contiguous else row.expand_dim(2).broadcast(2, 2)
    psum = nl.ndarray((2 * half, 1), nl.float32, buffer=nl.psum)
    nisa.nc_matmul(psum, pairs, ones[0:1, 0:1], accumulate=False)
    tile = sbm.stack((2 * half, 1), nl.float32, name)
    nisa.tensor_copy(tile, psum)
    return tile


def pair_spans(table, contiguous, which):
    """[(first element, count, their values in a table [d/2, B, S] in HBM)] of part m of a head in
    parts, `which`: (m, parts)."""
    half = table.shape[0]
    rows = table.shape[1] * table.shape[2]
    m, parts = which
    size = 2 * half // parts
    if parts == 1 and contiguous:
        return [(0, size, table.ap([[0, 2], [rows, half], [1, rows]], offset=0))]
    spans = []
    e, end = m * size, (m + 1) * size
    while e < end:
        if contiguous:
            n, pair = min(end, half if e < half else 2 * half) - e, e % half
            pattern = [[rows, n]]
        elif e % 2 == 1 or e + 1 == end:
            n, pair = 1, e // 2
            pattern = [[rows, 1]]
        else:
            n, pair = (end - e) // 2 * 2, e // 2
            pattern = [[rows, n // 2], [0, 2]]
        spans.append((e - m * size, n, table.ap(pattern + [[1, rows]], offset=pair * rows)))
        e = e + n
    return spans


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
    """([(x [d, heads*R] float32, matrix [d, d])], the instructions that write x): the sum of
    matrix^T @ x is t [d, heads, R] turned. Only of heads that are not in parts."""
    size, heads, rows = t.shape
    terms = []
    done = []
    # Engines side by side.
    for kind, table, matrix, engine in (
        ("kept", tables.cos[0], tables.same, nisa.engine.vector),
        ("turned", tables.sin[0], tables.turns[0][0], nisa.engine.gpsimd),
    ):
        x = sbm.stack(t.shape, nl.float32, f"{name}.{kind}")
        wide = table.expand_dim(1).broadcast(1, heads)
        done.append(nisa.tensor_tensor(x, t, wide, nl.multiply, engine=engine))
        terms.append((x.reshape((size, heads * rows)), matrix))
    return terms, done
