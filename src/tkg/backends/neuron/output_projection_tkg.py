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

from tkg.backends.neuron.fp8_codes import reader_of, values_of
from tkg.backends.neuron.layout import (
    BANK,
    FP8_MAX,
    PMAX,
    RING,
    broadcast_row,
    column_block,
    factors,
    fold_heads,
    head_parts,
    hidden_share,
    load_small,
    scalar_column,
)
from tkg.backends.neuron.sbuf_manager import SbufManager, bytes_of, row_bytes
from tkg.contract.quantization import QuantizationType

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
):
    """The projection; see the module for shapes. `attention` may be an SBUF tile [D, B, N, S].

    Returns `out` in HBM, or with OUT_IN_SB this core's part in SBUF: [B*S, Hl], or transposed
    [128, H2, B*S]. `sbm` provides SBUF; a returned tile is on its heap as "output_projection.out".
    `wait_for`: instructions that come before the weights' loads.
    """
    manager = SbufManager() if sbm == None else sbm
    first, share = hidden_share(weight.shape[1])
    check_shapes(attention, weight, share, TRANSPOSE_OUT)
    source = Weights(weight, wait_for)
    rows = attention.shape[1] * attention.shape[3]
    fold = fold_heads(attention.shape[0], attention.shape[2], attention.buffer != nl.sbuf)
    out_dtype = attention.dtype
    if OUT_IN_SB:
        shape = (PMAX, share // PMAX, rows) if TRANSPOSE_OUT else (rows, share)
        out = manager.allocate(shape, out_dtype, "output_projection.out")
    manager.open_scope("output_projection")
    x = load_attention(manager, attention, fold)
    factor = None
    if quantization_type == QuantizationType.STATIC:
        x, factor = quantize_static(manager, x, input_scale, weight_scale)
    x = factors(manager, x, weight.dtype, "output_projection.x")
    scale = weight_scale if quantization_type == QuantizationType.ROW else None
    after = (bias, scale, factor)
    if not OUT_IN_SB:
        lnc = nl.num_programs(0)
        shape = (PMAX, lnc, share // PMAX, rows) if TRANSPOSE_OUT else (rows, weight.shape[1])
        out = nl.ndarray(shape, out_dtype, buffer=nl.shared_hbm, name="out")
    if TRANSPOSE_OUT and OUT_IN_SB:
        project_transposed(manager, x, source, after, out)
    elif TRANSPOSE_OUT:
        shape = (PMAX, share // PMAX, rows)
        result = manager.stack(shape, out_dtype, "output_projection.result")
        project_transposed(manager, x, source, after, result)
        nisa.dma_copy(out[:, nl.program_id(0), :, :], result)
    elif not OUT_IN_SB and weights_stay(rows, share):
        # Fewer cycles than with the weights moving. A row's columns lie side by side on chip too:
        # DMA moves them in long pieces.
        shape = (PMAX, rows, share // PMAX)
        result = manager.stack(shape, out_dtype, "output_projection.result")
        project_transposed(manager, x, source, after, result.permute((0, 2, 1)))
        target = out[:, first : first + share].reshape_dim(1, (PMAX, share // PMAX))
        nisa.dma_copy(target.permute((1, 0, 2)), result)
    else:
        target = out if OUT_IN_SB else out[:, first : first + share]
        project_rows(manager, x, source, after, target, OUT_IN_SB)
    manager.close_scope()
    return out


class Weights(nl.NKIObject):
    """The weights [N*D, H] in HBM, and the instructions that come before their loads."""

    def __init__(self, weight, wait_for):
        self.weight = weight
        self.wait_for = wait_for

    def load(self, tile, pattern, offset):
        load = nisa.dma_copy(tile, self.weight.ap(pattern, offset=offset))
        if len(self.wait_for) > 0:
            load.depends_on(*self.wait_for)


def check_shapes(attention, weight, share, transposed):
    """The kernel's limits; the host refuses such calls with the same reasons."""
    d_head, batch, heads, tokens = attention.shape
    assert heads * d_head == weight.shape[0], (
        f"output_projection_tkg: weight has {weight.shape[0]} rows, attention {heads}*{d_head}"
    )
    assert batch * tokens <= BANK, f"output_projection_tkg: B*S is {batch * tokens}, at most {BANK}"
    if transposed:
        assert share % PMAX == 0, f"output_projection_tkg: H/LNC is {share}, not a multiple of 128"


def weights_stay(rows, share):
    """Whether stationary weights, max(64, R) cycles a 128 x 128 of them, beat moving ones, 128, and
    PSUM holds all sums."""
    if share % PMAX != 0 or rows > PMAX // 2:
        return False
    return -(-(share // PMAX) // (BANK // rows)) <= nl.tile_size.psum_num_banks - 2


def load_attention(manager, attention, fold):
    """The activations as [K, G, R]: `fold` heads after each other on the partitions, or the equal
    parts of a head that is larger than they are as contraction tiles of their own."""
    d_head, batch, heads, tokens = attention.shape
    parts = head_parts(d_head)
    by_head = attention.permute((0, 2, 1, 3))
    if fold * parts == 1 and attention.buffer == nl.sbuf and by_head.is_contiguous():
        return by_head.reshape((d_head, heads, batch * tokens))
    size = d_head // parts
    groups = heads * parts // fold
    x = manager.stack((fold * size, groups, batch * tokens), attention.dtype, "output_projection.x")
    view = x.reshape((fold * size, heads // fold, parts, batch, tokens))
    for i in range(fold):
        for part in range(parts):
            # Head g*fold + i goes to partitions i*D .. (i+1)*D of contraction tile g.
            target = view[i * size : (i + 1) * size, :, part, :, :]
            source = attention.rearrange(
                ("d", "b", ("g", "f"), "s"), ("d", "g", "b", "s", "f"), {"f": fold}
            )[part * size : (part + 1) * size, :, :, :, i]
            if attention.buffer == nl.sbuf:
                nisa.tensor_copy(target, source)
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
    source.load(block, [[hidden, rows], [rows * hidden, depth // rows], [1, count]], first)
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
                nisa.dma_copy(target, result)
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


def project_transposed(manager, x, source, after, result):
    """result [128, H2, R]: weights stationary, activations moving; h1 on partitions."""
    bias, scale, factor = after
    weight = source.weight
    partitions, groups, rows = x[0].shape
    first, share = hidden_share(weight.shape[1])
    tiles = share // PMAX
    step = 2 if x[0].dtype == nl.float8_e4m3 and groups % 2 == 0 else 1
    shape = (partitions, step, share)
    codes = reader_of(manager, shape, weight.dtype, "output_projection.codes")
    spare = (manager.room() - RESULT_BYTES) // row_bytes(shape, weight.dtype)
    depth = max(1, min(groups // step, max(RING, spare)))
    ring = manager.allocate_ring(depth, shape, weight.dtype, "output_projection.weights")
    offset = column_per_partition(manager, bias, first, tiles, "output_projection.bias")
    multiplier = column_per_partition(manager, scale, first, tiles, "output_projection.scale")
    per_bank = BANK // rows
    spans = [(t, min(per_bank, tiles - t)) for t in range(0, tiles, per_bank)]
    fits = len(spans) <= nl.tile_size.psum_num_banks
    sums = []
    if fits:
        for _, count in spans:
            sums.append(nl.ndarray((PMAX, count, rows), nl.float32, buffer=nl.psum))
    else:
        total = manager.stack((PMAX, tiles, rows), nl.float32, "output_projection.total")
        for start, count in spans:
            sums.append(total[:, start : start + count, :])
    for g in range(0, groups, step):
        now = [part[:, g : g + step, :] for part in x]
        weights = load_contraction(ring[(g // step) % depth], source, g, step, first)
        weights = values_of(codes, weights)
        for i in range(len(spans)):
            start, count = spans[i]
            psum = sums[i] if fits else nl.ndarray((PMAX, count, rows), nl.float32, buffer=nl.psum)
            for t in range(count):
                columns = slice(start + t, share, tiles)
                contract(psum[:, t, :], now, weights, columns, False, fits and g > 0)
            if not fits and g == 0:
                nisa.tensor_copy(sums[i], psum)
            elif not fits:
                nisa.tensor_tensor(sums[i], psum, sums[i], nl.add)
    for i in range(len(spans)):
        start, count = spans[i]
        finish(
            result[:, start : start + count, :],
            sums[i],
            spread(offset, start, count, rows),
            spread(multiplier, start, count, rows),
            factor,
        )
    manager.free_ring("output_projection.weights")


def load_contraction(tile, source, g, count, first):
    """This core's columns of contraction tiles g .. g+count, [K, count, Hl], into `tile`."""
    rows = tile.shape[0]
    hidden = source.weight.shape[1]
    pattern = [[hidden, rows], [rows * hidden, count], [1, tile.shape[2]]]
    source.load(tile, pattern, g * rows * hidden + first)
    return tile


def column_per_partition(manager, row, first, tiles, name):
    """Columns of a [1 or 128, H] HBM row as [128, H2]: h1 on partitions; None stays None."""
    if row == None:
        return None
    tile = manager.stack((PMAX, tiles), row.dtype, name)
    load_small(tile, row.ap([[tiles, PMAX], [1, tiles]], offset=first))
    return tile


def spread(tile, start, count, rows):
    """[128, count] of a column tile as [128, count, rows], without a copy; None stays None."""
    if tile == None:
        return None
    return tile[:, start : start + count].expand_dim(2).broadcast(2, rows)
