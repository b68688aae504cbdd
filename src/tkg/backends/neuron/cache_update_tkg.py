"""New K and V into the cache, or into outputs of their own.

One token a row of the batch, or a slot for each token: one DMA whose index vector names a cache
row for each new row (2^32-1 is out of bounds, which skips it). Several tokens from one slot on:
one DMA a row of the batch, at a run-time offset. A transposed K cache takes a column a row of the
batch.

With two cores the first writes K and the second V, after both have read the caches.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import PMAX, copy, load_small


def row_spans(rows, tokens):
    """[(first, count)]: the rows of the tiles of `rows_of_heads`."""
    step = PMAX // tokens * tokens
    return [(first, min(step, rows - first)) for first in range(0, rows, step)]


def rows_of_heads(sbm, t, dtype, name, tokens=1):
    """t [d, kv, R] float32 as rows of `dtype`: tiles [n, kv*d] of as many rows as the partitions
    hold, whole rows of the batch with their `tokens`."""
    d_head, kv_heads, rows = t.shape
    tiles = row_tiles(sbm, t.shape, dtype, name, tokens)
    fill_rows(tiles, t)
    return tiles


def row_tiles(sbm, shape, dtype, name, tokens):
    """The tiles of `rows_of_heads` for heads of `shape` [d, kv, R], not yet filled."""
    d_head, kv_heads, rows = shape
    spans = row_spans(rows, tokens)
    return [sbm.stack((n, kv_heads * d_head), dtype, f"{name}.{first}") for first, n in spans]


def fill_rows(tiles, t):
    """Writes t [d, kv, R] float32 as rows."""
    d_head, kv_heads, rows = t.shape
    first = 0
    for tile in tiles:
        count = tile.shape[0]
        for kv in range(kv_heads):
            psum = nl.ndarray((count, d_head), nl.float32, buffer=nl.psum)
            part = t[:, kv, first : first + count]
            nisa.nc_transpose(psum, part, engine=nisa.engine.tensor)
            target = tile[:, kv * d_head : (kv + 1) * d_head]
            nisa.tensor_copy(target, psum, engine=nisa.engine.scalar)
        first = first + count


class NewTokens(nl.NKIObject):
    """The new K and V in the cache's dtype: `k`, `v` [d, kv, B, S], of a head in parts
    [d/parts, kv*parts, B, S]; `k_rows`, `v_rows`: tiles of `rows_of_heads` (none of K where it is
    written transposed). For a cache of codes (uint8) `k` and `v` are float8_e4m3, whose bits mean
    the same there."""

    def __init__(self, k, v, k_rows, v_rows, parts=1):
        self.k = k
        self.v = v
        self.k_rows = k_rows
        self.v_rows = v_rows
        self.parts = parts

    def shape(self):
        """(d, kv, B, S)."""
        size, heads, batch, tokens = self.k.shape
        return size * self.parts, heads // self.parts, batch, tokens


class Slots(nl.NKIObject):
    """Where new tokens go. `K`, `V` in HBM: flat [B, kv, S_max, d] (`transposed`: K
    [B, kv, d, S_max]) or `block` [blocks, block_len, kv, d]; `slots` [B, 1 or S] int32 in HBM, one
    for the row's `tokens`, or one for each.

    Made early: behind the stages before the update, its small DMAs would hold up those after it.
    """

    def __init__(self, sbm, caches, slots, tokens, transposed, block):
        self.K = caches[0]
        self.V = caches[1]
        self.transposed = transposed
        self.block = block
        self.each = slots.shape[1] == tokens and not transposed
        kv_heads, capacity = self.V.shape[1:3]
        if self.each:
            step = 0 if block else kv_heads * capacity
            spans = row_spans(slots.shape[0] * tokens, tokens)
            self.indices = [row_index(sbm, slots, step, tokens, span) for span in spans]
        else:
            self.table = slot_table(sbm, slots, slots.shape[0])


def cache_update_tkg(new, where, loads):
    """Writes the new tokens into the caches at `where`. `loads`: the instructions that read the
    caches; the writes come after them."""
    K, V, block = where.K, where.V, where.block
    batch, tokens = new.k.shape[2], new.k.shape[3]
    if nl.num_programs(0) == 2:
        # Both cores have read what either will write. Having met once, they have for both caches.
        met = nisa.core_barrier(K, (0, 1))
        met.depends_on(*loads)
        loads = [met]
    if where.transposed:
        first, count = own_rows(batch)
        for i in range(count):
            write_columns(new, K, where.table, first + i, batch, loads)
            write_rows_of(new.v_rows, V, where.table, (first + i, batch, tokens), block, loads)
    elif where.each:
        scatter_tokens(new, own_caches(new, K, V), where.indices, block, loads)
    else:
        for b in range(batch):
            for cache, rows in own_caches(new, K, V):
                write_rows_of(rows, cache, where.table, (b, batch, tokens), block, loads)


def own_caches(new, K, V):
    """The caches that this core writes, with the rows for them."""
    targets = [(K, new.k_rows), (V, new.v_rows)]
    if nl.num_programs(0) == 2:
        targets = [targets[nl.program_id(0)]]
    return targets


def scatter_tokens(new, targets, indices, block, loads):
    """A slot for each token: one DMA a cache and tile of rows. Another one into the same cache has
    to wait for it, since where they land is known at run time only."""
    d_head, kv_heads, batch, tokens = new.shape()
    capacity = 0 if block else targets[0][0].shape[2]
    # Elements from one slot to the next, and from one head to the next.
    slot, head = (kv_heads * d_head, d_head) if block else (d_head, capacity * d_head)
    for i in range(len(indices)):
        count = indices[i].shape[0]
        for cache, rows in targets:
            target = cache.reshape((cache.size // slot, slot)).ap(
                [[slot, count], [head, kv_heads], [1, d_head]],
                offset=0,
                vector_offset=indices[i],
                indirect_dim=0,
            )
            source = rows[i].reshape((count, kv_heads, d_head))
            write = nisa.dma_copy(target, source, oob_mode=nisa.oob_mode.skip)
            write.depends_on(*loads)


def own_rows(batch):
    """(first, count) of the batch's rows that this core writes; rows past the end are skipped."""
    count = -(-batch // nl.num_programs(0))
    return nl.program_id(0) * count, count


def slot_table(sbm, slots, batch):
    """The slots of all rows on one partition, [1, B * columns + 1]; the last is "skip"."""
    columns = slots.shape[1]
    table = sbm.stack((1, batch * columns + 1), nl.int32, "cache_update.slots")
    nisa.memset(table, -1)
    source = slots.view(nl.int32).ap([[0, 1], [1, batch * columns]], offset=0)
    load_small(table[:, 0 : batch * columns], source)
    return table


def row_index(sbm, slots, step, tokens, span):
    """The cache row of each new token of `span` (first, count), [count, 1] int32: slot + b*step."""
    first, rows = span
    index = sbm.stack((rows, 1), nl.int32, f"cache_update.index.{first}")
    load_small(index, slots.view(nl.int32).ap([[1, rows], [1, 1]], offset=first))
    if step == 0:
        return index
    line = sbm.stack((1, rows // tokens, tokens), nl.int32, f"cache_update.line.{first}")
    nisa.iota(line, [[step, rows // tokens], [0, tokens]], offset=first // tokens * step)
    base = sbm.stack((rows, 1), nl.int32, f"cache_update.base.{first}")
    load_small(base, line)
    # The sign bit of a slot marks "skip": moved to bit 30, it takes the index out of any cache.
    skip = sbm.stack((rows, 1), nl.uint32, f"cache_update.skip.{first}")
    nisa.tensor_scalar(
        skip, index.view(nl.uint32), nl.right_shift, 31, op1=nl.left_shift, operand1=30
    )
    nisa.tensor_tensor(index, index, base, nl.add, engine=nisa.engine.gpsimd)
    nisa.tensor_tensor(index, index, skip.view(nl.int32), nl.add, engine=nisa.engine.gpsimd)
    return index


def write_rows_of(rows, cache, table, place, block, loads):
    """The tokens of a row of the batch from its slot on, into a cache whose rows are positions;
    `place`: (row, batch, tokens a row)."""
    b, batch, tokens = place
    here = min(b, batch - 1)
    columns = (table.shape[1] - 1) // batch
    for t in range(columns):
        # One slot for all tokens, or one for each.
        count = tokens // columns
        at = here * columns + t if b < batch else table.shape[1] - 1
        first = here * tokens + t * count
        tile = first // rows[0].shape[0]
        first = first - tile * rows[0].shape[0]
        source = rows[tile][first : first + count, :]
        slot = table[:, at : at + 1]
        if block:
            base = cache.reshape((cache.shape[0] * cache.shape[1], source.shape[1]))
            target = base.ap(
                [[source.shape[1], count], [1, source.shape[1]]],
                offset=0,
                scalar_offset=slot,
                indirect_dim=0,
            )
            nisa.dma_copy(target, source, oob_mode=nisa.oob_mode.skip).depends_on(*loads)
        else:
            kv_heads, capacity, d_head = cache.shape[1:]
            for kv in range(kv_heads):
                target = cache.ap(
                    [[d_head, count], [1, d_head]],
                    offset=(here * kv_heads + kv) * capacity * d_head,
                    scalar_offset=slot,
                    indirect_dim=2,
                )
                part = source[:, kv * d_head : (kv + 1) * d_head]
                nisa.dma_copy(target, part, oob_mode=nisa.oob_mode.skip).depends_on(*loads)


def write_columns(new, K, table, b, batch, loads):
    """The tokens of row b into a transposed K cache [B, kv, d, S_max]."""
    here = min(b, batch - 1)
    d_head, kv_heads = new.k.shape[0:2]
    capacity = K.shape[3]
    K = K.reshape((batch, kv_heads, d_head, capacity))
    tokens = new.k.shape[3]
    columns = (table.shape[1] - 1) // batch
    count = tokens // columns
    for t in range(columns):
        at = here * columns + t if b < batch else table.shape[1] - 1
        for kv in range(kv_heads):
            target = K.ap(
                [[capacity, d_head], [1, count]],
                offset=(here * kv_heads + kv) * d_head * capacity,
                scalar_offset=table[:, at : at + 1],
                indirect_dim=3,
            )
            source = new.k[:, kv, here, t * count : (t + 1) * count].view(K.dtype)
            nisa.dma_copy(target, source, oob_mode=nisa.oob_mode.skip).depends_on(*loads)


def new_outputs(new, dtype, with_heads):
    """K [d, B, S] and V [B, 1, S, d] in HBM (with a KV-head axis: [kv, d, B, S], [B, kv, S, d])."""
    d_head, kv_heads, batch, tokens = new.shape()
    shape = (kv_heads, d_head, batch, tokens) if with_heads else (d_head, batch, tokens)
    K_out = nl.ndarray(shape, dtype, buffer=nl.shared_hbm, name="K_new")
    V_out = nl.ndarray((batch, kv_heads, tokens, d_head), dtype, buffer=nl.shared_hbm, name="V_new")
    k_target = K_out.reshape((new.k.shape[1], new.k.shape[0], batch, tokens)).permute((1, 0, 2, 3))
    k_source = new.k.view(dtype)
    v_target = V_out.permute((0, 2, 1, 3))
    core, cores = nl.program_id(0), nl.num_programs(0)
    if core == 0:
        copy(k_target, k_source)
    if core == cores - 1:
        first = 0
        for tile in new.v_rows:
            count = tile.shape[0] // tokens
            copy(v_target[first : first + count, :, :, :], tile)
            first = first + count
    return K_out, V_out
