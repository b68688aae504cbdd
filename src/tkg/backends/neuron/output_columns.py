"""How the columns of the output projection lie where the weights are the stationary operands."""

import nki.language as nl

from tkg.backends.neuron.column_tiles import first_row, load_tile_rows, tiled_columns
from tkg.backends.neuron.layout import BANK, PMAX, RING, load_small
from tkg.backends.neuron.sbuf_manager import bytes_of, row_bytes

CHUNK_TILES = 8  # least columns of a row on a partition, in a chunk of them


class OutputColumns(nl.NKIObject):
    """How a core's Hl columns of the output come out of stationary weights:
    h = c*Hl/C + h1*H2 + h2 with h1 on partitions, in C `chunks` of H2 `tiles`. `stay`: whether the
    weights are stationary; `offset`, `multiplier`: bias and scale as [128, C, H2], each or None.

    The first `tiled` columns lie as `column_tiles` says, and so do their bias and scale,
    `tiled_after`. `padded`: a tile [K, G, 32] of zeros that the activations lie in, or None;
    `place`: the slice of 32 that they take where columns are tiled.

    Made early by the block: beside the projection's weights the small DMAs would come late.
    """

    def __init__(self, share, rows, kept, in_tiles):
        """`kept`: whether the output is transposed, and whether it stays in SBUF; `in_tiles`:
        whether columns may go in tiles."""
        transposed, in_sbuf = kept
        self.rows = rows
        self.stay = transposed or (not in_sbuf and weights_stay(rows, share))
        self.tiled = 0
        if in_tiles and self.stay and not transposed:
            self.tiled = tiled_columns(rows, share)
        start = first_row(rows) if self.tiled > 0 else 0
        self.place = slice(start, start + rows)
        rest = share - self.tiled
        self.chunks = 1 if transposed or not self.stay else column_chunks(rows, rest)
        self.tiles = rest // PMAX // self.chunks
        self.first = nl.program_id(0) * share + self.tiled
        self.offset = None
        self.multiplier = None
        self.tiled_after = []
        self.padded = None

    def load(self, manager, bias, scale):
        """Bias and scale, each [1 or 128, H] in HBM or None. Moving weights need them as rows,
        which would take room for as long as they are there."""
        if self.stay:
            self.offset = self.column_tile(manager, bias, "output_projection.bias")
            self.multiplier = self.column_tile(manager, scale, "output_projection.scale")
        if self.tiled > 0:
            name = "output_projection.tiled_"
            for row, what in ((bias, "bias"), (scale, "scale")):
                tile = load_tile_rows(manager, row, self.tiled, self.rows, name + what)
                self.tiled_after.append(tile)

    def column_tile(self, manager, row, name):
        if row == None:
            return None
        tile = manager.stack((PMAX, self.chunks, self.tiles), row.dtype, name)
        pattern = [[self.tiles, PMAX], [self.tiles * PMAX, self.chunks], [1, self.tiles]]
        load_small(tile, row.ap(pattern, offset=self.first))
        return tile


def weights_stay(rows, share):
    """Whether stationary weights, max(64, R) cycles a 128 x 128 of them, beat moving ones, 128, and
    PSUM holds all sums."""
    if share % PMAX != 0 or rows > PMAX // 2:
        return False
    return -(-(share // PMAX) // (BANK // rows)) <= nl.tile_size.psum_num_banks - 2


def column_chunks(rows, share):
    """Chunks of columns: the last one's weights are all that has to be multiplied once everything
    has arrived. A row's pieces of a chunk stay long enough for DMA, and few where rows are many."""
    most = 4 if rows == 1 else 2 if rows <= 16 else 1
    tiles = share // PMAX
    fitting = [n for n in range(1, most + 1) if tiles % n == 0 and tiles // n >= CHUNK_TILES]
    return max([1] + fitting)


def spread(tile, chunk, span, rows):
    """Columns (first, count) of a chunk of a column tile as [128, count, rows], without a copy;
    None stays None."""
    if tile == None:
        return None
    first, count = span
    return tile[:, chunk, first : first + count].expand_dim(2).broadcast(2, rows)


def columns_that_fit(manager, groups, dtype, share, others):
    """Columns of a weight block for which there is room, 64 at least. `others`: the output, of
    which two blocks are kept; bias and scale, each a row of `share` columns or None."""
    out, bias, scale = others
    room = manager.room()
    for row in (bias, scale):
        if row != None:
            room = room - row_bytes((1, share), row.dtype)
    # Codes are turned into bfloat16 beside the ring.
    extra = 3 if dtype == nl.uint8 else 0
    column = (RING * bytes_of(dtype) + extra) * groups + 2 * bytes_of(out.dtype)
    return max(64, room // column // 64 * 64)
