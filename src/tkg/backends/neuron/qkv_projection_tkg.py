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
    copy,
    exchange,
    factors,
    fold_heads,
    load_small,
    per_head_columns,
    scalar_column,
)
from tkg.backends.neuron.sbuf_manager import bytes_of, row_bytes
from tkg.contract.quantization import QuantizationType

LAST_LOADS = 4  # of Q's weights, that come before what another queue loads next
SUM_BANKS = 6  # of PSUM's 8, for sums that grow over all weights


class QkvScales(nl.NKIObject):
    """What QKV sums are multiplied by and what is added, [d, heads] float32 each or None; and for
    static quantization the inverse of X's scale, [128, 1].

    Made early: among the weights in the DMA queue they would come late.
    """

    def __init__(self, sbm, sections, quantization, bias, weight_scale, input_scale):
        """`bias` [1, heads*d] and the scales in HBM, each or None."""
        q_heads, kv_heads, d_head = sections
        heads = q_heads + 2 * kv_heads
        self.bias = per_head_columns(sbm, bias, d_head, heads, "qkv.bias")
        if bias != None and nl.num_programs(0) == 2:
            # Each core adds half of it to its sums.
            nisa.tensor_scalar(self.bias, self.bias, nl.multiply, 0.5)
        self.factor = None
        self.inverse = None
        if quantization == QuantizationType.ROW:
            self.factor = per_head_columns(sbm, weight_scale, d_head, heads, "qkv.scale")
        elif quantization == QuantizationType.STATIC:
            inputs = sbm.stack((PMAX, 1), nl.float32, "qkv.input_scale")
            scalar_column(inputs, input_scale)
            self.inverse = sbm.stack((PMAX, 1), nl.float32, "qkv.inverse_scale")
            nisa.reciprocal(self.inverse, inputs)
            self.factor = static_factor(sbm, sections, weight_scale, inputs)


def static_factor(sbm, sections, weight_scale, inputs):
    """[d, heads]: input scale * weight scale, whose columns are one for all, or one for Q, K, V."""
    q_heads, kv_heads, d_head = sections
    three = sbm.stack((PMAX, 3), nl.float32, "qkv.weight_scale")
    columns = weight_scale.shape[1]
    repeat = 0 if weight_scale.shape[0] == 1 else columns
    load_small(three, weight_scale.ap([[repeat, PMAX], [1 if columns == 3 else 0, 3]], offset=0))
    nisa.tensor_scalar(three, three, nl.multiply, inputs)
    factor = sbm.stack((d_head, q_heads + 2 * kv_heads), nl.float32, "qkv.scale")
    bounds = (0, q_heads, q_heads + kv_heads, q_heads + 2 * kv_heads)
    for i in range(3):
        part = factor[:, bounds[i] : bounds[i + 1]]
        nisa.tensor_copy(part, three[0:d_head, i : i + 1].broadcast(1, part.shape[1]))
    return factor


def qkv_projection_tkg(sbm, x, split, weight, sections, scales):
    """qkv [d, heads, R] float32, a new tile.

    `weight` [H, heads*d] in HBM. `sections`: (q heads, kv heads, d). `scales`: `QkvScales`. The
    weights' buffers stay on the heap, for the caller to free as the ring "qkv.weights": given to
    the next weights they would hold up loading.
    """
    q_heads, kv_heads, d_head = sections
    qkv = sbm.stack((d_head, q_heads + 2 * kv_heads, x.shape[2]), nl.float32, "qkv")
    sbm.open_scope("qkv_projection")
    projection = QkvProjection(sbm, x, split, weight, sections, scales)
    projection.project(qkv[:, 0:q_heads, :], 0, "q")
    projection.project(qkv[:, q_heads:, :], q_heads, "kv")
    sbm.close_scope()
    return qkv


class QkvProjection(nl.NKIObject):
    """The projection, some heads at a time: all of Q first, so that attention over the cache begins
    while the weights of K and V arrive."""

    def __init__(self, sbm, x, split, weight, sections, scales):
        q_heads, kv_heads, d_head = sections
        self.sbm = sbm
        self.scales = scales
        if scales.inverse != None:
            x = quantize(sbm, x, scales.inverse)
        self.parts = factors(sbm, x, weight.dtype, "qkv.x")
        self.ring = WeightRing(sbm, weight, split, max(q_heads, 2 * kv_heads) * d_head)

    def project(self, out, first, name, after=()):
        """out [d, count, R] = the heads from `first` on. Two cores exchange them once the
        instructions `after` are done."""
        project_heads(self.parts, self.ring, first, self.scales, out)
        exchange(self.sbm, out, nl.add, f"qkv.{name}", after)


class WeightRing(nl.NKIObject):
    """Buffers of about WEIGHT_BLOCK_BYTES for rows of `columns` weights or fewer.

    On the heap, so that loading need not wait for the scratch of earlier stages; as many as there
    is room for, so that in the DMA queue the weights come before the cache, which is needed later.
    """

    def __init__(self, sbm, weight, split, columns):
        self.weight = weight
        self.split = split
        row = PMAX * bytes_of(weight.dtype)
        most = split.count * weight.shape[1]
        self.columns = max(columns, min(most, WEIGHT_BLOCK_BYTES // row))
        shape = (split.partitions(), self.columns)
        self.codes = reader_of(sbm, shape, weight.dtype, "qkv.codes")
        spare = (sbm.room() - RESERVE_BYTES) // row_bytes(shape, weight.dtype)
        needed = -(-most // self.columns) + 2
        self.tiles = sbm.allocate_ring(
            max(RING, min(needed, spare)), shape, weight.dtype, "qkv.weights"
        )
        self.turn = 0
        self.loads = []

    def load(self, first, count, start, rows):
        """Columns first .. first+count of the rows h of this core's j = start .. start+rows, as
        [P, rows, count]."""
        flat = self.tiles[self.turn % len(self.tiles)][:, 0 : rows * count]
        self.turn = self.turn + 1
        if self.codes != None and self.split.last > 0:
            # All of the tile is turned into bfloat16, also rows past the last.
            nisa.memset(flat, 0)
        shape = (flat.shape[0], rows, count)
        tile = flat.reshape(shape)
        width, columns = self.split.width, self.weight.shape[1]
        for p, partitions, j, n in self.split.spans(start, rows):
            source = self.weight.ap(
                [[width * columns, partitions], [columns, n], [1, count]],
                offset=(p * width + self.split.first + j) * columns + first,
            )
            move = copy if self.turn == 1 else nisa.dma_copy
            target = tile[p : p + partitions, j - start : j - start + n, :]
            self.loads.append(move(target, source))
        return values_of(self.codes, flat).reshape(shape)


def project_heads(parts, ring, first, scales, out):
    """out [d, count, R] = the sums over this core's h for heads from `first` on, scaled and with
    this core's share of the bias. `parts` sum to x. The sums grow in PSUM where it can hold all of
    them, else each weight block's are added up in `out`."""
    d_head, count, rows = out.shape
    fold = fold_heads(d_head, count, False)
    per_bank = max(1, BANK // rows)
    spans = [(n, min(per_bank, count // fold - n)) for n in range(0, count // fold, per_bank)]
    stay = len(spans) <= SUM_BANKS
    factor = columns_of(scales.factor, first, count)
    bias = columns_of(scales.bias, first, count)
    banks = sum_banks(fold * d_head, spans, rows) if stay else []
    size = max(1, min(ring.split.count, ring.columns // (count * d_head)))
    for start in range(0, ring.split.count, size):
        some = min(size, ring.split.count - start)
        block = ring.load(first * d_head, count * d_head, start, some)
        for i in range(len(spans)):
            begin, n = spans[i]
            psum = banks[i] if stay else sum_banks(fold * d_head, spans[i : i + 1], rows)[0]
            place = (start, begin * fold * d_head)
            multiply_block(psum, parts, ring.split, block, place, stay and start > 0)
            if not stay or start + some == ring.split.count:
                at, here = begin * fold, n * fold
                # The bias once: with the first weights, where the sums grow in `out`.
                bias_here = columns_of(bias, at, here) if stay or start == 0 else None
                after = (columns_of(factor, at, here), bias_here)
                unfold(out[:, at : at + here, :], psum, after, not stay and start > 0)


def columns_of(tile, first, count):
    """Some columns; None stays None."""
    return None if tile == None else tile[:, first : first + count]


def sum_banks(partitions, spans, rows):
    """A PSUM tile [partitions, count, R] for each span (first, count)."""
    banks = []
    for _, count in spans:
        banks.append(nl.ndarray((partitions, count, rows), nl.float32, buffer=nl.psum))
    return banks


def multiply_block(psum, parts, split, block, place, add):
    """psum [wide, n, R] (+)= the sums over a weight block's columns j. `place`: its first j, and
    its first column."""
    start, column = place
    wide = psum.shape[0]
    for n in range(psum.shape[1]):
        c = column + n * wide
        for j in range(block.shape[1]):
            height = split.height(start + j)
            stationary = block[0:height, j, c : c + wide]
            for i in range(len(parts)):
                moving = parts[i][0:height, start + j, :]
                nisa.nc_matmul(psum[:, n, :], stationary, moving, accumulate=add or j + i > 0)


def unfold(out, psum, after, add):
    """out [d, heads, R] (+)= psum [fold*d, heads // fold, R] * scale [d, heads] + bias [d, heads];
    head n*fold + i came out on partitions i*d .. (i+1)*d. `after`: scale and bias, each or None;
    no bias where it adds to `out`."""
    scale, bias = after
    d_head, heads, rows = out.shape
    fold = psum.shape[0] // d_head
    for i in range(fold):
        at = slice(i, heads - fold + i + 1, fold)
        sums = psum[i * d_head : (i + 1) * d_head, :, :]
        target = out[:, at, :]
        if scale != None:
            factor = scale[:, at].expand_dim(2).broadcast(2, rows)
            last = not add and bias == None
            nisa.tensor_tensor(target if last else sums, sums, factor, nl.multiply)
        if add:
            nisa.tensor_tensor(target, sums, target, nl.add)
        elif bias != None:
            offset = bias[:, at].expand_dim(2).broadcast(2, rows)
            nisa.tensor_tensor(target, sums, offset, nl.add)
        elif scale == None:
            nisa.tensor_copy(target, sums)


def quantize(sbm, x, inverse):
    """fp8(clip(x * inverse, +-240)), as a new float8_e4m3 tile; `inverse` [128, 1]."""
    wide = sbm.stack(x.shape, nl.float32, "qkv.x_scaled")
    column = inverse[0 : x.shape[0], :]
    nisa.tensor_scalar(wide, x, nl.multiply, column, op1=nl.minimum, operand1=FP8_MAX)
    quantized = sbm.stack(x.shape, nl.float8_e4m3, "qkv.x_fp8")
    nisa.tensor_scalar(quantized, wide, nl.maximum, -FP8_MAX)
    return quantized
