"""The new tokens' part of attention: few enough that every partition holds all of their scores."""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK, PMAX, load_small, swap_with_peer
from tkg.backends.neuron.partials import FLOOR, MASKED, rescale, write_heads
from tkg.backends.neuron.sbuf_manager import SMALL

MOST = 2.0**48  # of exp(score - m) of a new token: 2^24 slots with p <= 1 are nothing beside it


def new_tokens(sbm, queries, visibility, rows, partial):
    """Adds the new tokens of rows (first, count), causal or by the mask, and the sink to a
    partial. Returns the instructions after which the tensor engine is free."""
    first, count = rows
    tokens = queries.tokens
    width = count * queries.columns()
    sbm.open_scope("new_tokens")
    shape = (PMAX, queries.new, count, queries.heads, tokens)
    scores = sbm.stack(shape, nl.float32, "new.scores")
    done = new_scores(queries, visibility, rows, scores)
    scores = scores.reshape((PMAX, queries.new, width))
    m, scale, sums = sbm.ring(3, (PMAX, width), nl.float32, "new.columns")
    gpsimd = nisa.engine.gpsimd  # what leads to l, beside what leads to acc on Vector
    largest = scores[:, 0, :]
    if queries.new > 1:
        largest = m
        nisa.tensor_reduce(m, nl.maximum, scores.permute((0, 2, 1)), axis=2)
    nisa.tensor_tensor(m, largest, partial.m, nl.maximum)
    sink = visibility.sink
    if sink != None:
        by_head = (PMAX, count, queries.heads, tokens)
        sink = wide_sink(visibility, by_head)
        nisa.tensor_tensor(m.reshape(by_head), m.reshape(by_head), sink, nl.maximum, engine=gpsimd)
    shift = m.expand_dim(1).broadcast(1, queries.new)
    nisa.tensor_tensor(scores, scores, shift, nl.subtract, engine=gpsimd)
    nisa.activation(scores, nl.exp, scores)
    rescale(partial, m, scale)
    if queries.new > 1:
        nisa.tensor_reduce(sums, nl.add, scores.permute((0, 2, 1)), axis=2)
    else:
        sums = scores[:, 0, :]
    if sink != None:
        extra = sbm.stack((PMAX, width), nl.float32, "new.sink")
        nisa.tensor_tensor(
            extra.reshape(by_head), sink, m.reshape(by_head), nl.subtract, engine=gpsimd
        )
        nisa.activation(extra, nl.exp, extra)
        nisa.tensor_tensor(extra, extra, sums, nl.add, engine=gpsimd)
        sums = extra
    nisa.tensor_tensor(partial.l, partial.l, sums, nl.add, engine=gpsimd)
    for part in range(queries.parts):
        weigh_new(sbm, queries, visibility, rows, scores, (partial.acc[part], part))
    sbm.close_scope()
    return done


def sees_itself(queries, visibility):
    """Whether there is one new token a row, which all of its queries see."""
    return queries.new == 1 and visibility.new == None


def add_new_token(sbm, queries, visibility, rows, partials, count):
    """The partial in slot 0 of `partials` [128, 2 + parts, slots, columns] becomes the sum of those
    in the first `count` slots, the row's one new token and the sink, in few steps: all are scaled
    to the largest m at once. Returns the instructions after which the tensor engine is free."""
    slots, width = partials.shape[2:4]
    gpsimd = nisa.engine.gpsimd
    by_head = (PMAX, rows[1], queries.heads, queries.tokens)
    sbm.open_scope("new_token")
    nisa.memset(partials[:, 1, count:slots, :], 1.0, engine=gpsimd)
    if visibility.sink != None:
        sink = wide_sink(visibility, by_head)
        nisa.tensor_copy(partials[:, 0, count + 1, :].reshape(by_head), sink, engine=gpsimd)
    for part in range(queries.parts):
        target = partials[0 : queries.size, 2 + part, count, :]
        nisa.tensor_copy(*spread_value(queries, rows, part, target), engine=gpsimd)
    scores = partials[:, 0, count, :].reshape((PMAX, 1) + by_head[1:])
    done = new_scores(queries, visibility, rows, scores)
    largest = sbm.stack((PMAX, width), nl.float32, "new.m")
    weights, sums = sbm.ring(2, (PMAX, slots, width), nl.float32, "new.weights")
    m = partials[:, 0, :, :]
    nisa.tensor_reduce(largest, nl.maximum, m.permute((0, 2, 1)), axis=2)
    nisa.tensor_tensor(weights, m, largest.expand_dim(1).broadcast(1, slots), nl.subtract)
    nisa.activation(weights, nl.exp, weights)
    nisa.tensor_tensor(sums, partials[:, 1, :, :], weights, nl.multiply, engine=gpsimd)
    nisa.tensor_reduce(partials[:, 1, 0, :], nl.add, sums.permute((0, 2, 1)), axis=2)
    shape = (queries.size, count + 1, width)
    for part in range(queries.parts):
        product = sbm.stack(shape, nl.float32, f"new.product.{part}")
        acc = partials[0 : queries.size, 2 + part, 0 : count + 1, :]
        nisa.tensor_tensor(product, acc, weights[0 : queries.size, 0 : count + 1, :], nl.multiply)
        nisa.tensor_reduce(acc[:, 0, :], nl.add, product.permute((0, 2, 1)), axis=2)
    sbm.close_scope()
    return done


class Ending(nl.NKIObject):
    """How the attention of some rows ends that have a partial over all cached positions and one new
    token:

        out = (acc + e v) / (l + e)        e = min(exp(score - m), MOST)

    No larger m is looked for, which takes a few steps: beyond MOST nothing is left of the cached
    positions in float32. m is no less than a sink, which adds exp(sink - m) to l. l and acc may be
    in PSUM. Where the cores `share` the positions, they agree on the larger m first and add up
    what each has scaled to it. What does not need acc is made at once.
    """

    def __init__(self, sbm, queries, visibility, rows, partial, how):
        """`how`: whether the cores share the positions, `exp_of_new`'s row of -1 or None, and the
        engine beside Vector that adds up l."""
        shared, minus, by = how
        self.queries = queries
        self.partial = partial
        self.peer = None
        width = rows[1] * queries.columns()
        sbm.open_scope("new_token")
        m, l = partial.m, partial.l
        if shared:
            self.peer = Peer(sbm, queries, partial)
            m, l = self.peer.m, self.peer.mine[:, 0, :]
        self.e = sbm.stack((PMAX, width), nl.float32, "new.e")
        self.l = sbm.stack((PMAX, width), nl.float32, "new.l")
        # Before the new token's score is there. GpSimd reaches what is in SBUF.
        rest = l
        if visibility.sink != None:
            rest = exp_of_sink(sbm, queries, visibility, rows, m)
            nisa.tensor_tensor(rest, rest, l, nl.add)
        elif l.buffer == nl.psum and by == nisa.engine.gpsimd:
            rest = sbm.stack((PMAX, width), nl.float32, "new.rest")
            nisa.tensor_copy(rest, l)
        exp_of_new(queries, rows, m, minus, self.e)
        nisa.tensor_tensor(self.l, self.e, rest, nl.add, engine=by)
        if not shared:
            self.invert()
        self.sums = []
        for part in range(queries.parts):
            sums = sbm.stack((queries.size, width), nl.float32, f"new.sums.{part}")
            target, value = spread_value(queries, rows, part, sums)
            weights = self.e[0 : queries.size, :].reshape(target.shape)
            nisa.scalar_tensor_tensor(target, weights, nl.minimum, MOST, nl.multiply, value)
            self.sums.append(sums)
        sbm.close_scope(SMALL)

    def invert(self):
        """l = 1 / l, by GpSimd: Vector's reciprocal takes eight times as long. Beyond MOST, which
        e is cut to, there is only e."""
        nisa.tensor_scalar(
            self.l, self.l, nl.minimum, MOST, op1=nl.power, operand1=-1.0, engine=nisa.engine.gpsimd
        )

    def write(self, out, landmarks):
        """Writes `out` (`write_heads`), when acc is there."""
        queries = self.queries
        acc = self.partial.acc
        if self.peer != None:
            acc = self.peer.swap(acc, self.sums)
            # By GpSimd, beside the sums.
            gpsimd = nisa.engine.gpsimd
            nisa.tensor_tensor(self.l, self.l, self.peer.theirs[:, 0, :], nl.add, engine=gpsimd)
            self.invert()
        for part in range(queries.parts):
            sums = self.sums[part]
            nisa.tensor_tensor(sums, sums, acc[part], nl.add)
            landmarks.written += write_heads(queries, sums, self.l, out, part)


class Peer(nl.NKIObject):
    """The other core's partial over its part of the positions. `m`: the larger of both; `mine`,
    `theirs`: l and acc scaled to it, [128, 1 + parts, C]."""

    def __init__(self, sbm, queries, partial):
        width = partial.m.shape[1]
        self.size = queries.size
        shape = (PMAX, 1 + queries.parts, width)
        self.mine, self.theirs = sbm.ring(2, shape, nl.float32, "new.peer")
        if self.size < PMAX:
            # What no part of a head is on is sent too.
            nisa.memset(self.mine, 0.0, engine=nisa.engine.gpsimd)
        other, self.m, self.scale = sbm.ring(3, (PMAX, width), nl.float32, "new.peer_m")
        swap_with_peer(partial.m, other)
        nisa.tensor_tensor(self.m, partial.m, other, nl.maximum)
        nisa.tensor_tensor(self.scale, partial.m, self.m, nl.subtract)
        nisa.activation(self.scale, nl.exp, self.scale)
        nisa.tensor_tensor(self.mine[:, 0, :], partial.l, self.scale, nl.multiply)

    def swap(self, acc, sums):
        """Adds this core's `acc` to `sums`; returns the other's: [d/parts, C] for each part."""
        scale = self.scale[0 : self.size, :]
        for part in range(len(acc)):
            mine = self.mine[0 : self.size, 1 + part, :]
            nisa.tensor_tensor(mine, acc[part], scale, nl.multiply)
            nisa.tensor_tensor(sums[part], sums[part], mine, nl.add)
        swap_with_peer(self.mine, self.theirs)
        return [self.theirs[0 : self.size, 1 + part, :] for part in range(len(acc))]


def wide_sink(visibility, shape):
    """The sink for each column, as `shape` [128, rows, q, S]."""
    sink = visibility.sink.expand_dim(1).expand_dim(3)
    return sink.broadcast(1, shape[1]).broadcast(3, shape[3])


def exp_of_sink(sbm, queries, visibility, rows, m):
    """exp(sink - m), [128, C]; m is no less than the sink."""
    shape = (PMAX, rows[1], queries.heads, queries.tokens)
    total = sbm.stack((PMAX, m.shape[1]), nl.float32, "new.sink")
    sink = wide_sink(visibility, shape)
    gpsimd = nisa.engine.gpsimd
    nisa.tensor_tensor(total.reshape(shape), sink, m.reshape(shape), nl.subtract, engine=gpsimd)
    nisa.activation(total, nl.exp, total)
    return total


def spread_value(queries, rows, part, target):
    """(`target` [d/parts, C], one part of the new V of rows (first, count)), both as
    [d/parts, rows, kv, group * S]."""
    first, count = rows
    shape = (queries.size, count, queries.kv_heads, queries.group * queries.tokens)
    kv = slice(part, queries.kv_heads * queries.parts, queries.parts)
    value = queries.v[:, kv, first : first + count, 0].permute((0, 2, 1))
    return target.reshape(shape), value.expand_dim(3).broadcast(3, shape[3])


def new_scores(queries, visibility, rows, scores):
    """Writes the scores of the new tokens, the same on every partition: [128, S', rows, q, S], or
    as many columns. Returns the instructions that take them from PSUM."""
    first, count = rows
    shape = (PMAX, queries.new, count, queries.heads, queries.tokens)
    scores = scores.reshape(shape)
    if queries.new > 1 or visibility.new != None:
        nisa.memset(scores, MASKED, engine=nisa.engine.gpsimd)
    taken = []
    for s in range(queries.new):
        for row, n in banks_of_rows(queries, count):
            psum = nl.ndarray((PMAX, n) + shape[3:], nl.float32, buffer=nl.psum)
            multiply_new_keys(queries, first + row, s, psum, False)
            target = scores[:, s, row : row + n, :, :]
            if visibility.new == None:
                who = who_sees(queries, visibility.window, s)
                if who.start < who.stop:
                    taken.append(nisa.tensor_copy(target[:, :, :, who], psum[:, :, :, who]))
            else:
                b = first + row
                seen_by = visibility.new[:, s, b : b + n, :, :]
                taken.append(nisa.tensor_copy_predicated(target, psum, seen_by))
    return taken


def exp_of_new(queries, rows, m, minus, e):
    """e [128, C] = exp(score - m) of one new token a row, which all of its queries see. With
    `minus`, a row of -1, the tensor engine takes off m [128, C] before the key is there; None: m
    comes later."""
    first, count = rows
    shape = (PMAX, count, queries.heads, queries.tokens)
    e = e.reshape(shape)
    m = m.reshape(shape)
    for row, n in banks_of_rows(queries, count):
        psum = nl.ndarray((PMAX, n) + shape[2:], nl.float32, buffer=nl.psum)
        target = e[:, row : row + n, :, :]
        if minus != None:
            nisa.nc_matmul(psum, minus, m[0:1, row : row + n, :, :], accumulate=False)
        multiply_new_keys(queries, first + row, 0, psum, minus != None)
        if minus != None:
            nisa.activation(target, nl.exp, psum)
        else:
            nisa.tensor_tensor(target, psum, m[:, row : row + n, :, :], nl.subtract)
            nisa.activation(target, nl.exp, target)


def banks_of_rows(queries, count):
    """[(first, rows)]: as many rows' columns as a PSUM bank holds."""
    step = BANK // queries.columns()
    return [(row, min(step, count - row)) for row in range(0, count, step)]


def multiply_new_keys(queries, first, s, psum, add):
    """psum [128, rows, q, S] (+)= the scores of rows `first`.. with their new token s, the same on
    every partition."""
    group = queries.group
    for r in range(psum.shape[1]):
        b = first + r
        for kv in range(queries.kv_heads):
            heads = slice(kv * group, (kv + 1) * group)
            for part in range(queries.parts):
                key = queries.k[:, kv * queries.parts + part, b, s : s + 1].broadcast(1, PMAX)
                for i in range(len(queries.q[part])):
                    q = queries.q[part][i][:, heads, b, :]
                    sums = psum[:, r, heads, :]
                    nisa.nc_matmul(sums, key, q, accumulate=add or part + i > 0)


def who_sees(queries, window, s):
    """Which of the queries' tokens may see new token s without a mask: a slice, perhaps empty."""
    first, count = queries.first_token, queries.tokens
    last = first + count if window == 0 else min(first + count, s + window)
    return slice(max(s, first) - first, max(0, last - first))


def weigh_new(sbm, queries, visibility, rows, weights, place):
    """`place`: (acc [d/parts, C], part); acc += that part of the new V, weighted. Few and on the
    partitions of d already: no matmul. Where a new token does not count its V is left out, whatever
    it holds. `weights` [128, S', C]."""
    acc, part = place
    tokens, kv_heads, size = queries.tokens, queries.kv_heads, queries.size
    first, count = rows
    shape = (size, count * kv_heads, queries.group, tokens)
    acc = acc.reshape(shape)
    gpsimd = nisa.engine.gpsimd
    product = sbm.stack(shape, nl.float32, f"new.product.{part}")
    counted = sbm.stack(shape, nl.float32, f"new.counted.{part}")
    v = queries.v[:, part : kv_heads * queries.parts : queries.parts, first : first + count, :]
    for s in range(queries.new):
        value = sbm.stack((size, count, kv_heads), nl.float32, f"new.value.{part}.{s}")
        nisa.tensor_copy(value, v[:, :, :, s].permute((0, 2, 1)), engine=gpsimd)
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
    """Sink logits [q, 1] in HBM, on every partition, FLOOR at least: [128, q] float32; None stays
    None."""
    if sink == None:
        return None
    heads = sink.shape[0]
    raw = sbm.stack((PMAX, heads), sink.dtype, "sink.raw")
    load_small(raw, sink.ap([[0, PMAX], [1, heads]], offset=0))
    wide = sbm.stack((PMAX, heads), nl.float32, "sink")
    nisa.tensor_scalar(wide, raw, nl.maximum, FLOOR)
    return wide
