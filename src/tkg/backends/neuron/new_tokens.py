"""The new tokens' part of attention: few enough that every partition holds all of their scores."""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK, PMAX, load_small
from tkg.backends.neuron.matrices import filled, spread_row
from tkg.backends.neuron.partials import FLOOR, MASKED


def new_tokens(sbm, queries, visibility, rows, partial, weight):
    """The partial of the new tokens of rows (first, count), causal or by the mask, and of the sink;
    counted by `weight`."""
    first, count = rows
    tokens = queries.tokens
    width = count * queries.columns()
    sbm.open_scope("new_tokens")
    scores = new_scores(sbm, queries, visibility, rows).reshape((PMAX, queries.new, width))
    m, l = partial.m, partial.l
    nisa.tensor_reduce(m, nl.maximum, scores.permute((0, 2, 1)), axis=2)
    nisa.tensor_scalar(m, m, nl.maximum, FLOOR)
    sink = visibility.sink
    if sink != None:
        sink = sink.expand_dim(1).expand_dim(3).broadcast(1, count).broadcast(3, tokens)
        by_head = (PMAX, count, queries.heads, tokens)
        nisa.tensor_tensor(m.reshape(by_head), m.reshape(by_head), sink, nl.maximum)
    shift = m.expand_dim(1).broadcast(1, queries.new)
    nisa.tensor_tensor(scores, scores, shift, nl.subtract)
    nisa.activation(scores, nl.exp, scores)
    nisa.tensor_reduce(l, nl.add, scores.permute((0, 2, 1)), axis=2)
    if sink != None:
        extra = sbm.stack((PMAX, width), nl.float32, "new.sink")
        nisa.tensor_tensor(extra.reshape(by_head), sink, m.reshape(by_head), nl.subtract)
        nisa.activation(extra, nl.exp, extra)
        nisa.tensor_tensor(l, l, extra, nl.add)
    for part in range(queries.parts):
        weigh_new(sbm, queries, visibility, rows, scores, (partial.acc[part], part))
    if weight != 1.0:
        for tile in partial.sums():
            nisa.tensor_scalar(tile, tile, nl.multiply, weight)
    sbm.close_scope()


def new_scores(sbm, queries, visibility, rows):
    """Scores of the new tokens, the same on every partition: [128, S', rows, q, S]."""
    group, tokens, kv_heads = queries.group, queries.tokens, queries.kv_heads
    first, count = rows
    shape = (PMAX, queries.new, count, queries.heads, tokens)
    scores = filled(sbm, shape, MASKED, "new.scores")
    per_bank = BANK // queries.columns()
    for s in range(queries.new):
        for row in range(0, count, per_bank):
            n = min(per_bank, count - row)
            psum = nl.ndarray((PMAX, n, queries.heads, tokens), nl.float32, buffer=nl.psum)
            for r in range(n):
                b = first + row + r
                for kv in range(kv_heads):
                    heads = slice(kv * group, (kv + 1) * group)
                    for part in range(queries.parts):
                        key = queries.k[:, kv * queries.parts + part, b, s : s + 1]
                        for i in range(len(queries.q[part])):
                            q = queries.q[part][i][:, heads, b, :]
                            sums = psum[:, r, heads, :]
                            nisa.nc_matmul(sums, key.broadcast(1, PMAX), q, accumulate=part + i > 0)
            target = scores[:, s, row : row + n, :, :]
            if visibility.new == None:
                who = who_sees(queries, visibility.window, s)
                if who.start < who.stop:
                    nisa.tensor_copy(target[:, :, :, who], psum[:, :, :, who])
            else:
                b = first + row
                nisa.tensor_copy_predicated(target, psum, visibility.new[:, s, b : b + n, :, :])
    return scores


def who_sees(queries, window, s):
    """Which of the queries' tokens may see new token s without a mask: a slice, perhaps empty."""
    first, count = queries.first_token, queries.tokens
    last = first + count if window == 0 else min(first + count, s + window)
    return slice(max(s, first) - first, max(0, last - first))


def weigh_new(sbm, queries, visibility, rows, weights, place):
    """`place`: (acc [d/parts, C], part); acc = that part of the new V, weighted. Few and on the
    partitions of d already: no matmul. Where a new token does not count its V is left out, whatever
    it holds. `weights` [128, S', C]."""
    acc, part = place
    tokens, kv_heads, size = queries.tokens, queries.kv_heads, queries.size
    first, count = rows
    shape = (size, count * kv_heads, queries.group, tokens)
    acc = acc.reshape(shape)
    nisa.memset(acc, 0.0)
    product = sbm.stack(shape, nl.float32, f"new.product.{part}")
    counted = sbm.stack(shape, nl.float32, f"new.counted.{part}")
    v = queries.v[:, part : kv_heads * queries.parts : queries.parts, first : first + count, :]
    for s in range(queries.new):
        value = sbm.stack((size, count, kv_heads), nl.float32, f"new.value.{part}.{s}")
        nisa.tensor_copy(value, v[:, :, :, s].permute((0, 2, 1)))
        wide = value.reshape((size, shape[1], 1)).broadcast(2, queries.group).expand_dim(3)
        wide = wide.broadcast(3, tokens)
        nisa.tensor_tensor(product, weights[0:size, s, :].reshape(shape), wide, nl.multiply)
        if visibility.new == None:
            who = who_sees(queries, visibility.window, s)
            if who.start < who.stop:
                seen_by = acc[:, :, :, who]
                nisa.tensor_tensor(seen_by, seen_by, product[:, :, :, who], nl.add)
        else:
            mask = visibility.new[0:size, s, first : first + count, :, :]
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
    load_small(row, sink.ap([[0, 1], [1, heads]], offset=0))
    return spread_row(sbm, row, PMAX, "sink")
