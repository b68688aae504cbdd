"""out = attention @ weight + bias for a few tokens, on one core or an LNC pair.

    out[r, h] = scale[h] * sum_{n,d} attention[d, b, n, s] * weight[n*D + d, h] + bias[h]

with r = b*S + s.

    attention [D, B, N, S] in HBM or SBUF     weight [N*D, H], bias [1, H] in HBM
    out [B*S, H], or transposed [128, LNC, H2, B*S] with h = core*Hl + h1*H2 + h2, Hl = H / LNC

Each core makes its own Hl columns; nothing is exchanged.

    PMAX = 128        partitions
    K                 rows of `weight` in a contraction tile: heads are folded into it, K = fold*D
    G                 contraction tiles, N*D / K

Rows on partitions (out [R, H]): the activations are stationary [K, R], the weights stream through
as the moving operand [K, 512], one PSUM bank a 512 columns.
Transposed: the weights are stationary, the 128 columns {h1*H2 + h2} of one h2 at a time, and the
activations [K, R] move; the result has h1 on partitions.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.column_tiles import (
    TILED,
    finish,
    goes_in_tiles,
    project_tiled,
    tiled_shape,
    write_tiled,
)
from tkg.backends.neuron.fp8_codes import reader_of, values_of
from tkg.backends.neuron.layout import (
    BANK,
    FP8_MAX,
    PMAX,
    QUADRANT,
    RING,
    broadcast_row,
    column_block,
    copy,
    factors,
    fold_heads,
    head_parts,
    hidden_share,
    load_small,
    scalar_column,
)
from tkg.backends.neuron.output_columns import OutputColumns, columns_that_fit, spread
from tkg.backends.neuron.projection_weights import Weights, WeightStream
from tkg.backends.neuron.sbuf_manager import SbufManager, row_bytes
from tkg.contract.quantization import QuantizationType

WRITTEN_ROWS = 4  # of the output, that are scaled and written at once
RESULT_BYTES = 48 * 1024  # a partition, that the weights leave to bias, scale and results


def output_projection_tkg(
    attention,
    weight,
    bias=None,
    quantization_type=QuantizationType.NONE,
    weight_scale=None,
    input_scale=None,
    TRANSPOSE_OUT=False,
    OUT_IN_SB=False,
    sbm=None,
    wait_for=(),
    columns=None,
):
    """The projection; see the module for shapes. `attention` may be an SBUF tile [D, B, N, S].

    Returns `out` in HBM, or with OUT_IN_SB this core's part in SBUF: [B*S, Hl], or transposed
    [128, H2, B*S]. `sbm` provides SBUF; a returned tile is on its heap as "output_projection.out".
    `wait_for`: instructions that come before the weights' loads. `columns`: the `OutputColumns` of
    this projection, if they were made before.
    """
    manager = SbufManager() if sbm == None else sbm
    first, share = hidden_share(weight.shape[1])
    check_shapes(attention, weight, share, TRANSPOSE_OUT)
    source = Weights(weight, wait_for)
    rows = attention.shape[1] * attention.shape[3]
    scale = weight_scale if quantization_type == QuantizationType.ROW else None
    fold = fold_heads(attention.shape[0], attention.shape[2], attention.buffer != nl.sbuf)
    out_dtype = attention.dtype
    if OUT_IN_SB:
        shape = (PMAX, share // PMAX, rows) if TRANSPOSE_OUT else (rows, share)
        out = manager.allocate(shape, out_dtype, "output_projection.out")
    manager.open_scope("output_projection")
    if columns == None:
        static = quantization_type == QuantizationType.STATIC
        tiled = goes_in_tiles(weight, static, bias, rows)
        columns = OutputColumns(share, rows, (TRANSPOSE_OUT, OUT_IN_SB), tiled)
        columns.load(manager, bias, scale)
    x = load_attention(manager, attention, fold, columns)
    factor = None
    if quantization_type == QuantizationType.STATIC:
        x, factor = quantize_static(manager, x, input_scale, weight_scale)
    x = factors(manager, x, weight.dtype, "output_projection.x")
    if not OUT_IN_SB:
        lnc = nl.num_programs(0)
        shape = (PMAX, lnc, share // PMAX, rows) if TRANSPOSE_OUT else (rows, weight.shape[1])
        out = nl.ndarray(shape, out_dtype, buffer=nl.shared_hbm, name="out")
    after = (columns, factor)
    if TRANSPOSE_OUT and OUT_IN_SB:
        project_transposed(manager, x, source, after, out.expand_dim(1))
    elif TRANSPOSE_OUT:
        shape = (PMAX, 1, share // PMAX, rows)
        result = manager.stack(shape, out_dtype, "output_projection.result")
        project_transposed(manager, x, source, after, result)
        copy(out[:, nl.program_id(0), :, :], result[:, 0, :, :])
    elif columns.stay:
        # A row's columns lie side by side on chip too: DMA moves them in long pieces.
        shape = (PMAX, columns.chunks, rows, columns.tiles)
        result = manager.stack(shape, out_dtype, "output_projection.result")
        project_transposed(manager, x, source, after, result.permute((0, 1, 3, 2)), out)
    else:
        target = out if OUT_IN_SB else out[:, first : first + share]
        project_rows(manager, x, source, (bias, scale, factor), target, OUT_IN_SB)
    manager.close_scope()
    return out


def check_shapes(attention, weight, share, transposed):
    """The kernel's limits; the host refuses such calls with the same reasons."""
    d_head, batch, heads, tokens = attention.shape
    assert heads * d_head == weight.shape[0], (
        f"output_projection_tkg: weight has {weight.shape[0]} rows, attention {heads}*{d_head}"
    )
    assert batch * tokens <= BANK, f"output_projection_tkg: B*S is {batch * tokens}, at most {BANK}"
    if transposed:
        assert share % PMAX == 0, f"output_projection_tkg: H/LNC is {share}, not a multiple of 128"


def load_attention(manager, attention, fold, columns):
    """The activations as [K, G, R]: `fold` heads after each other on the partitions, or the equal
    parts of a head that is larger than they are as contraction tiles of their own. With columns in
    tiles [K, G, 32], 0 but for the rows."""
    d_head, batch, heads, tokens = attention.shape
    parts = head_parts(d_head)
    by_head = attention.permute((0, 2, 1, 3))
    if columns.padded != None:
        return columns.padded
    rows = batch * tokens
    width = QUADRANT if columns.tiled > 0 else rows
    if width == rows and fold * parts == 1 and attention.buffer == nl.sbuf:
        if by_head.is_contiguous():
            return by_head.reshape((d_head, heads, rows))
    size = d_head // parts
    groups = heads * parts // fold
    x = manager.stack((fold * size, groups, width), attention.dtype, "output_projection.x")
    if width > rows:
        nisa.memset(x, 0.0, engine=nisa.engine.gpsimd)
    view = x[:, :, columns.place].reshape_dim(2, (batch, tokens))
    view = view.reshape_dim(1, (heads // fold, parts))
    for i in range(fold):
        for part in range(parts):
            # Head g*fold + i goes to partitions i*D .. (i+1)*D of contraction tile g.
            target = view[i * size : (i + 1) * size, :, part, :, :]
            source = attention.rearrange(
                ("d", "b", ("g", "f"), "s"), ("d", "g", "b", "s", "f"), {"f": fold}
            )[part * size : (part + 1) * size, :, :, :, i]
            if attention.buffer == nl.sbuf:
                # Engines in turn, so that they work at once.
                by = nisa.engine.gpsimd if (i + part) % 2 == 1 else nisa.engine.vector
                nisa.tensor_copy(target, source, engine=by)
            else:
                load_small(target, source)
    return x


def quantize_static(manager, x, input_scale, weight_scale):
    """x_q = fp8(clip(x / input_scale)); and the column that undoes both scales, [128, 1]."""
    partitions, groups, rows = x.shape
    inverse = manager.stack((PMAX, 1), nl.float32, "output_projection.inverse_scale")
    factor = manager.stack((PMAX, 1), nl.float32, "output_projection.factor")
    scalar_column(inverse, input_scale)
    scalar_column(factor, weight_scale)
    nisa.tensor_tensor(factor, factor, inverse, nl.multiply)
    nisa.reciprocal(inverse, inverse)
    wide = manager.stack(x.shape, nl.float32, "output_projection.x_scaled")
    nisa.tensor_scalar(
        wide, x, nl.multiply, inverse[0:partitions, :], op1=nl.minimum, operand1=FP8_MAX
    )
    quantized = manager.stack(x.shape, nl.float8_e4m3, "output_projection.x_fp8")
    nisa.tensor_scalar(quantized, wide, nl.maximum, -FP8_MAX)
    return quantized, factor


def contract(psum, parts, weights, columns, weights_move, add=False):
    """psum (+)= the sum over contraction tiles g of x[:, g, :] and weights[:, g, columns], where
    `parts` sum to x.

    FP8 activations with FP8 weights go two tiles at a time (double_row).
    """
    groups = parts[0].shape[1]
    both_fp8 = parts[0].dtype == nl.float8_e4m3 and weights.dtype == nl.float8_e4m3
    paired = both_fp8 and groups % 2 == 0
    step = 2 if paired else 1
    mode = nisa.matmul_perf_mode.double_row if paired else nisa.matmul_perf_mode.none
    for g in range(0, groups, step):
        w = weights[:, g : g + 2, columns] if paired else weights[:, g, columns]
        for i in range(len(parts)):
            a = parts[i][:, g : g + 2, :] if paired else parts[i][:, g, :]
            nisa.nc_matmul(
                psum,
                a if weights_move else w,
                w if weights_move else a,
                accumulate=add or g + i > 0,
                perf_mode=mode,
            )


def load_weights(ring, turn, source, rows, first, count):
    """`count` columns of all contraction tiles, [K, G, count], into the next tile of the ring."""
    tile = ring[turn % len(ring)]
    depth, hidden = source.weight.shape
    block = tile[0:rows, :, 0:count]
    pattern = [[hidden, rows], [rows * hidden, depth // rows], [1, count]]
    source.load(block, pattern, first, first + count == source.end)
    return block


def project_rows(manager, x, source, after, out, in_sbuf):
    """out [R, Hl]: activations stationary, weights moving. `x`: parts that sum to it; `source`:
    `Weights`; `after`: the bias, scale and factor of the sums, each or None."""
    bias, scale, factor = after
    weight = source.weight
    partitions, groups, rows = x[0].shape
    first, share = hidden_share(weight.shape[1])
    width = min(share, column_block(partitions, groups, weight.dtype))
    width = min(width, columns_that_fit(manager, groups, weight.dtype, share, (out, bias, scale)))
    shape = (partitions, groups, width)
    ring = manager.allocate_ring(RING, shape, weight.dtype, "output_projection.weights")
    codes = reader_of(manager, shape, weight.dtype, "output_projection.codes")
    spread_over = min(rows, PMAX)
    offset = broadcast_row(manager, bias, spread_over, first, share, "output_projection.bias")
    multiplier = broadcast_row(manager, scale, spread_over, first, share, "output_projection.scale")
    results = manager.ring(2, (spread_over, width), out.dtype, "output_projection.result")
    blocks = [(r, min(PMAX, rows - r)) for r in range(0, rows, PMAX)]
    assert not in_sbuf or len(blocks) == 1, (
        f"output_projection_tkg: OUT_IN_SB: B*S is {rows}, at most {PMAX} unless transposed"
    )
    for turn in range(-(-share // width)):
        start = turn * width
        count = min(width, share - start)
        weights = load_weights(ring, turn, source, partitions, first + start, count)
        weights = values_of(codes, weights)
        for i in range(len(blocks)):
            r, height = blocks[i]
            block = [part[:, :, r : r + height] for part in x]
            target = out[r : r + height, start : start + count]
            result = target if in_sbuf else results[(turn + i) % 2][0:height, 0:count]
            rows_of_block(block, weights, (offset, multiplier, factor), result, start)
            if not in_sbuf:
                copy(target, result)
    manager.free_ring("output_projection.weights")


def rows_of_block(x, weights, after, result, start):
    """result [R, columns] of up to 128 rows; `after`: bias and scale on the partitions, of which
    the block's columns begin at `start`, and the factor; each or None."""
    offset, multiplier, factor = after
    rows, count = result.shape
    for c in range(0, count, BANK):
        n = min(BANK, count - c)
        psum = nl.ndarray((rows, n), nl.float32, buffer=nl.psum)
        contract(psum, x, weights, slice(c, c + n), True)
        here = slice(start + c, start + c + n)
        finish(
            result[:, c : c + n],
            psum,
            None if offset == None else offset[0:rows, here],
            None if multiplier == None else multiplier[0:rows, here],
            None if factor == None else factor[0:rows, :],
        )


def project_transposed(manager, x, source, after, result, target=None):
    """result [128, C, H2, R], as `OutputColumns` says: weights stationary, activations moving. One
    chunk of columns after the other; each is written to its part of `target` [R, H] in HBM, if
    there is one, while the next one's weights arrive; before them those in tiles. `after`: the
    columns, and the factor of the sums or None."""
    columns, factor = after
    weight = source.weight
    partitions, groups = x[0].shape[0:2]
    chunks, tiles = result.shape[1:3]
    first, share = hidden_share(weight.shape[1])
    rows = result.shape[3]
    step = 2 if x[0].dtype == nl.float8_e4m3 and groups % 2 == 0 else 1
    shape = (partitions, step, tiles * PMAX)
    codes = reader_of(manager, shape, weight.dtype, "output_projection.codes")
    spare = (manager.room() - RESULT_BYTES) // row_bytes(shape, weight.dtype)
    loads = groups // step * (chunks + columns.tiled // TILED)
    depth = max(1, min(loads, max(RING, spare)))
    ring = manager.allocate_ring(depth, shape, weight.dtype, "output_projection.weights")
    per_bank = BANK // rows
    spans = [(t, min(per_bank, tiles - t)) for t in range(0, tiles, per_bank)]
    total = None
    if len(spans) > nl.tile_size.psum_num_banks:
        total = manager.stack((PMAX, tiles, rows), nl.float32, "output_projection.total")
    turn = 0
    in_tiles = None
    if columns.tiled > 0:
        in_tiles = manager.stack(
            tiled_shape(columns.tiled), result.dtype, "output_projection.tiled"
        )
    for c in range(columns.tiled // TILED):
        stream = WeightStream(source, ring, codes, turn, step, first + c * TILED)
        project_tiled(x, stream, columns, in_tiles, c)
        turn = turn + groups
    out = target
    x = [part[:, :, columns.place] for part in x]
    if target != None:
        target = target[:, first + columns.tiled : first + share]
        target = target.reshape_dim(1, (chunks, PMAX, tiles)).permute((1, 2, 0, 3))
    for c in range(chunks):
        start = first + columns.tiled + c * tiles * PMAX
        stream = WeightStream(source, ring, codes, turn, step, start)
        turn = turn + groups // step
        sums = sum_columns(x, stream, spans, total, target != None)
        if target == None:
            finish_rows(sums, spans, after, c, slice(0, rows), result[:, c, :, :])
            continue
        # Some rows at a time, so that the first are on their way while the others are scaled. In
        # the order in which they lie there, a row's columns side by side.
        for r in range(0, rows, WRITTEN_ROWS):
            here = slice(r, min(r + WRITTEN_ROWS, rows))
            part = result[:, c, :, here]
            finish_rows(sums, spans, after, c, here, part, (0, 2, 1))
            copy(target[c, :, here, :], part.permute((0, 2, 1)))
    if in_tiles != None:
        write_tiled(in_tiles, out, first, rows)
    manager.free_ring("output_projection.weights")


def finish_rows(sums, spans, after, c, rows, result, order=(0, 1, 2)):
    """result [128, H2, some R] = the sums of chunk c, of each span (first, count) of H2, of some
    rows, a slice, finished; its elements are taken in `order`. `after`: as `project_transposed`."""
    columns, factor = after
    for i in range(len(spans)):
        t, count = spans[i]
        part = [result[:, t : t + count, :], sums[i][:, :, rows]]
        for tile in (columns.offset, columns.multiplier):
            part.append(spread(tile, c, spans[i], rows.stop - rows.start))
        part = [None if view == None else view.permute(order) for view in part]
        finish(part[0], part[1], part[2], part[3], factor)


def sum_columns(x, stream, spans, total, by_row):
    """[sums [128, count, R] of each span (first, count) of H2]: in PSUM, or in `total`, a tile
    [128, H2, R] in SBUF, where PSUM cannot hold all of them (else None). `by_row`: a row's lie side
    by side in PSUM."""
    groups, rows = x[0].shape[1:3]
    step = stream.step
    if total == None:
        sums = []
        for _, count in spans:
            shape = (PMAX, rows, count) if by_row else (PMAX, count, rows)
            psum = nl.ndarray(shape, nl.float32, buffer=nl.psum)
            sums.append(psum.permute((0, 2, 1)) if by_row else psum)
    else:
        sums = [total[:, t : t + count, :] for t, count in spans]
    for g in range(0, groups, step):
        now = [part[:, g : g + step, :] for part in x]
        weights = stream.load(g)
        tiles = weights.shape[2] // PMAX
        for i in range(len(spans)):
            t, count = spans[i]
            psum = sums[i]
            if total != None:
                psum = nl.ndarray((PMAX, count, rows), nl.float32, buffer=nl.psum)
            for h in range(count):
                columns = slice(t + h, PMAX * tiles, tiles)
                contract(psum[:, h, :], now, weights, columns, False, total == None and g > 0)
            if total != None and g == 0:
                nisa.tensor_copy(sums[i], psum)
            elif total != None:
                nisa.tensor_tensor(sums[i], psum, sums[i], nl.add)
    return sums
