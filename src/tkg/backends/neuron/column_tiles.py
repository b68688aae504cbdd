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
MOST_COLUMNS = 4096  # of a core, up to which DMA is not what takes longest


def goes_in_tiles(weight, static, bias):
    """Whether columns of the weights [N*D, H] may go in tiles: where DMA brings them faster than
    they are multiplied otherwise, and there is not more to do after that. `static`: whether the
    activations are FP8 too."""
    few = weight.shape[1] // nl.num_programs(0) <= MOST_COLUMNS and bias == None
    return weight.dtype == nl.float8_e4m3 and not static and weight.shape[0] >= LEAST_ROWS and few


def tiled_columns(rows, share):
    """How many of a core's `share` columns go in tiles: all but the last TILED, if that is any."""
    if rows > QUADRANT or share % TILED > 0:
        return 0
    return share - TILED


def load_tile_rows(manager, row, count, name):
    """The first `count` of this core's columns of a row [1 or 128, H] in HBM, as `project_tiled`
    has them: [128, chunks, 256], on the first partition of each tile; None stays None."""
    if row == None:
        return None
    tile = manager.stack((PMAX, count // TILED, WIDTH), row.dtype, name)
    first = nl.program_id(0) * (row.shape[1] // nl.num_programs(0))
    for i in range(TILES):
        pattern = [[1, 1], [TILED, count // TILED], [1, WIDTH]]
        source = row.ap(pattern, offset=first + i * WIDTH)
        load_small(tile[i * QUADRANT : i * QUADRANT + 1, :, :], source)
    return tile


def project_tiled(manager, x, stream, columns, where):
    """[128, 256]: chunk c of TILED columns; `where`: (c, dtype). `x`: tiles [K, G, 32] that sum to
    the activations; `stream`: the chunk's weights."""
    c, dtype = where
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
    scale = columns.tiled_scale
    if scale != None:
        # Now, since earlier Vector has more urgent work.
        scale = scale[:, c, :]
        nisa.nc_stream_shuffle(scale, scale, [0] * QUADRANT)
    result = manager.stack((PMAX, WIDTH), dtype, f"output_projection.tiled.{c}")
    finish(result, psum, None, scale, None)
    return result


def write_tiled(results, out, first, rows):
    """Writes the chunks to out [R, H] in HBM, columns `first`.. . To be called behind the last
    columns' writes: those go before these."""
    for c in range(len(results)):
        # Scalar's queue is slow: it takes some of what is there in good time.
        early = len(results) - c > 2
        for i in range(TILES):
            at = first + c * TILED + i * WIDTH
            target = out[:, at : at + WIDTH]
            move = load_small if early and i > 0 else copy
            move(target, results[c][i * QUADRANT : i * QUADRANT + rows, :])


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
