"""K and V of a context, group by group, from a flat, transposed or block cache.

    keys(unit, group)    K^T: [d, 128 positions] for each l, a stationary operand
    values(unit, group)  V: [128 positions, d] for each l, with slots that do not count set to 0

A *unit* is one row of the batch and one KV head. HBM is read once, straight into the form that the
tensor engine takes: K is transposed by the DMA engines on its way (a transposed cache needs none).
A cache of one byte an element is transposed as pairs of elements: K^T then comes as the even and
the odd elements of d, [d/2, 128] each.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.fp8_codes import reader_of, values_of
from tkg.backends.neuron.layout import PMAX, RING, head_parts, load_small
from tkg.backends.neuron.sbuf_manager import bytes_of, row_bytes

RING_BYTES = 40 * 1024  # a partition, for the keys (and again for the values) on their way


class CacheReader(nl.NKIObject):
    """Reads the caches of one call.

    `K`, `V` in HBM: flat [B, kv, S_max, d] (K transposed: [B, kv, d, S_max]) or block
    [blocks, block_len, kv, d]; uint8: the codes of float8_e4m3fn, which come out as bfloat16.
    `rows`: for a block cache, the run of each (partition, group, b).
    `loads` collects the instructions that read the caches.
    """

    def __init__(self, sbm, K, V, context, transposed, rows):
        self.K = K
        self.V = V
        self.context = context
        self.transposed = transposed
        self.rows = rows
        self.d_head = V.shape[3]
        self.paired = bytes_of(K.dtype) == 1 and not transposed
        # DMA gathers and transposes at once only up to two bytes an element.
        self.turned = bytes_of(K.dtype) == 4 and rows != None
        self.loads = []
        self.turn = 0
        self.value_turn = 0
        run = context.run
        # K^T of a head that is larger than the partitions lies there in equal parts.
        width = self.d_head // 2 if self.paired else self.d_head
        self.key_parts = head_parts(width)
        self.key_width = width // self.key_parts
        keys = (self.key_width, self.key_parts, run * PMAX * (2 if self.paired else 1))
        # Small tiles need more of them under way to hide the fixed cost of a DMA.
        row = row_bytes(keys, K.dtype)
        self.depth = max(RING, min(16, RING_BYTES // row))
        self.key_ring = sbm.ring(self.depth, keys, K.dtype, "cache.keys")
        # Which (b, kv, group) each tile of a ring holds.
        self.held = [(-1, -1, -1) for _ in range(self.depth)]
        self.held_values = [(-1, -1, -1) for _ in range(self.depth)]
        if self.turned:
            self.key_rows = sbm.stack((PMAX, run, self.d_head), K.dtype, "cache.key_rows")
        self.value_ring = sbm.ring(self.depth, (PMAX, run, self.d_head), V.dtype, "cache.values")
        self.key_codes = reader_of(sbm, keys, K.dtype, "cache.keys")
        self.value_codes = reader_of(sbm, (PMAX, run, self.d_head), V.dtype, "cache.values")
        if self.key_codes != None:
            # All of a tile of keys is turned into bfloat16, also what no position of it is.
            for tile in self.key_ring:
                nisa.memset(tile, 0)
        # In PSUM: Vector takes one input from there and one from SBUF at twice the speed of two
        # from SBUF.
        self.zero = nl.ndarray((PMAX, 1), word_of(V.dtype, self.d_head), buffer=nl.psum)
        nisa.memset(self.zero, 0)

    def keys(self, b, kv, group):
        """The tile with K^T of a group, [width, parts, positions]; `key_columns` cuts it. One that
        is in the ring is not read again."""
        for i in range(self.depth):
            if self.held[i] == (b, kv, group):
                return values_of(self.key_codes, self.key_ring[i])
        self.held[self.turn % self.depth] = (b, kv, group)
        tile = self.key_ring[self.turn % self.depth]
        self.turn = self.turn + 1
        run = self.context.run
        height = self.context.height(group)
        first = self.context.first_run(group) * run
        if self.turned:
            self.turn_keys(tile, b, kv, group)
        else:
            for part in range(self.key_parts):
                if self.rows != None:
                    self.gather_keys(tile[:, part, :], b, kv, group, part)
                else:
                    self.load_keys(tile[:, part, :], b, kv, (first, height * run), part)
        return values_of(self.key_codes, tile)

    def load_keys(self, tile, b, kv, span, part):
        """Positions (first, count) of a flat cache, one part of K^T."""
        first, count = span
        here = slice(part * self.key_width, (part + 1) * self.key_width)
        if self.transposed:
            source = self.K[b, kv, here, first : first + count]
            self.loads.append(nisa.dma_copy(tile[:, 0:count], source))
        elif self.paired:
            source = self.K[b, kv, first : first + count, :].view(nl.bfloat16)[:, here]
            target = tile.view(nl.bfloat16)[:, 0:count]
            self.loads.append(nisa.dma_transpose(target, source))
        else:
            source = self.K[b, kv, first : first + count, here]
            self.loads.append(nisa.dma_transpose(tile[:, 0:count], source))

    def gather_keys(self, tile, b, kv, group, part):
        """Position (partition p, l) of the group becomes column l*128 + p. The gather takes rows by
        the sixteen; those past the group's end are run 0 again, which nothing reads."""
        blocks, block_len, kv_heads, d_head = self.K.shape
        run = self.context.run
        count = -(-self.context.height(group) // 16) * 16
        row = d_head
        base = self.K.reshape((blocks * (block_len // run), run * kv_heads * d_head))
        target = tile
        if self.paired:
            base = base.view(nl.bfloat16)
            target = tile.view(nl.bfloat16)
            row = d_head // 2
        offset = kv * row + part * self.key_width
        row = kv_heads * row
        source = base.ap(
            [[run * row, count], [row, run], [row, 1], [1, self.key_width]],
            offset=offset,
            vector_offset=self.rows.runs[0:count, group, b : b + 1],
            indirect_dim=0,
        )
        columns = target.reshape((self.key_width, run, 1, PMAX))[:, :, :, 0:count]
        self.loads.append(nisa.dma_transpose(columns, source))

    def turn_keys(self, tile, b, kv, group):
        """The same as `gather_keys`, turned by the tensor engine."""
        run = self.context.run
        height = self.context.height(group)
        rows = self.key_rows[0:height, :, :]
        self.gather_runs(rows, self.K, b, kv, group)
        for l in range(run):
            for part in range(self.key_parts):
                here = slice(part * self.key_width, (part + 1) * self.key_width)
                psum = nl.ndarray((self.key_width, height), self.K.dtype, buffer=nl.psum)
                nisa.nc_transpose(psum, rows[:, l, here], engine=nisa.engine.tensor)
                nisa.tensor_copy(tile[:, part, l * PMAX : l * PMAX + height], psum)

    def gather_runs(self, target, cache, b, kv, group):
        """The runs of a group, [128, run, d], from a block cache."""
        blocks, block_len, kv_heads, d_head = cache.shape
        run = self.context.run
        height = self.context.height(group)
        row = kv_heads * d_head
        base = cache.reshape((blocks * (block_len // run), run * row))
        source = base.ap(
            [[run * row, height], [row, run], [1, d_head]],
            offset=kv * d_head,
            vector_offset=self.rows.runs[0:height, group, b : b + 1],
            indirect_dim=0,
        )
        self.loads.append(nisa.dma_copy(target, source))

    def key_columns(self, tile, group, l, part):
        """[width, positions] of tile l: one part of d; for a paired cache parts alternate between
        the even and the odd elements."""
        run = self.context.run
        height = self.context.height(group)
        step = 1 if self.rows != None else run
        first = l * PMAX if self.rows != None else l
        last = first + (height - 1) * step + 1
        if not self.paired:
            return tile[:, part, first:last:step]
        return tile[:, part // 2, 2 * first + part % 2 : 2 * last : 2 * step]

    def values(self, b, kv, group, slots):
        """V of a group, [128, run, d]; `slots` [128, tiles] uint8 has 0 where V must not be used,
        None: V as it is. A tile that is in the ring with its slots cleared is not read again."""
        run = self.context.run
        height = self.context.height(group)
        for i in range(self.depth):
            if slots != None and self.held_values[i] == (b, kv, group):
                return values_of(self.value_codes, self.value_ring[i][0:height, :, :])
        self.held_values[self.value_turn % self.depth] = (b, kv, group)
        tile = self.value_ring[self.value_turn % self.depth]
        self.value_turn = self.value_turn + 1
        first = self.context.first_run(group) * run
        target = tile[0:height, :, :]
        if self.rows != None:
            self.gather_runs(target, self.V, b, kv, group)
        else:
            source = self.V[b, kv, first : first + height * run, :]
            self.loads.append(nisa.dma_copy(target, source))
        if slots != None:
            words = target.view(self.zero.dtype)
            width = words.shape[2]
            tiles = slice(group * run, (group + 1) * run)
            here = slots[0:height, tiles].expand_dim(2).broadcast(2, width)
            zeros = self.zero[0:height, :].expand_dim(2).broadcast(1, run).broadcast(2, width)
            nisa.tensor_copy_predicated(words, zeros, here, reverse_pred=True)
        return values_of(self.value_codes, target)


def word_of(dtype, d_head):
    """The widest integer that the elements of a row fill."""
    return nl.int32 if d_head * bytes_of(dtype) % 4 == 0 else nl.int16


class BlockRows(nl.NKIObject):
    """Where the runs of a block cache are. `runs` [128, groups, B] uint32: the run's number in the
    cache, 0 where there is none."""

    def __init__(self, runs):
        self.runs = runs


def block_rows(sbm, table, context, blocks, block_len):
    """From the block table [B, n] in HBM. Entries outside the cache count as block 0: nothing that
    may be attended to is there."""
    batch, columns = table.shape
    run = context.run
    pieces = block_len // run
    runs = sbm.stack((PMAX, context.groups, batch), nl.uint32, "cache.runs")
    sbm.open_scope("cache.rows")
    raw = sbm.stack((PMAX, context.groups, batch), nl.int32, "cache.table")
    nisa.memset(raw, 0)
    for group in range(context.groups):
        height = context.height(group)
        full, rest = height // pieces, height % pieces
        first = context.first_run(group) // pieces
        assert rest == 0, "a context is whole blocks"
        source = table.view(nl.int32).ap([[1, full], [0, pieces], [columns, batch]], offset=first)
        load_small(raw[0:height, group, :], source)
    nisa.tensor_scalar(raw, raw, nl.maximum, 0.0, op1=nl.minimum, operand1=float(blocks - 1))
    piece = sbm.stack((PMAX, 1), nl.int32, "cache.partition")
    nisa.iota(piece, [[1, 1]], channel_multiplier=1)
    nisa.tensor_scalar(piece, piece, nl.bitwise_and, pieces - 1)
    part = sbm.stack((PMAX, 1), nl.float32, "cache.piece")
    nisa.tensor_copy(part, piece)
    nisa.tensor_scalar(runs, raw, nl.multiply, float(pieces), op1=nl.add, operand1=part)
    sbm.close_scope()
    return BlockRows(runs)
