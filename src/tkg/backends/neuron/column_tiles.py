"""Columns of the output projection that go through a quarter of the tensor engine's columns each.

The engine works on tiles of 32 of its 128 columns side by side. With the activations of up to 32
rows as stationary operands [K, 32] in each, 4 x 256 columns of the weights move through them in 256
cycles; as stationary operands they take 8 times 64. So it keeps up with FP8 weights. The sums of
tile i come out on partitions 32*i.. . The last columns do not go this way: there is more to do
after the last multiply.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import PMAX, QUADRANT, copy, load_small

TILES = PMAX // QUADRANT
WIDTH = 256  # columns of a tile: no fewer than fill the engine's least time
TILED = TILES * WIDTH
LEAST_ROWS = 4 * PMAX  # of weights, from which multiplying takes longer than what comes after
BESIDE = 8  # the first partition of a DMA engine that brings no other small rows
MOST_COLUMNS = 4096  # of a core, up to which DMA is not what takes longest


def goes_in_tiles(weight, static, bias, rows):
    """Whether columns of the weights [N*D, H] may go in tiles: where DMA brings them faster than
    they are multiplied otherwise, and there is not more to do after that, as there is with a bias
    that has to be spread over `rows`. `static`: whether the activations are FP8 too."""
    few = weight.shape[1] // nl.num_programs(0) <= MOST_COLUMNS and (bias == None or rows == 1)
    return weight.dtype == nl.float8_e4m3 and not static and weight.shape[0] >= LEAST_ROWS and few


def tiled_columns(rows, share):
    """How many of a core's `share` columns go in tiles: all but the last TILED, if that is any."""
    if rows > QUADRANT or share % TILED > 0:
        return 0
    return share - TILED


def first_row(rows):
    """Where R = `rows` rows begin in a tile: one lies where its scale comes to."""
    return BESIDE if rows == 1 else 0


def tiled_shape(count):
    """`count` columns as they come out of the tiles."""
    return PMAX, count // TILED, WIDTH


def load_tile_rows(manager, row, count, rows, name):
    """The first `count` of this core's columns of a row [1 or 128, H] in HBM, as `project_tiled`
    takes them for R = `rows`: [128, chunks, 256], on partition BESIDE of each tile; None stays
    None."""
    if row == None:
        return None
    tile = manager.stack(tiled_shape(count), row.dtype, name)
    if rows == 1:
        # Not spread, but all partitions are multiplied.
        nisa.memset(tile, 0.0, engine=nisa.engine.gpsimd)
    first = nl.program_id(0) * (row.shape[1] // nl.num_programs(0))
    for i in range(TILES):
        pattern = [[1, 1], [TILED, count // TILED], [1, WIDTH]]
        source = row.ap(pattern, offset=first + i * WIDTH)
        start = i * QUADRANT + BESIDE
        load_small(tile[start : start + 1, :, :], source)
    return tile


def project_tiled(x, stream, columns, result, c):
    """Chunk c of TILED columns, into `result` [128, chunks, 256], of which rows of the activations
    count. `x`: tiles [K, G, 32] that sum to them; `stream`: the chunk's weights."""
    psum = nl.ndarray((PMAX, WIDTH), nl.float32, buffer=nl.psum)
    for g in range(x[0].shape[1]):
        weights = stream.load(g)
        for i in range(TILES):
            sums = psum[i * QUADRANT : (i + 1) * QUADRANT, :]
            moving = weights[:, 0, i * WIDTH : (i + 1) * WIDTH]
            for p in range(len(x)):
                nisa.nc_matmul(
                    sums,
                    x[p][:, g, :],
                    moving,
                    accumulate=g + p > 0,
                    tile_position=(0, i * QUADRANT),
                    tile_size=(PMAX, QUADRANT),
                )
    after = []
    for tile in columns.tiled_after:
        tile = None if tile == None else tile[:, c, :]
        if tile != None and columns.rows > 1:
            nisa.nc_stream_shuffle(tile, tile, [BESIDE] * QUADRANT)
        after.append(tile)
    finish(result[:, c, :], psum, after[0], after[1], None)


def write_tiled(result, out, first, rows):
    """Writes the chunks to out [R, H] in HBM, columns `first`.. . To be called behind the last
    columns' writes: those go before these."""
    chunks = result.shape[1]
    target = out[:, first : first + chunks * TILED].reshape_dim(1, (chunks, TILES, WIDTH))
    for i in range(TILES):
        start = i * QUADRANT + first_row(rows)
        copy(target[:, :, i, :], result[start : start + rows, :, :])


def finish(result, psum, bias, scale, factor):
    """result = psum * scale * factor + bias, each where it is there; cast to the result's dtype."""
    if factor != None and bias != None:
        nisa.scalar_tensor_tensor(result, psum, nl.multiply, factor, nl.add, bias)
    elif factor != None:
        nisa.tensor_scalar(result, psum, nl.multiply, factor)
    elif scale != None and bias != None:
        nisa.tensor_tensor(psum, psum, scale, nl.multiply)
        nisa.tensor_tensor(result, psum, bias, nl.add)
    elif scale != None:
        nisa.tensor_tensor(result, psum, scale, nl.multiply)
    elif bias != None:
        nisa.tensor_tensor(result, psum, bias, nl.add)
    else:
        nisa.tensor_copy(result, psum)
