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
from tkg.backends.neuron.layout import PMAX, RING, copy, copy_turned, head_parts, load_small
from tkg.backends.neuron.sbuf_manager import SMALL, bytes_of, row_bytes

FINE_TILES = 4  # of V, up to which it is cleared in smaller pieces
AHEAD_BYTES = 1 << 20  # of the last loads, that others need not wait for
GATHERED_AHEAD_BYTES = 1 << 19  # the same where GpSimd starts them
LAST_GATHERS = 3  # that GpSimd has started when the first of them is done
GATHER_BYTES = 220000  # that DMA moves while GpSimd starts a gather, in 0.6 us
LAST_TILES = 6  # of V, that are cleared when the last gathers have been started
MOST_TILES = 16  # of a ring
PIECE_BYTES = 1 << 18  # of V that is loaded and cleared at once
RING_BYTES = 80 * 1024  # a partition, for the keys and values on their way


class CacheReader(nl.NKIObject):
    """Reads the caches of one call.

    `K`, `V` in HBM: flat [B, kv, S_max, d] (K transposed: [B, kv, d, S_max]) or block
    [blocks, block_len, kv, d]; uint8: the codes of float8_e4m3fn, which come out as bfloat16.
    `rows`: for a block cache, the run of each (partition, group, b). `batch`: how many rows of the
    batch are read, which whoever has only some of them read may lower.
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
        self.sizes = []  # bytes of each
        self.wait_for = []  # what the gathers of a block cache come after
        self.beside = 0  # bytes of the weights that come meanwhile
        self.turn = 0
        self.value_turn = 0
        self.pieces = 0
        run = context.run
        # K^T of a head that is larger than the partitions lies there in equal parts.
        width = self.d_head // 2 if self.paired else self.d_head
        self.key_parts = head_parts(width)
        self.key_width = width // self.key_parts
        keys = (self.key_width, self.key_parts, run * PMAX * (2 if self.paired else 1))
        # Where there is little of V, what is left to do when it has come counts most.
        self.batch = V.shape[0] if rows == None else rows.runs.shape[2]
        self.fine = self.batch * context.groups <= FINE_TILES
        # What else GpSimd would do, where it has many gathers to start.
        self.by = nisa.engine.gpsimd
        if rows != None and not self.fine:
            self.by = nisa.engine.vector
        # Small tiles need more of them under way to hide the fixed cost of a DMA.
        row = row_bytes(keys, K.dtype) + row_bytes((PMAX, run, self.d_head), V.dtype)
        self.depth = max(RING, min(MOST_TILES, RING_BYTES // row))
        # Keys are fetched a pass before the values.
        more = 1 if RING + 1 < self.depth < MOST_TILES else 0
        self.key_ring = sbm.ring(self.depth + more, keys, K.dtype, "cache.keys")
        # Which (b, kv, group) each tile of a ring holds.
        self.held = [(-1, -1, -1) for _ in range(self.depth + more)]
        self.held_values = [(-1, -1, -1) for _ in range(self.depth - more)]
        if self.turned:
            self.key_rows = sbm.stack((PMAX, run, self.d_head), K.dtype, "cache.key_rows")
        values = (PMAX, run, self.d_head)
        self.value_ring = sbm.ring(self.depth - more, values, V.dtype, "cache.values")
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
        """The tile with K^T of a group, [width, parts, positions]; `key_columns` cuts it."""
        return values_of(self.key_codes, self.fetch_keys(b, kv, group))

    def come_after(self, loads, weights):
        """Has the gathers of a block cache come after `loads`, of `weights` in HBM; but not where
        starting them takes longer than all those weights."""
        column = weights.shape[0] * bytes_of(weights.dtype)
        self.beside = weights.shape[1] * column
        if self.rows == None or self.gathers_of_both() * GATHER_BYTES <= self.beside:
            self.wait_for = loads
            self.beside = 2 * self.V.shape[2] * self.d_head * column

    def gathers_of_both(self):
        """How many DMAs gather the keys and values of all rows."""
        units = self.batch * self.K.shape[2] * self.context.groups
        return 2 * units * len(self.pieces_of(self.V))

    def note(self, load, elements, dtype):
        """Keep a load in `loads`."""
        self.loads.append(load)
        self.sizes.append(elements * bytes_of(dtype))

    def gathers(self, load, elements):
        """The same for a load of a block cache, which GpSimd starts: it comes in its turn."""
        if len(self.wait_for) > 0:
            load.depends_on(*self.wait_for)
        self.note(load, elements, self.K.dtype)

    def near_end(self):
        """[the last load with so much after it that what waits for it comes in time]."""
        ahead = AHEAD_BYTES if self.rows == None else GATHERED_AHEAD_BYTES
        # Whether DMA waits for GpSimd to start them, and they are not all in its queue before.
        slow = self.rows != None and len(self.loads) * GATHER_BYTES > self.beside + sum(self.sizes)
        after = 0
        for i in range(len(self.loads) - 1, -1, -1):
            late = slow and len(self.loads) - i == LAST_GATHERS
            if after >= ahead or late:
                return [self.loads[i]]
            after = after + self.sizes[i]
        return []

    def fetch_keys(self, b, kv, group):
        """A group's tile as it is stored. One that is in the ring is not read again."""
        depth = len(self.key_ring)
        for i in range(depth):
            if self.held[i] == (b, kv, group):
                return self.key_ring[i]
        self.held[self.turn % depth] = (b, kv, group)
        tile = self.key_ring[self.turn % depth]
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
        return tile

    def load_keys(self, tile, b, kv, span, part):
        """Positions (first, count) of a flat cache, one part of K^T."""
        first, count = span
        here = slice(part * self.key_width, (part + 1) * self.key_width)
        if self.transposed:
            source = self.K[b, kv, here, first : first + count]
            load = copy(tile[:, 0:count], source)
        elif self.paired:
            source = self.K[b, kv, first : first + count, :].view(nl.bfloat16)[:, here]
            target = tile.view(nl.bfloat16)[:, 0:count]
            load = copy_turned(target, source)
        else:
            source = self.K[b, kv, first : first + count, here]
            load = copy_turned(tile[:, 0:count], source)
        self.note(load, count * self.V.shape[3] // self.key_parts, self.K.dtype)

    def pieces_of(self, cache):
        """[(first, count)] of a run's positions that are gathered at once: all of them, but some
        where there is little, so that work begins when the first come."""
        run = self.context.run
        step = run
        if self.fine:
            step = max(1, PIECE_BYTES // (PMAX * self.d_head * bytes_of(cache.dtype)))
        return [(l, min(step, run - l)) for l in range(0, run, step)]

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
        columns = target.reshape((self.key_width, run, 1, PMAX))[:, :, :, 0:count]
        for l, n in self.pieces_of(self.K):
            source = base.ap(
                [[run * row, count], [row, n], [row, 1], [1, self.key_width]],
                offset=offset + l * row,
                vector_offset=self.rows.runs[0:count, group, b : b + 1],
                indirect_dim=0,
            )
            load = nisa.dma_transpose(columns[:, l : l + n, :, :], source)
            self.gathers(load, n * count * d_head // self.key_parts)

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
        for l, n in self.pieces_of(cache):
            source = base.ap(
                [[run * row, height], [row, n], [1, d_head]],
                offset=kv * d_head + l * row,
                vector_offset=self.rows.runs[0:height, group, b : b + 1],
                indirect_dim=0,
            )
            self.gathers(nisa.dma_copy(target[:, l : l + n, :], source), height * n * d_head)

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

    def values(self, b, kv, group, slots, factors=None):
        """V of a group, [128, run, d]; `slots` [128, tiles] uint8 has 0 where V must not be used,
        None: V as it is. `factors`: the same as int32, 0 or 1, or None."""
        return values_of(self.value_codes, self.fetch_values(b, kv, group, slots, factors))

    def fetch_values(self, b, kv, group, slots, factors):
        """V of a group as it is stored. A tile that is in the ring with its slots cleared is not
        read again."""
        run = self.context.run
        height = self.context.height(group)
        depth = len(self.value_ring)
        for i in range(depth):
            if slots != None and self.held_values[i] == (b, kv, group):
                return self.value_ring[i][0:height, :, :]
        self.held_values[self.value_turn % depth] = (b, kv, group)
        tile = self.value_ring[self.value_turn % depth]
        self.value_turn = self.value_turn + 1
        first = self.context.first_run(group) * run
        target = tile[0:height, :, :]
        if self.rows != None:
            self.gather_runs(target, self.V, b, kv, group)
        source = self.V
        if self.rows == None:
            source = self.V[b, kv, first : first + height * run, :]
            source = source.reshape((height, run, self.d_head))
        # Piece by piece, so that little is left to do when the last one comes.
        step = max(1, PIECE_BYTES // (PMAX * self.d_head * bytes_of(self.V.dtype)))
        for l in range(0, run, step):
            n = min(step, run - l)
            part = target[:, l : l + n, :]
            if self.rows == None:
                load = copy(part, source[:, l : l + n, :])
                self.note(load, height * n * self.d_head, self.V.dtype)
            half = -(-n // 2) if self.fine else n
            for i in range(0, n, half):
                m = min(half, n - i)
                if slots != None:
                    at = group * run + l + i
                    mask = factors if self.gpsimd_clears(factors) else slots
                    self.clear(part[:, i : i + m, :], mask[0:height, at : at + m])
        return target

    def gpsimd_clears(self, factors):
        """Whether GpSimd takes the next piece: one in three, where it can, one in two where they
        are small; one in two of the last tiles where it has been busy with gathers."""
        self.pieces = self.pieces + 1
        if factors == None:
            return False
        if self.by == nisa.engine.gpsimd:
            return self.pieces % (2 if self.fine else 3) == 0
        tiles = self.batch * self.K.shape[2] * self.context.groups
        return self.pieces % 2 == 0 and self.value_turn > tiles - LAST_TILES

    def clear(self, values, slots):
        """Zeros in `values` [positions, n, d] where `slots` [positions, n] has 0. Of int32 slots
        GpSimd makes the products, exact for integers: a NaN's bits become 0."""
        words = values.view(self.zero.dtype)
        height, n, width = words.shape
        here = slots.expand_dim(2).broadcast(2, width)
        if slots.dtype == nl.int32:
            nisa.tensor_tensor(words, words, here, nl.multiply, engine=nisa.engine.gpsimd)
            return
        zeros = self.zero[0:height, :].expand_dim(2).broadcast(1, n).broadcast(2, width)
        nisa.tensor_copy_predicated(words, zeros, here, reverse_pred=True)


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
    may be attended to is there. They are read as they lie and turned on chip, each repeated for the
    runs of its block: DMA would move single elements, and the gathers wait for them."""
    batch, columns = table.shape
    run = context.run
    pieces = block_len // run
    runs = sbm.stack((PMAX, context.groups, batch), nl.uint32, "cache.runs")
    sbm.open_scope("cache.rows")
    last = context.height(context.groups - 1)
    if context.runs % PMAX != 0:  # the last group is short; of two cores both run the same
        nisa.memset(runs, 0)
    assert last % pieces == 0, "a context is whole blocks"
    count = ((context.groups - 1) * PMAX + last) // pieces
    part = piece_of_block(sbm, pieces)
    for row in range(0, batch, PMAX):
        n = min(PMAX, batch - row)
        raw = sbm.stack((n, count), nl.int32, f"cache.table.{row}")
        first = row * columns + context.first_run(0) // pieces
        source = table.view(nl.int32).ap([[columns, n], [1, count]], offset=first)
        # One row's gathers come after most of Q's weights: Sync's queue begins with X.
        load = load_small if batch == 1 else copy
        load(raw, source)
        entries = sbm.stack((n, count), nl.float32, f"cache.entries.{row}")
        nisa.tensor_scalar(
            entries, raw, nl.maximum, 0.0, op1=nl.minimum, operand1=float(blocks - 1)
        )
        for group in range(context.groups):
            height = context.height(group)
            start = group * PMAX // pieces
            repeated = entries[:, start : start + height // pieces].expand_dim(2)
            psum = nl.ndarray((height, n), nl.float32, buffer=nl.psum)
            nisa.nc_transpose(psum, repeated.broadcast(2, pieces), engine=nisa.engine.tensor)
            nisa.tensor_scalar(
                runs[0:height, group, row : row + n], psum, nl.multiply, float(pieces),
                op1=nl.add, operand1=part[0:height, :],
            )  # fmt: skip
    sbm.close_scope(SMALL)
    return BlockRows(runs)


def piece_of_block(sbm, pieces):
    """[128, 1] float32: of each partition's run the place in its block of so many runs."""
    whole = sbm.stack((PMAX, 1), nl.int32, "cache.partition")
    nisa.iota(whole, [[1, 1]], channel_multiplier=1)
    nisa.tensor_scalar(whole, whole, nl.bitwise_and, pieces - 1)
    part = sbm.stack((PMAX, 1), nl.float32, "cache.piece")
    nisa.tensor_copy(part, whole)
    return part
