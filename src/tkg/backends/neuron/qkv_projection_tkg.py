"""Q, K and V of the new tokens, transposed: head dimension on the partitions.

    qkv[c, n, r] = (sum_h x[r, h] * W[h, n*d + c]) * scale + bias        x [P, J, R], h = p*J + j

Weights are stationary ([P, d] of one j and one head n), the few tokens move: 64 cycles of the
tensor engine a 128 x 128 weights. With two cores each sums over its half of h, and the halves are
added.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.fp8_codes import reader_of, values_of
from tkg.backends.neuron.layout import (
    BANK,
    FP8_MAX,
    PMAX,
    RESERVE_BYTES,
    RING,
    WEIGHT_BLOCK_BYTES,
    exchange,
    factors,
    per_head_columns,
    scalar_column,
)
from tkg.backends.neuron.sbuf_manager import bytes_of, row_bytes
from tkg.contract.quantization import QuantizationType

SUM_BANKS = 6  # of PSUM's 8, for sums that grow over all weights


def qkv_projection_tkg(sbm, x, split, weight, sections, quantization, scales):
    """qkv [d, heads, R] float32, a new tile.

    `weight` [H, heads*d] in HBM. `sections`: (q heads, kv heads, d). `scales`: (bias [1, heads*d],
    weight scale, input scale) in HBM, each or None. The weights' buffers stay on the heap, for the
    caller to free as the ring "qkv.weights": given to the next weights they would hold up loading.
    """
    q_heads, kv_heads, d_head = sections
    heads = q_heads + 2 * kv_heads
    bias, weight_scale, input_scale = scales
    rows = x.shape[2]
    qkv = sbm.stack((d_head, heads, rows), nl.float32, "qkv")
    sbm.open_scope("qkv_projection")
    if quantization == QuantizationType.STATIC:
        x = quantize(sbm, x, input_scale)
    parts = factors(sbm, x, weight.dtype, "qkv.x")
    sums = sbm.stack((d_head, heads, rows), nl.float32, "qkv.sums")
    accumulate_heads(sbm, parts, split, weight, sums)
    sums = exchange(sbm, sums, nl.add, "qkv")
    bias_columns = per_head_columns(sbm, bias, d_head, heads, "qkv.bias")
    if quantization == QuantizationType.ROW:
        columns = per_head_columns(sbm, weight_scale, d_head, heads, "qkv.scale")
        factor = columns.expand_dim(2).broadcast(2, rows)
        nisa.tensor_tensor(sums, sums, factor, nl.multiply)
    elif quantization == QuantizationType.STATIC:
        undo_static(sbm, sums, sections, weight_scale, input_scale)
    if bias == None:
        nisa.tensor_copy(qkv, sums)
    else:
        nisa.tensor_tensor(qkv, sums, bias_columns.expand_dim(2).broadcast(2, rows), nl.add)
    sbm.close_scope()
    return qkv


def accumulate_heads(sbm, parts, split, weight, sums):
    """sums [d, heads, R] = the sums over this core's h. `parts` sum to x. They grow in PSUM where
    it can hold all of them, else each weight block's are added up in SBUF."""
    d_head, heads, rows = sums.shape
    columns = weight.shape[1]
    per_bank = max(1, BANK // rows)
    spans = [(first, min(per_bank, heads - first)) for first in range(0, heads, per_bank)]
    stay = len(spans) <= SUM_BANKS
    banks = sum_banks(d_head, spans, rows) if stay else []
    size = max(1, WEIGHT_BLOCK_BYTES // (PMAX * columns * bytes_of(weight.dtype)))
    size = min(size, split.count)
    # On the heap, so that loading need not wait for the scratch of earlier stages; as deep as there
    # is room, so that in the DMA queue the weights come before the cache, which is needed later.
    shape = (split.partitions(), size, columns)
    codes = reader_of(sbm, shape, weight.dtype, "qkv.codes")
    spare = (sbm.room() - RESERVE_BYTES) // row_bytes(shape, weight.dtype)
    depth = max(RING, min(-(-split.count // size), spare))
    ring = sbm.allocate_ring(depth, shape, weight.dtype, "qkv.weights")
    for start in range(0, split.count, size):
        tile = ring[start // size % depth]
        count = min(size, split.count - start)
        if codes != None and split.last > 0:
            # All of the tile is turned into bfloat16, also rows past the last.
            nisa.memset(tile, 0)
        load_rows(tile, weight, split, start, count)
        block = values_of(codes, tile[:, 0:count, :])
        for i in range(len(spans)):
            first, n = spans[i]
            here = sums[:, first : first + n, :]
            psum = banks[i] if stay else nl.ndarray(here.shape, nl.float32, buffer=nl.psum)
            multiply_block(psum, parts, split, block, (start, first * d_head), stay and start > 0)
            last = start + count == split.count
            if stay and last or not stay and start == 0:
                nisa.tensor_copy(here, psum)
            elif not stay:
                nisa.tensor_tensor(here, psum, here, nl.add)


def sum_banks(d_head, spans, rows):
    """A PSUM tile for each span (first, count) of heads."""
    banks = []
    for _, count in spans:
        banks.append(nl.ndarray((d_head, count, rows), nl.float32, buffer=nl.psum))
    return banks


def multiply_block(psum, parts, split, block, place, add):
    """psum [d, n, R] (+)= the sums over a weight block's columns j. `place`: its first j, and the
    first column of the first head."""
    start, column = place
    d_head = psum.shape[0]
    for n in range(psum.shape[1]):
        c = column + n * d_head
        for j in range(block.shape[1]):
            height = split.height(start + j)
            stationary = block[0:height, j, c : c + d_head]
            for i in range(len(parts)):
                moving = parts[i][0:height, start + j, :]
                nisa.nc_matmul(psum[:, n, :], stationary, moving, accumulate=add or j + i > 0)


def load_rows(tile, weight, split, first, count):
    """Rows h = p*J + j of this core's columns j = first .. first+count, as [P, count, columns]."""
    columns = weight.shape[1]
    for p, partitions, j, n in split.spans(first, count):
        source = weight.ap(
            [[split.width * columns, partitions], [columns, n], [1, columns]],
            offset=(p * split.width + split.first + j) * columns,
        )
        nisa.dma_copy(tile[p : p + partitions, j - first : j - first + n, :], source)


def quantize(sbm, x, input_scale):
    """fp8(clip(x / input_scale, +-240)), as a new float8_e4m3 tile."""
    inverse = sbm.stack((PMAX, 1), nl.float32, "qkv.inverse_scale")
    scalar_column(inverse, input_scale)
    nisa.reciprocal(inverse, inverse)
    wide = sbm.stack(x.shape, nl.float32, "qkv.x_scaled")
    column = inverse[0 : x.shape[0], :]
    nisa.tensor_scalar(wide, x, nl.multiply, column, op1=nl.minimum, operand1=FP8_MAX)
    quantized = sbm.stack(x.shape, nl.float8_e4m3, "qkv.x_fp8")
    nisa.tensor_scalar(quantized, wide, nl.maximum, -FP8_MAX)
    return quantized


def undo_static(sbm, sums, sections, weight_scale, input_scale):
    """sums *= input_scale * weight_scale, whose columns are one for all, or one for Q, K and V."""
    q_heads, kv_heads, d_head = sections
    factor = sbm.stack((PMAX, 3), nl.float32, "qkv.factor")
    inputs = sbm.stack((PMAX, 1), nl.float32, "qkv.input_scale")
    scalar_column(inputs, input_scale)
    three = weight_scale.shape[1] == 3
    repeat = 0 if weight_scale.shape[0] == 1 else weight_scale.shape[1]
    source = weight_scale.ap([[repeat, PMAX], [1 if three else 0, 3]], offset=0)
    nisa.dma_copy(factor, source)
    nisa.tensor_scalar(factor, factor, nl.multiply, inputs)
    bounds = (0, q_heads, q_heads + kv_heads, q_heads + 2 * kv_heads)
    for i in range(3):
        part = sums[:, bounds[i] : bounds[i + 1], :]
        nisa.tensor_scalar(part, part, nl.multiply, factor[0:d_head, i : i + 1])
