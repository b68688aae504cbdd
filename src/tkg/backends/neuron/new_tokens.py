"""The new tokens' part of attention: few enough that every partition holds all of their scores."""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import PMAX
from tkg.backends.neuron.matrices import filled, spread_row
from tkg.backends.neuron.partials import FLOOR, MASKED


def new_tokens(sbm, queries, visibility, this, partial):
    """The partial of the new tokens themselves, causal or by the mask, and of the sink."""
    tokens, kv_heads = queries.tokens, queries.kv_heads
    units = this.count * kv_heads
    columns = queries.group * tokens
    width = units * columns
    by_unit = (PMAX, units, columns)
    sbm.open_scope("new_tokens")
    scores = new_scores(sbm, queries, visibility, this)
    m, l = partial.m[:, 0:width], partial.l[:, 0:width]
    nisa.tensor_reduce(m.reshape(by_unit), nl.maximum, scores.permute((0, 1, 3, 2)), axis=3)
    nisa.tensor_scalar(m, m, nl.maximum, FLOOR)
    sink = visibility.sink
    if sink != None:
        sink = sink.expand_dim(1).expand_dim(3).broadcast(1, this.count).broadcast(3, tokens)
        by_head = (PMAX, this.count, queries.heads, tokens)
        nisa.tensor_tensor(m.reshape(by_head), m.reshape(by_head), sink, nl.maximum)
    shift = m.reshape(by_unit).expand_dim(2).broadcast(2, queries.new)
    nisa.tensor_tensor(scores, scores, shift, nl.subtract)
    nisa.activation(scores, nl.exp, scores)
    nisa.tensor_reduce(l.reshape(by_unit), nl.add, scores.permute((0, 1, 3, 2)), axis=3)
    if sink != None:
        extra = sbm.stack((PMAX, width), nl.float32, "new.sink")
        nisa.tensor_tensor(extra.reshape(by_head), sink, m.reshape(by_head), nl.subtract)
        nisa.activation(extra, nl.exp, extra)
        nisa.tensor_tensor(l, l, extra, nl.add)
    for part in range(queries.parts):
        acc = partial.acc[part][:, 0:width]
        weigh_new(sbm, queries, visibility, this, scores, (acc, part))
    sbm.close_scope()


def new_scores(sbm, queries, visibility, this):
    """Scores of the new tokens, the same on every partition: [128, units, S', columns]."""
    group, tokens, kv_heads = queries.group, queries.tokens, queries.kv_heads
    units = this.count * kv_heads
    scores = filled(sbm, (PMAX, units, queries.new, group, tokens), MASKED, "new.scores")
    for row in range(this.count):
        b = this.first + row
        for kv in range(kv_heads):
            heads = slice(kv * group, (kv + 1) * group)
            for s in range(queries.new):
                psum = nl.ndarray((PMAX, group, tokens), nl.float32, buffer=nl.psum)
                for part in range(queries.parts):
                    key = queries.k[:, kv * queries.parts + part, b, s : s + 1].broadcast(1, PMAX)
                    for i in range(len(queries.q[part])):
                        q = queries.q[part][i][:, heads, b, :]
                        nisa.nc_matmul(psum, key, q, accumulate=part + i > 0)
                target = scores[:, row * kv_heads + kv, s, :, :]
                if visibility.new == None:
                    who = who_sees(queries, visibility.window, s)
                    if who.start < who.stop:
                        nisa.tensor_copy(target[:, :, who], psum[:, :, who])
                else:
                    nisa.tensor_copy_predicated(target, psum, visibility.new[:, s, b, heads, :])
    return scores.reshape((PMAX, units, queries.new, group * tokens))


def who_sees(queries, window, s):
    """Which of the queries' tokens may see new token s without a mask: a slice, perhaps empty."""
    first, count = queries.first_token, queries.tokens
    last = first + count if window == 0 else min(first + count, s + window)
    return slice(max(s, first) - first, max(0, last - first))


def weigh_new(sbm, queries, visibility, this, weights, place):
    """`place`: (acc [d/parts, C], part); acc = that part of the new V, weighted. Few and on the
    partitions of d already: no matmul. Where a new token does not count its V is left out, whatever
    it holds."""
    acc, part = place
    tokens, kv_heads, size = queries.tokens, queries.kv_heads, queries.size
    group, units = queries.group, this.count * queries.kv_heads
    shape = (size, units, group, tokens)
    acc = acc.reshape(shape)
    nisa.memset(acc, 0.0)
    product = sbm.stack(shape, nl.float32, f"new.product.{part}")
    counted = sbm.stack(shape, nl.float32, f"new.counted.{part}")
    v = queries.v[:, part : kv_heads * queries.parts : queries.parts, :, :]
    weights = weights.reshape((PMAX, units, queries.new, group, tokens))
    for s in range(queries.new):
        value = sbm.stack((size, this.count, kv_heads), nl.float32, f"new.value.{part}.{s}")
        new = v[:, :, this.first : this.first + this.count, s].permute((0, 2, 1))
        nisa.tensor_copy(value, new)
        wide = value.reshape((size, units, 1)).broadcast(2, group).expand_dim(3)
        wide = wide.broadcast(3, tokens)
        nisa.tensor_tensor(product, weights[0:size, :, s, :, :], wide, nl.multiply)
        if visibility.new == None:
            who = who_sees(queries, visibility.window, s)
            if who.start < who.stop:
                seen_by = acc[:, :, :, who]
                nisa.tensor_tensor(seen_by, seen_by, product[:, :, :, who], nl.add)
        else:
            rows = slice(this.first, this.first + this.count)
            mask = visibility.new[0:size, s, rows, :, :]
            nisa.memset(counted, 0.0)
            nisa.tensor_copy_predicated(
                counted.reshape(mask.shape), product.reshape(mask.shape), mask
            )
            nisa.tensor_tensor(acc, acc, counted, nl.add)


def load_sink(sbm, sink):
    """Sink logits [q, 1] in HBM, on every partition: [128, q] float32; None stays None."""
    if sink == None:
        return None
    heads = sink.shape[0]
    row = sbm.stack((1, heads), sink.dtype, "sink.row")
    nisa.dma_copy(row, sink.ap([[0, 1], [1, heads]], offset=0))
    return spread_row(sbm, row, PMAX, "sink")
