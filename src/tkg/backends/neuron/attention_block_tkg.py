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

from tkg.backends.neuron.attention_tkg import attention_tkg
from tkg.backends.neuron.cache_reads import CacheReader, block_rows
from tkg.backends.neuron.cache_update_tkg import (
    NewTokens,
    Slots,
    cache_update_tkg,
    new_outputs,
    rows_of_heads,
)
from tkg.backends.neuron.context import (
    plan_context,
    visible_from_mask,
    visible_from_positions,
)
from tkg.backends.neuron.fp8_codes import common_nan, rounded_dtype
from tkg.backends.neuron.input_norm_tkg import (
    HiddenSplit,
    input_norm_tkg,
    load_gamma,
    load_hidden,
)
from tkg.backends.neuron.layout import (
    FP8_MAX,
    PMAX,
    head_parts,
    scalar_column,
    swap_with_peer,
)
from tkg.backends.neuron.new_tokens import load_sink
from tkg.backends.neuron.output_projection_tkg import output_projection_tkg
from tkg.backends.neuron.prepared_queries import parity_picks, prepare_queries
from tkg.backends.neuron.qk_norm_tkg import qk_norm_tkg
from tkg.backends.neuron.qkv_projection_tkg import QkvScales, qkv_projection_tkg
from tkg.backends.neuron.rope_tkg import load_rope, rope_tkg
from tkg.backends.neuron.sbuf_manager import SbufManager
from tkg.contract.quantization import QuantizationType

LAST_LOADS = 3  # loads of the cache that the projection's weights need not wait for


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
    # Heads first: so the projection takes it as it lies.
    shape = (sizes.size, sizes.q_heads * sizes.parts, sizes.batch, sizes.tokens)
    attention = manager.stack(shape, X.dtype, "attention").permute((0, 2, 1, 3))
    length, prior = context_length(V, active_blocks_table, attention_mask, sizes.tokens)
    context = plan_context(length, prior, V.shape[1] if block else 0, sizes.batch)
    rows, here = share_work(sizes.batch, context)
    table = None
    if block:
        table = block_rows(manager, active_blocks_table, here, V.shape[0], V.shape[1])
    reader = CacheReader(manager, K, V, here, K_cache_transposed, table)
    x, split = load_input(manager, X, sizes.rows, X_hidden_dim_actual)
    if rmsnorm_X_enabled:
        gamma = None
        if rmsnorm_X_gamma != None:
            gamma = load_gamma(manager, rmsnorm_X_gamma, split)
        eps = 1e-3 if rmsnorm_X_eps == None else rmsnorm_X_eps
        x = input_norm_tkg(manager, x, split, gamma, eps)
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
    picks = parity_picks(manager, reader)
    qkv = qkv_projection_tkg(manager, x, split, W_qkv, sizes.sections(), qkv_scales)
    q, k, v = sizes.split(qkv)
    if rmsnorm_QK_pre_rope_enabled:
        qk_norm_tkg(
            manager, q, rmsnorm_QK_pre_rope_W_Q, rmsnorm_QK_pre_rope_eps, "pre_rope_q", sizes.parts
        )
        qk_norm_tkg(
            manager, k, rmsnorm_QK_pre_rope_W_K, rmsnorm_QK_pre_rope_eps, "pre_rope_k", sizes.parts
        )
    if tables != None:
        rope_tkg(manager, q, tables, "rope_q")
        rope_tkg(manager, k, tables, "rope_k")
    if rmsnorm_QK_post_rope_enabled:
        qk_norm_tkg(
            manager,
            q,
            rmsnorm_QK_post_rope_W_Q,
            rmsnorm_QK_post_rope_eps,
            "post_rope_q",
            sizes.parts,
        )
        qk_norm_tkg(
            manager,
            k,
            rmsnorm_QK_post_rope_W_K,
            rmsnorm_QK_post_rope_eps,
            "post_rope_k",
            sizes.parts,
        )
    new = round_new(manager, sizes, k, v, K, scales, K_cache_transposed)
    if skip_attention:
        nisa.tensor_copy(attention, sizes.heads_of(q).permute((0, 2, 1, 3)))
    else:
        scale = sizes.d_head**-0.5 if softmax_scale == None else softmax_scale
        queries = prepare_queries(manager, q, scale, picks, new, (X.dtype, K.dtype))
        shared = here.groups < context.groups
        attention_tkg(manager, queries, reader, visible, rows, attention, shared)
        if attention_scale != 1.0:
            nisa.tensor_scalar(attention, attention, nl.multiply, attention_scale)
        if rows[1] < sizes.batch:
            swap_rows(attention, rows)
    K_out, V_out = K_cache, V_cache
    if update_cache:
        cache_update_tkg(new, where, reader.loads)
    else:
        K_out, V_out = new_outputs(new, K.dtype, len(V_cache.shape) == 4)
    if W_out != None:
        out = output_projection_tkg(
            attention, W_out, bias_out, quantization_type_out, weight_dequant_scale_out,
            input_dequant_scale_out, transposed_out, out_in_sb, manager,
            reader.loads[-LAST_LOADS : 1 - LAST_LOADS],
        )  # fmt: skip
    elif out_in_sb:
        nisa.tensor_copy(out, attention)
    else:
        out = attention_to_hbm(attention, sizes.parts)
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

    def split(self, qkv):
        """Q, K and V of [d/parts, heads*parts, R]."""
        first = self.q_heads * self.parts
        end = first + self.kv_heads * self.parts
        return qkv[:, 0:first, :], qkv[:, first:end, :], qkv[:, end:, :]

    def heads_of(self, t):
        """[d/parts, heads*parts, R] as [d/parts, heads*parts, B, S]."""
        return t.reshape((self.size, t.shape[1], self.batch, self.tokens))


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


def round_new(manager, sizes, k, v, K, scales, transposed):
    """The new K and V, scaled for an FP8 cache and rounded to its dtype, in the forms that
    attention and the cache take."""
    if scales != None:
        scale_for_fp8(k, scales[0])
        scale_for_fp8(v, scales[1])
    dtype = rounded_dtype(K.dtype)
    tiles = []
    for name, t in (("k_new", k), ("v_new", v)):
        tile = manager.stack(t.shape, dtype, name)
        nisa.tensor_copy(tile, t)
        tiles.append(tile)
    k_rows = []
    if not transposed:
        k_rows = rows_of_heads(manager, k, dtype, "k_rows", sizes.tokens)
    v_rows = rows_of_heads(manager, v, dtype, "v_rows", sizes.tokens)
    if dtype != K.dtype:
        for tile in tiles + v_rows + k_rows:
            common_nan(manager, tile, "nan_codes")
        v_rows = [tile.view(K.dtype) for tile in v_rows]
        k_rows = [tile.view(K.dtype) for tile in k_rows]
    heads = [sizes.heads_of(tile) for tile in tiles]
    return NewTokens(heads[0], heads[1], k_rows, v_rows, sizes.parts)


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
        nisa.dma_copy(turned[:, :, here, :], attention[:, :, here, :])
    else:
        share = size // nl.num_programs(0)
        here = slice(nl.program_id(0) * share, (nl.program_id(0) + 1) * share)
        nisa.dma_copy(turned[here, :, :, :], attention[here, :, :, :])
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


def load_input(manager, X, rows, hidden_actual):
    """(x, split): this core's part of the hidden states."""
    if X.buffer == nl.sbuf:
        width = X.shape[3]
        hidden = PMAX * width if hidden_actual == None else hidden_actual
        split = HiddenSplit(hidden, hidden, width)
        X = X.reshape((PMAX, rows, width))
    else:
        hidden = X.shape[2] if hidden_actual == None else hidden_actual
        split = HiddenSplit(hidden, X.shape[2])
    return load_hidden(manager, X, split, rows), split


def load_cache_scales(manager, k_scale, v_scale):
    """The scales of an FP8 cache, [1, 1] or [128, 1] in HBM, as columns [128, 1]; None without."""
    if k_scale == None:
        return None
    columns = manager.ring(2, (PMAX, 1), nl.float32, "cache.scale")
    scalar_column(columns[0], k_scale)
    scalar_column(columns[1], v_scale)
    return columns


def scale_for_fp8(t, column):
    """t = clip(t * column, +-240), in place."""
    part = column[0 : t.shape[0], :]
    nisa.tensor_scalar(t, t, nl.multiply, part, op1=nl.minimum, operand1=FP8_MAX)
    nisa.tensor_scalar(t, t, nl.maximum, -FP8_MAX)


def swap_rows(attention, mine):
    """Each core has computed half of the batch's rows; after this both have all."""
    first, count = mine
    theirs = count - first
    swap_with_peer(
        attention[:, first : first + count, :, :], attention[:, theirs : theirs + count, :, :]
    )
