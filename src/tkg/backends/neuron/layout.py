"""What the kernels share: sizes, how a hidden dimension is split, small operands spread on chip."""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.sbuf_manager import bytes_of

PMAX = 128  # partitions
BANK = 512  # float32 elements of a PSUM bank in one partition
QUADRANT = 32  # partitions that a stream shuffle works within
FP8_MAX = 240.0  # of float8_e4m3 (docs/fp8.md)
RING = 3  # buffers for what streams in: one in use, two on their way
RESERVE_BYTES = 84 * 1024  # a partition, that the QKV weights leave to the stages after them
WEIGHT_BLOCK_BYTES = 1 << 20  # of one weight transfer: long enough to hide its fixed cost


def hidden_share(hidden):
    """(first column, columns) of this core's part of a hidden dimension."""
    share = hidden // nl.num_programs(0)
    return nl.program_id(0) * share, share


def head_parts(d_head):
    """Into how many equal parts a head is cut so that each fits the partitions."""
    parts = -(-d_head // PMAX)
    while d_head % parts > 0 or d_head // parts > PMAX:
        parts = parts + 1
    return parts


def fold_heads(attention):
    """How many heads fit on the partitions after each other. Between SBUF tiles an engine moves
    them, and may start only at multiples of 32 partitions."""
    d_head = attention.shape[0]
    heads = attention.shape[2]
    fold = 1
    for count in range(2, PMAX // d_head + 1):
        if heads % count == 0 and (attention.buffer != nl.sbuf or d_head in (32, 64)):
            fold = count
    return fold


def column_block(partitions, groups, dtype):
    """Columns of a weight block of about WEIGHT_BLOCK_BYTES, a multiple of a PSUM bank's."""
    row = partitions * groups * bytes_of(dtype)
    return max(BANK, min(2048, WEIGHT_BLOCK_BYTES // row // BANK * BANK))


def scalar_column(column, scale):
    """A scale given as [1, 1] or [128, 1] in HBM, on every partition of `column` [128, 1]."""
    if scale.shape[0] == PMAX:
        nisa.dma_copy(column, scale[:, 0:1])
    else:
        nisa.dma_copy(column, scale.ap([[0, PMAX], [1, 1]], offset=0))


def broadcast_row(manager, row, rows, first, count, name):
    """Columns first..first+count of a [1 or 128, n] HBM row, on at least `rows` partitions, in its
    own dtype; None stays None. It is read once, copied to each quadrant's first partition, and
    shuffled to the other partitions there."""
    if row == None:
        return None
    quadrants = -(-rows // QUADRANT)
    tile = manager.stack((quadrants * QUADRANT, count), row.dtype, name)
    nisa.dma_copy(tile[0:1, :], row[0:1, first : first + count])
    for q in range(1, quadrants):
        nisa.dma_copy(tile[q * QUADRANT : q * QUADRANT + 1, :], tile[0:1, :])
    for q in range(quadrants):
        part = tile[q * QUADRANT : (q + 1) * QUADRANT, :]
        nisa.nc_stream_shuffle(part, part, [0] * QUADRANT)
    return tile


def exchange(sbm, tile, op, name):
    """op(this core's tile, the other core's), the same on both; the tile itself on one core."""
    if nl.num_programs(0) == 1:
        return tile
    other = sbm.stack(tile.shape, tile.dtype, name + ".other")
    both = sbm.stack(tile.shape, tile.dtype, name + ".both")
    peer = 1 - nl.program_id(0)
    nisa.sendrecv(tile, other, peer, peer, pipe_id=0)
    nisa.tensor_tensor(both, tile, other, op)
    return both


def per_head_columns(sbm, row, d_head, heads, name):
    """Columns [1 or 128, heads*d] of an HBM row as [d, heads] float32; None stays None."""
    if row == None:
        return None
    tile = sbm.stack((d_head, heads), row.dtype, name + ".raw")
    nisa.dma_copy(tile, row.ap([[1, d_head], [d_head, heads]], offset=0))
    wide = sbm.stack((d_head, heads), nl.float32, name)
    nisa.tensor_copy(wide, tile)
    return wide


def factors(sbm, x, dtype, name):
    """Tiles that sum to x exactly, each of which the tensor engine multiplies by `dtype`: float32
    goes with float32 only, so a float32 x meets narrower operands as three bfloat16 parts."""
    if bytes_of(dtype) == 4 and x.dtype != nl.float32:
        wide = sbm.stack(x.shape, nl.float32, name + ".wide")
        nisa.tensor_copy(wide, x)
        return [wide]
    if bytes_of(dtype) == 4 or x.dtype != nl.float32:
        return [x]
    parts = []
    rest = x
    for i in range(3):
        part = sbm.stack(x.shape, nl.bfloat16, f"{name}.part.{i}")
        nisa.tensor_copy(part, rest)
        parts.append(part)
        if i < 2:
            left = sbm.stack(x.shape, nl.float32, f"{name}.rest.{i}")
            nisa.tensor_tensor(left, rest, part, nl.subtract)
            rest = left
    return parts
