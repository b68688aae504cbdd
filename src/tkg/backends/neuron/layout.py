"""What the kernels share: sizes, how a hidden dimension is split, small operands spread on chip."""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.sbuf_manager import bytes_of

PMAX = 128  # partitions
BANK = 512  # float32 elements of a PSUM bank in one partition
GPSIMD_ELEMENTS = 256  # of a partition that GpSimd's DMA sends (nki.isa.sendrecv)
QUADRANT = 32  # partitions that a stream shuffle works within
FP8_MAX = 240.0  # of float8_e4m3 (docs/fp8.md)
RING = 3  # buffers for what streams in: one in use, two on their way
RESERVE_BYTES = 84 * 1024  # a partition, that the QKV weights leave to the stages after them
WEIGHT_BLOCK_BYTES = 1 << 18  # of one weight transfer: long enough to hide its fixed cost


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


def fold_heads(d_head, heads, by_dma):
    """How many heads lie on the partitions after each other. An engine moves them from there to
    others and back, and may start only at multiples of 32 partitions; DMA anywhere."""
    fold = 1
    for count in range(2, PMAX // d_head + 1):
        if heads % count == 0 and (by_dma or d_head in (32, 64)):
            fold = count
    return fold


def column_block(partitions, groups, dtype):
    """Columns of a weight block of about WEIGHT_BLOCK_BYTES, a multiple of a PSUM bank's."""
    row = partitions * groups * bytes_of(dtype)
    return max(BANK, min(2048, WEIGHT_BLOCK_BYTES // row // BANK * BANK))


def copy(target, source):
    """A DMA with descriptors that lie ready in HBM: all its addresses are known when the kernel is
    built. It starts soonest, and holds Sync for a quarter of what making descriptors takes."""
    return nisa.dma_copy(target, source, dge_mode=nisa.dge_mode.none)


def copy_turned(target, source):
    """`copy` that transposes on its way."""
    return nisa.dma_transpose(target, source, dge_mode=nisa.dge_mode.none)


def load_small(tile, source):
    """A DMA that the Scalar engine's queue starts: behind the weights and caches in Sync's it would
    come late, before them it would hold them up."""
    scalar = nisa.engine.scalar
    return nisa.dma_copy(tile, source, dge_mode=nisa.dge_mode.hwdge, engine=scalar)


def scalar_column(column, scale):
    """A scale given as [1, 1] or [128, 1] in HBM, on every partition of `column` [128, 1]."""
    if scale.shape[0] == PMAX:
        load_small(column, scale[:, 0:1])
    else:
        load_small(column, scale.ap([[0, PMAX], [1, 1]], offset=0))


def broadcast_row(manager, row, rows, first, count, name):
    """Columns first..first+count of a [1 or 128, n] HBM row, on at least `rows` partitions, in its
    own dtype; None stays None. It is read once, copied to each quadrant's first partition, and
    shuffled to the other partitions there."""
    if row == None:
        return None
    quadrants = -(-rows // QUADRANT)
    tile = manager.stack((quadrants * QUADRANT, count), row.dtype, name)
    load_small(tile[0:1, :], row[0:1, first : first + count])
    for q in range(1, quadrants):
        load_small(tile[q * QUADRANT : q * QUADRANT + 1, :], tile[0:1, :])
    for q in range(quadrants):
        part = tile[q * QUADRANT : (q + 1) * QUADRANT, :]
        nisa.nc_stream_shuffle(part, part, [0] * QUADRANT)
    return tile


def exchange(sbm, tile, op, name, after=()):
    """tile = op(this core's tile, the other core's), the same on both, once the instructions
    `after` are done; nothing on one core."""
    if nl.num_programs(0) == 1:
        return
    other = sbm.stack(tile.shape, tile.dtype, name + ".other")
    swap = swap_with_peer(tile, other)
    if len(after) > 0:
        swap.depends_on(*after)
    nisa.tensor_tensor(tile, tile, other, op)


def swap_with_peer(mine, theirs):
    """`theirs` becomes the other core's `mine`: by GpSimd's own DMA, which starts sooner, where it
    takes as much. Returns the instruction."""
    peer = 1 - nl.program_id(0)
    small = mine.size // mine.shape[0] <= GPSIMD_ELEMENTS
    by = nisa.dma_engine.gpsimd_dma if small else nisa.dma_engine.dma
    return nisa.sendrecv(mine, theirs, peer, peer, pipe_id=0, dma_engine=by)


def per_head_columns(sbm, row, d_head, heads, name):
    """Columns [1 or 128, heads*d] of an HBM row as [d, heads] float32; None stays None."""
    if row == None:
        return None
    wide = sbm.stack((d_head, heads), nl.float32, name)
    for first in range(0, heads, PMAX):
        # Read as rows and turned on chip: DMA would move single elements.
        count = min(PMAX, heads - first)
        tile = sbm.stack((count, d_head), row.dtype, f"{name}.raw.{first}")
        load_small(tile, row.ap([[d_head, count], [1, d_head]], offset=first * d_head))
        psum = nl.ndarray((d_head, count), row.dtype, buffer=nl.psum)
        nisa.nc_transpose(psum, tile, engine=nisa.engine.tensor)
        nisa.tensor_copy(wide[:, first : first + count], psum)
    return wide


def reciprocal_root(result, squares, scale, eps):
    """result = 1 / sqrt(squares * scale + eps), float32; by GpSimd, so that Scalar's table stays
    that of exp."""
    nisa.tensor_scalar(result, squares, nl.multiply, scale, op1=nl.add, operand1=eps)
    nisa.tensor_scalar(result, result, nl.rsqrt, 0.0, engine=nisa.engine.gpsimd)


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
