"""The attention block of token generation in one kernel: nothing but inputs, weights and cache is
read from HBM, nothing but the output and the new tokens is written.

    X -> RMSNorm -> QKV -> [QK norm] -> [RoPE] -> [QK norm] -> attention over the cache ->
    projection
                                                 \\-> cache update

Between the stages everything is transposed: heads [d, n, b*s] with the head dimension on
partitions, which is what each next matmul contracts over.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.attention_tkg import Landmarks, attention_tkg
from tkg.backends.neuron.cache_reads import CacheReader, block_rows
from tkg.backends.neuron.cache_update_tkg import (
    Slots,
    cache_update_tkg,
    new_outputs,
)
from tkg.backends.neuron.clock import LAST, Clock
from tkg.backends.neuron.column_tiles import goes_in_tiles
from tkg.backends.neuron.context import (
    plan_context,
    visible_from_mask,
    visible_from_positions,
)
from tkg.backends.neuron.input_norm_tkg import (
    HiddenSplit,
    input_norm_tkg,
    load_gamma,
    load_hidden,
)
from tkg.backends.neuron.layout import (
    PMAX,
    QUADRANT,
    copy,
    fold_heads,
    head_parts,
    hidden_share,
    swap_with_peer,
)
from tkg.backends.neuron.new_heads import (
    HeadNorms,
    NewHeads,
    load_cache_scales,
    norm_and_rotate,
    turns_at_once,
)
from tkg.backends.neuron.new_tokens import load_sink
from tkg.backends.neuron.output_columns import OutputColumns
from tkg.backends.neuron.output_projection_tkg import output_projection_tkg
from tkg.backends.neuron.prepared_queries import parity_picks, prepare_queries
from tkg.backends.neuron.qkv_projection_tkg import QkvProjection, QkvScales
from tkg.backends.neuron.rope_tkg import load_rope
from tkg.backends.neuron.sbuf_manager import SbufManager, bytes_of
from tkg.contract.quantization import QuantizationType

FEW_TILES = 64  # of a call's context, up to which the tensor engine often waits
LATE_ROWS = 32  # up to which K and V of the new tokens wait for the first of the cache
LAST_LOADS = 4  # of Q's weights, that come before what another queue loads next
MANY = 512  # elements of X on a partition, whose norm takes longer than the clock needs to rise
SHORT_ROW = 161  # bytes: DMA takes as long for less in a piece
WHOLE_X = 50  # times X that QKV's weights have to be, for both cores to read all of it


def attention_block_tkg(
    X,
    W_qkv,
    K_cache,
    V_cache,
    X_hidden_dim_actual=None,
    rmsnorm_X_enabled=False,
    rmsnorm_X_eps=None,
    rmsnorm_X_gamma=None,
    bias_qkv=None,
    quantization_type_qkv=QuantizationType.NONE,
    weight_dequant_scale_qkv=None,
    input_dequant_scale_qkv=None,
    rmsnorm_QK_pre_rope_enabled=False,
    rmsnorm_QK_pre_rope_eps=0.0,
    rmsnorm_QK_pre_rope_W_Q=None,
    rmsnorm_QK_pre_rope_W_K=None,
    cos=None,
    sin=None,
    rope_contiguous_layout=True,
    rmsnorm_QK_post_rope_enabled=False,
    rmsnorm_QK_post_rope_eps=0.0,
    rmsnorm_QK_post_rope_W_Q=None,
    rmsnorm_QK_post_rope_W_K=None,
    K_cache_transposed=False,
    active_blocks_table=None,
    attention_mask=None,
    pos_ids=None,
    sliding_window=0,
    sink=None,
    softmax_scale=None,
    update_cache=False,
    kv_cache_update_idx=None,
    k_scale=None,
    v_scale=None,
    W_out=None,
    bias_out=None,
    quantization_type_out=QuantizationType.NONE,
    weight_dequant_scale_out=None,
    input_dequant_scale_out=None,
    transposed_out=False,
    out_in_sb=False,
    sbm=None,
    skip_attention=False,
    attention_scale=1.0,
):
    """(out, K_out, V_out); names, shapes and meaning as in docs/contract.md.

    Besides: X may be an SBUF tile [128, B, S, H//128], and `out_in_sb` keeps the output on chip, on
    the heap of `sbm` (as "out", or as the output projection names it). `attention_scale` multiplies
    the attention output.
    """
    manager = SbufManager() if sbm == None else sbm
    block = active_blocks_table != None
    K, V = with_head_axis(K_cache, block), with_head_axis(V_cache, block)
    sizes = Sizes(X, W_qkv, V, block)
    out = None
    if out_in_sb and W_out == None:
        columns = sizes.batch * sizes.q_heads * sizes.parts * sizes.tokens
        out = manager.allocate((sizes.size, columns), X.dtype, "out")
    manager.open_scope("attention_block")
    columns = None
    if W_out != None:
        share = hidden_share(W_out.shape[1])[1]
        static = quantization_type_out == QuantizationType.STATIC
        tiled = goes_in_tiles(W_out, static, bias_out, sizes.rows)
        columns = OutputColumns(share, sizes.rows, (transposed_out, out_in_sb), tiled)
    fold = 1
    if W_out != None and not skip_attention:
        fold = sizes.fold()
    attention = attention_tile(manager, sizes, X.dtype, columns, fold)
    length, prior = context_length(V, active_blocks_table, attention_mask, sizes.tokens)
    context = plan_context(length, prior, V.shape[1] if block else 0, sizes.batch)
    rows, here = share_work(sizes.batch, context)
    table = None
    if block:
        table = block_rows(manager, active_blocks_table, here, V.shape[0], V.shape[1])
    reader = CacheReader(manager, K, V, here, K_cache_transposed, table)
    reader.batch = rows[1]
    load_exp(manager)
    clock = Clock(manager)
    x, split, whole = load_input(
        manager, X, W_qkv, sizes.rows, X_hidden_dim_actual, rmsnorm_X_enabled
    )
    if rmsnorm_X_enabled:
        gamma = None
        if rmsnorm_X_gamma != None:
            gamma = load_gamma(manager, rmsnorm_X_gamma, split)
        eps = 1e-3 if rmsnorm_X_eps == None else rmsnorm_X_eps
        x = input_norm_tkg(manager, x, split, gamma, eps, whole=whole)
    # Of many rows the norm takes longer than the clock stays up: it rises while that is made.
    clock.start(split.loads if sizes.rows * split.count > MANY else ())
    # What depends on no stage is made before the first of them: later it would wait for their SBUF.
    qkv_scales = QkvScales(
        manager, sizes.sections(), quantization_type_qkv, bias_qkv, weight_dequant_scale_qkv,
        input_dequant_scale_qkv,
    )  # fmt: skip
    tables = None
    if cos != None:
        tables = load_rope(manager, cos, sin, rope_contiguous_layout)
    visible = None
    if not skip_attention and attention_mask != None:
        visible = visible_from_mask(manager, here, attention_mask, sizes.kv_heads)
    elif not skip_attention:
        visible = visible_from_positions(manager, here, pos_ids, sizes.tokens, sliding_window)
    if visible != None:
        visible.sink = load_sink(manager, sink)
    where = None
    if update_cache:
        where = Slots(manager, (K, V), kv_cache_update_idx, sizes.tokens, K_cache_transposed, block)
    scales = load_cache_scales(manager, k_scale, v_scale)
    pre = (rmsnorm_QK_pre_rope_enabled, rmsnorm_QK_pre_rope_eps)
    post = (rmsnorm_QK_post_rope_enabled, rmsnorm_QK_post_rope_eps)
    q_norms = head_norms("q", pre, rmsnorm_QK_pre_rope_W_Q, post, rmsnorm_QK_post_rope_W_Q)
    k_norms = head_norms("k", pre, rmsnorm_QK_pre_rope_W_K, post, rmsnorm_QK_post_rope_W_K)
    # Where nothing comes between, the queries are turned into their parts at once.
    at_once = not skip_attention and turns_at_once(tables, q_norms)
    picks = parity_picks(manager, reader, at_once)
    if W_out != None:
        by_row = quantization_type_out == QuantizationType.ROW
        columns.load(manager, bias_out, weight_dequant_scale_out if by_row else None)
    q_heads, kv_heads = sizes.sections()[0:2]
    late = not skip_attention and sizes.rows <= LATE_ROWS
    qkv = manager.stack((sizes.size, q_heads + 2 * kv_heads, sizes.rows), nl.float32, "qkv")
    q = qkv[:, 0:q_heads, :]
    heads = NewHeads(manager, sizes, K, K_cache_transposed, qkv[:, q_heads:, :])
    # K's weights come with Q's where those alone are short pieces; but not before gathers, which
    # wait for them.
    first = q_heads
    if late and not block and q_heads * sizes.size * bytes_of(W_qkv.dtype) < SHORT_ROW:
        first = first + kv_heads
    manager.open_scope("qkv_projection")
    projection = QkvProjection(manager, x, split, W_qkv, sizes.sections(), qkv_scales)
    projection.project(qkv[:, 0:first, :], 0, "q")
    projected = projection.ring.loads[-1:]
    reader.come_after(projection.ring.loads[-LAST_LOADS : 1 - LAST_LOADS], W_qkv)
    heads.prepare(projection, k_norms, tables, scales)
    if not late:
        heads.make()
        manager.close_scope()
    norm_and_rotate(manager, q, q_norms, None if at_once else tables, sizes.parts)
    new = heads.new
    landmarks = Landmarks()
    if skip_attention:
        nisa.tensor_copy(attention, sizes.heads_of(q).permute((0, 2, 1, 3)))
        heads.make_rows()
    else:
        scale = sizes.d_head**-0.5 if softmax_scale == None else softmax_scale
        dtypes = (X.dtype, K.dtype)
        turns = tables if at_once else None
        queries = prepare_queries(manager, q, scale, picks, new, dtypes, turns)
        shared = here.groups < context.groups
        if first > q_heads:
            heads.make_keys()
        if late:
            queries.made_by(heads)
        landmarks = attention_tkg(manager, queries, reader, visible, rows, attention, shared)
        if late:
            manager.close_scope()
        heads.make_rows()
        if attention_scale != 1.0:
            nisa.tensor_scalar(attention, attention, nl.multiply, attention_scale)
        if rows[1] < sizes.batch:
            swap_rows(attention, rows)
    if W_out != None:
        out = output_projection_tkg(
            attention, W_out, bias_out, quantization_type_out, weight_dequant_scale_out,
            input_dequant_scale_out, transposed_out, out_in_sb, manager,
            reader.near_end(), columns,
        )  # fmt: skip
    elif out_in_sb:
        nisa.tensor_copy(out, attention)
    else:
        out = attention_to_hbm(attention, sizes.parts)
    if not skip_attention:
        clock.keep(projected)
        if here.tiles() * rows[1] * sizes.kv_heads <= FEW_TILES:
            clock.keep(projection.ring.loads[-1:] if late else landmarks.scored)
        clock.keep(landmarks.weighed + reader.loads[-1:], LAST)
    # Last: what starts these DMAs has nothing else to do then.
    K_out, V_out = K_cache, V_cache
    if update_cache:
        cache_update_tkg(new, where, reader.loads + landmarks.written)
    else:
        K_out, V_out = new_outputs(new, K.dtype, len(V_cache.shape) == 4)
    manager.free_ring("qkv.weights")
    manager.close_scope()
    return out, K_out, V_out


class Sizes(nl.NKIObject):
    """The sizes of a call."""

    def __init__(self, X, W_qkv, V, block):
        on_chip = X.buffer == nl.sbuf
        self.batch = X.shape[1] if on_chip else X.shape[0]
        self.tokens = X.shape[2] if on_chip else X.shape[1]
        self.rows = self.batch * self.tokens
        self.d_head = V.shape[3]
        self.kv_heads = V.shape[2] if block else V.shape[1]
        self.parts = head_parts(self.d_head)
        self.size = self.d_head // self.parts
        self.q_heads = W_qkv.shape[1] // self.d_head - 2 * self.kv_heads

    def sections(self):
        """The heads of Q, of K or V, and their size, where each part of a head counts as one."""
        return self.q_heads * self.parts, self.kv_heads * self.parts, self.size

    def fold(self):
        """How many heads the attention output has after each other on the partitions: as many as
        the projection takes, but one where not all queries of a row are done at once."""
        few = self.q_heads * self.tokens <= PMAX and self.parts == 1
        return fold_heads(self.size, self.q_heads, False) if few else 1

    def heads_of(self, t):
        """[d/parts, heads*parts, R] as [d/parts, heads*parts, B, S]."""
        return t.reshape((self.size, t.shape[1], self.batch, self.tokens))


def attention_tile(manager, sizes, dtype, columns, fold):
    """The attention output [fold*d/parts, B, q*parts/fold, S]: head g*fold + i is at g, on
    partitions i*d .. (i+1)*d. Heads first: so the projection takes it as it lies; where columns go
    in tiles, among zeros."""
    size, heads = fold * sizes.size, sizes.q_heads * sizes.parts // fold
    folded = fold_heads(size, heads, False) * sizes.parts > 1
    if columns == None or columns.tiled == 0 or folded:
        shape = (size, heads, sizes.batch, sizes.tokens)
        return manager.stack(shape, dtype, "attention").permute((0, 2, 1, 3))
    columns.padded = manager.stack((size, heads, QUADRANT), dtype, "attention")
    nisa.memset(columns.padded, 0.0, engine=nisa.engine.gpsimd)
    rows = columns.padded[:, :, columns.place]
    return rows.reshape_dim(2, (sizes.batch, sizes.tokens)).permute((0, 2, 1, 3))


def with_head_axis(cache, block):
    """A cache of one KV head with an axis for it: [B, 1, ...] or [blocks, block_len, 1, d]."""
    if len(cache.shape) == 4:
        return cache
    return cache.expand_dim(2 if block else 1)


def context_length(V, table, mask, tokens):
    """(cache slots that are looked at, those of them that a mask speaks of)."""
    slots = V.shape[2] if table == None else table.shape[1] * V.shape[1]
    if mask == None:
        return slots, slots - tokens
    if table == None:
        slots = min(slots, mask.shape[0])
    return slots, mask.shape[0] - tokens


def head_norms(name, pre, pre_weight, post, post_weight):
    """The `HeadNorms` of Q or K; `pre`, `post`: (enabled, eps)."""
    before = (pre_weight, pre[1]) if pre[0] else None
    after = (post_weight, post[1]) if post[0] else None
    return HeadNorms(name, before, after)


def attention_to_hbm(attention, parts):
    """The attention output [d/parts, B, q*parts, S] as [B, q, d, S] in HBM; each core writes half
    of d/parts, or where that may be odd half of the parts."""
    size, batch, heads, tokens = attention.shape
    shape = (batch, heads // parts, size * parts, tokens)
    out = nl.ndarray(shape, attention.dtype, buffer=nl.shared_hbm, name="out")
    turned = out.reshape((batch, heads, size, tokens)).permute((2, 0, 1, 3))
    if parts % 2 == 0:
        share = heads // nl.num_programs(0)
        here = slice(nl.program_id(0) * share, (nl.program_id(0) + 1) * share)
        copy(turned[:, :, here, :], attention[:, :, here, :])
    else:
        share = size // nl.num_programs(0)
        here = slice(nl.program_id(0) * share, (nl.program_id(0) + 1) * share)
        copy(turned[here, :, :, :], attention[here, :, :, :])
    return out


def share_work(batch, context):
    """((first row, rows), context) of this core: half of the batch, or half of the context's
    groups, or all of both."""
    lnc = nl.num_programs(0)
    core = nl.program_id(0)
    if lnc == 1:
        return (0, batch), context
    if batch % 2 == 0:
        return (core * (batch // 2), batch // 2), context
    if context.groups % 2 == 0:
        half = context.groups // 2
        return (0, batch), context.part(core * half, half)
    return (0, batch), context


def load_input(manager, X, W_qkv, rows, hidden_actual, normed):
    """(x, split, whole): this core's part of the hidden states, and where their norm comes next on
    two cores and they are few beside the weights, both cores' part; else None."""
    if X.buffer == nl.sbuf:
        width = X.shape[3]
        hidden = PMAX * width if hidden_actual == None else hidden_actual
        split = HiddenSplit(hidden, hidden, width)
        X = X.reshape((PMAX, rows, width))
    else:
        hidden = X.shape[2] if hidden_actual == None else hidden_actual
        split = HiddenSplit(hidden, X.shape[2])
    weights = W_qkv.shape[1] * bytes_of(W_qkv.dtype)
    if nl.num_programs(0) == 2 and normed and rows * bytes_of(X.dtype) * WHOLE_X <= weights:
        whole = load_hidden(manager, X, split.both(), rows, normed)
        return whole[:, split.first : split.first + split.count, :], split, whole
    return load_hidden(manager, X, split, rows, normed), split, None


def load_exp(manager):
    """Has Scalar load its table for exp while there is nothing else to do."""
    tile = manager.stack((1, 1), nl.float32, "exp")
    nisa.memset(tile, 0.0)
    nisa.activation(tile, nl.exp, tile)


def swap_rows(attention, mine):
    """Each core has computed half of the batch's rows; after this both have all."""
    first, count = mine
    theirs = count - first
    swap_with_peer(
        attention[:, first : first + count, :, :], attention[:, theirs : theirs + count, :, :]
    )
