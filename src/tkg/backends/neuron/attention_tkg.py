"""Attention of a few new tokens over a cached context, nothing spilled.

    scores[s, c] = K[s, :] . q[:, c]        c = (b, kv, g, t): row, KV head, query of it, new token
    m[c] = max_s scores                     p = exp(scores - m)
    l[c] = sum_s p                          acc[:, c] = sum_s V[s, :] p[s, c]
    out[:, c] = acc / l

Positions are on the partitions for scores and p, so K^T and V are both stationary operands just as
they come from HBM, and neither p nor the output is ever transposed. What lies on all partitions:
m and l (made equal there by a matmul with ones). A *partial* is (m, l, acc) over some positions;
two are merged by scaling each to the larger m. The new tokens and the sink are one partial, each
pass over cached positions is another, and each core of a pair may hold one.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK, PMAX, factors
from tkg.backends.neuron.matrices import filled, spread_row

MASKED = -3.0e38  # a score that does not count
FLOOR = -1.0e30  # m where nothing counts: then every p is 0, and so is l
SCORE_BYTES = 16 * 1024  # a partition, for the scores of one pass


class Partial(nl.NKIObject):
    """m, l [128, C] equal on all partitions; acc [d, C]; float32."""

    def __init__(self, sbm, d_head, columns, name):
        self.m = sbm.stack((PMAX, columns), nl.float32, name + ".m")
        self.l = sbm.stack((PMAX, columns), nl.float32, name + ".l")
        self.acc = sbm.stack((d_head, columns), nl.float32, name + ".acc")


class Queries(nl.NKIObject):
    """`q`: tiles [d, N, B, S] that sum to the scaled queries, in dtypes that multiply the cache's;
    `parity`: the same for their even and odd elements, [d/2, N, B, S], where K^T comes in pairs,
    else None. `kind`: the dtype of probabilities. `k`, `v`: the new tokens' K and V, [d, kv, B, S],
    rounded to the cache's dtype."""

    def __init__(self, q, parity, kind, k, v):
        self.q = q
        self.parity = parity
        self.kind = kind
        self.k = k
        self.v = v
        self.d_head = q[0].shape[0]
        self.heads = q[0].shape[1]
        self.kv_heads = k.shape[1]
        self.group = self.heads // k.shape[1]
        self.tokens = q[0].shape[3]

    def columns(self):
        """Columns of one row of the batch."""
        return self.heads * self.tokens


class Pass(nl.NKIObject):
    """Rows first..first+count of the batch over one part of the context."""

    def __init__(self, first, count, context):
        self.first = first
        self.count = count
        self.context = context


def plan_passes(queries, first_row, rows, context):
    """[[passes over the same rows]]: rows so that columns fit the partitions, and parts of the
    context so that the scores fit SBUF."""
    columns = queries.columns()
    room = SCORE_BYTES // 4
    count = max(1, min(rows, PMAX // columns, room // (columns * context.tiles())))
    groups = min(context.groups, max(1, room // (columns * context.run)))
    plan = []
    for first in range(first_row, first_row + rows, count):
        n = min(count, first_row + rows - first)
        parts = []
        for g in range(0, context.groups, groups):
            part = context.part(context.first_group + g, min(groups, context.groups - g))
            parts.append(Pass(first, n, part))
        plan.append(parts)
    return plan


def attention_tkg(sbm, queries, reader, visibility, rows, out, share):
    """Writes out [d, B, N, S] for rows (first, count) of the batch.

    `share`: None, or the function that fetches the other core's partial (where the context is split
    over them).
    """
    d_head = queries.d_head
    plan = plan_passes(queries, rows[0], rows[1], reader.context)
    width = max([parts[0].count for parts in plan]) * queries.columns()
    sbm.open_scope("attention")
    buffers = Buffers(sbm, queries, plan, width)
    work = [(parts, i) for parts in plan for i in range(len(parts))]
    total = Partial(sbm, d_head, width, "attention.total")
    other = Partial(sbm, d_head, width, "attention.other")
    if len(work) > 0:
        score(queries, reader, visibility, work[0][0][work[0][1]], buffers, 0)
    for i in range(len(work)):
        parts, at = work[i]
        if i + 1 < len(work):
            # The next pass's scores first, so that the tensor engine has work during this softmax.
            following = work[i + 1]
            score(queries, reader, visibility, following[0][following[1]], buffers, i + 1)
        this = parts[at]
        columns = this.count * queries.columns()
        target = total if at == 0 else other
        softmax(sbm, queries, this, buffers, i, target)
        weigh(sbm, queries, reader, visibility, this, buffers.weights[i % 2], target)
        if at > 0:
            merge(sbm, total, other, columns)
        if at == len(parts) - 1:
            if share != None:
                share(sbm, total, other, columns)
                merge(sbm, total, other, columns)
            new_tokens(sbm, queries, visibility, this, other)
            merge(sbm, total, other, columns)
            finish(sbm, queries, this, total, out)
    sbm.close_scope()


class Buffers(nl.NKIObject):
    """Scores and probabilities of two passes in flight; a matrix of ones."""

    def __init__(self, sbm, queries, plan, width):
        columns = queries.group * queries.tokens
        units = width // columns
        tiles = max([part.context.tiles() for parts in plan for part in parts])
        self.scores = sbm.ring(2, (PMAX, units, tiles, columns), nl.float32, "attention.scores")
        self.weights = sbm.ring(2, (PMAX, units, tiles, columns), queries.kind, "attention.p")
        self.ones = filled(sbm, (PMAX, PMAX), 1.0, "attention.ones")


def score(queries, reader, visibility, this, buffers, turn):
    """scores = K q where a slot counts, MASKED elsewhere."""
    context = this.context
    scores = buffers.scores[turn % 2]
    group, tokens = queries.group, queries.tokens
    nisa.memset(scores, MASKED, engine=nisa.engine.gpsimd)
    per_bank = max(1, BANK // (group * tokens))
    whole = reader.context
    for row in range(this.count):
        b = this.first + row
        for kv in range(queries.kv_heads):
            unit = row * queries.kv_heads + kv
            heads = slice(kv * group, (kv + 1) * group)
            for g in range(context.groups):
                there = context.first_group - whole.first_group + g
                tile = reader.keys(b, kv, there)
                height = context.height(g)
                for l in range(0, context.run, per_bank):
                    n = min(per_bank, context.run - l)
                    psum = nl.ndarray((height, n, group, tokens), nl.float32, buffer=nl.psum)
                    for i in range(n):
                        multiply_keys(queries, reader, tile, (there, l + i), (b, heads), psum[:, i])
                    first = there * whole.run + l
                    nisa.tensor_copy_predicated(
                        scores[0:height, unit, g * context.run + l : g * context.run + l + n, :],
                        psum,
                        seen(
                            visibility.scores,
                            height,
                            b,
                            slice(first, first + n),
                            heads,
                            group,
                            tokens,
                        ),
                    )


def multiply_keys(queries, reader, tile, place, rows, psum):
    """psum [positions, g, t] = K q for one tile of positions; `place`: (group, l), `rows`: (b,
    query heads)."""
    group, l = place
    b, heads = rows
    halves = [queries.q] if queries.parity == None else queries.parity
    for half in range(len(halves)):
        columns = reader.key_columns(tile, group, l, half)
        for i in range(len(halves[half])):
            q = halves[half][i][:, heads, b, :]
            nisa.nc_matmul(psum, columns, q, accumulate=half + i > 0)


def seen(mask, height, b, tiles, heads, group, tokens):
    """The mask of some tiles as [positions, tiles, g, t], broadcast where it is the same for
    all."""
    part = mask[0:height, b, tiles, :, :]
    if mask.shape[3] > 1:
        part = part[:, :, heads, :]
    elif group > 1:
        part = part.broadcast(2, group)
    if part.shape[3] < tokens:
        part = part.broadcast(3, tokens)
    return part


def softmax(sbm, queries, this, buffers, turn, partial):
    """p = exp(scores - m) into the pass's weights; m and l of the partial."""
    tiles = this.context.tiles()
    columns = queries.group * queries.tokens
    units = this.count * queries.kv_heads
    width = units * columns
    scores = buffers.scores[turn % 2][:, 0:units, 0:tiles, :]
    weights = buffers.weights[turn % 2][:, 0:units, 0:tiles, :]
    m, l = partial.m[:, 0:width], partial.l[:, 0:width]
    sbm.open_scope("softmax")
    part = sbm.stack((PMAX, width), nl.float32, "softmax.part")
    by_unit = part.reshape((PMAX, units, columns))
    nisa.tensor_reduce(by_unit, nl.maximum, scores.permute((0, 1, 3, 2)), axis=3)
    largest = sbm.stack((width, 1), nl.float32, "softmax.largest")
    turned = nl.ndarray((width, PMAX), nl.float32, buffer=nl.psum)
    nisa.nc_transpose(turned, part, engine=nisa.engine.tensor)
    nisa.tensor_reduce(largest, nl.maximum, turned, axis=1)
    # Turned back from a view that repeats each value: no arithmetic, so a NaN stays in its column.
    everywhere = nl.ndarray((PMAX, width), nl.float32, buffer=nl.psum)
    nisa.nc_transpose(everywhere, largest.broadcast(1, PMAX), engine=nisa.engine.tensor)
    nisa.tensor_scalar(m, everywhere, nl.maximum, FLOOR)
    shift = m.reshape((PMAX, units, columns)).expand_dim(2).broadcast(2, tiles)
    nisa.tensor_tensor(scores, scores, shift, nl.subtract)
    nisa.activation(weights, nl.exp, scores)
    nisa.tensor_reduce(by_unit, nl.add, weights.permute((0, 1, 3, 2)), axis=3)
    sums = nl.ndarray((PMAX, width), nl.float32, buffer=nl.psum)
    nisa.nc_matmul(sums, buffers.ones, part, accumulate=False)
    nisa.tensor_copy(l, sums)
    sbm.close_scope()


def weigh(sbm, queries, reader, visibility, this, weights, partial):
    """acc = V^T p."""
    context = this.context
    columns = queries.group * queries.tokens
    units = this.count * queries.kv_heads
    psum = nl.ndarray((queries.d_head, units, columns), nl.float32, buffer=nl.psum)
    sbm.open_scope("weigh")
    used = weights[:, 0:units, 0 : context.tiles(), :]
    parts = factors(sbm, used, reader.V.dtype, "weigh.p")
    for row in range(this.count):
        b = this.first + row
        for kv in range(queries.kv_heads):
            unit = row * queries.kv_heads + kv
            shared = visibility.slots.shape[2] == 1
            slots = visibility.slots[:, b, 0 if shared else kv, :]
            for g in range(context.groups):
                there = context.first_group - reader.context.first_group + g
                values = reader.values(b, kv, there, slots)
                height = context.height(g)
                for l in range(context.run):
                    for i in range(len(parts)):
                        p = parts[i][0:height, unit, g * context.run + l, :]
                        sums = psum[:, unit, :]
                        nisa.nc_matmul(sums, values[:, l, :], p, accumulate=g + l + i > 0)
    nisa.tensor_copy(partial.acc[:, 0 : units * columns], psum)
    sbm.close_scope()


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
    shift = m.reshape(by_unit).expand_dim(2).broadcast(2, tokens)
    nisa.tensor_tensor(scores, scores, shift, nl.subtract)
    nisa.activation(scores, nl.exp, scores)
    nisa.tensor_reduce(l.reshape(by_unit), nl.add, scores.permute((0, 1, 3, 2)), axis=3)
    if sink != None:
        extra = sbm.stack((PMAX, width), nl.float32, "new.sink")
        nisa.tensor_tensor(extra.reshape(by_head), sink, m.reshape(by_head), nl.subtract)
        nisa.activation(extra, nl.exp, extra)
        nisa.tensor_tensor(l, l, extra, nl.add)
    weigh_new(sbm, queries, visibility, this, scores, partial.acc[:, 0:width])
    sbm.close_scope()


def new_scores(sbm, queries, visibility, this):
    """Scores of the new tokens, the same on every partition: [128, units, S', columns]."""
    group, tokens, kv_heads = queries.group, queries.tokens, queries.kv_heads
    units = this.count * kv_heads
    scores = filled(sbm, (PMAX, units, tokens, group, tokens), MASKED, "new.scores")
    for row in range(this.count):
        b = this.first + row
        for kv in range(kv_heads):
            heads = slice(kv * group, (kv + 1) * group)
            for s in range(tokens):
                psum = nl.ndarray((PMAX, group, tokens), nl.float32, buffer=nl.psum)
                key = queries.k[:, kv, b, s : s + 1].broadcast(1, PMAX)
                for i in range(len(queries.q)):
                    nisa.nc_matmul(psum, key, queries.q[i][:, heads, b, :], accumulate=i > 0)
                target = scores[:, row * kv_heads + kv, s, :, :]
                if visibility.new == None:
                    last = tokens if visibility.window == 0 else min(tokens, s + visibility.window)
                    nisa.tensor_copy(target[:, :, s:last], psum[:, :, s:last])
                else:
                    nisa.tensor_copy_predicated(target, psum, visibility.new[:, s, b, heads, :])
    return scores.reshape((PMAX, units, tokens, group * tokens))


def weigh_new(sbm, queries, visibility, this, weights, acc):
    """acc [d, C] = the new V, weighted. Few and on d partitions already: no matmul. Where a new
    token does not count its V is left out, whatever it holds."""
    tokens, kv_heads, d_head = queries.tokens, queries.kv_heads, queries.d_head
    group, units = queries.group, this.count * queries.kv_heads
    shape = (d_head, units, group, tokens)
    acc = acc.reshape(shape)
    nisa.memset(acc, 0.0)
    product = sbm.stack(shape, nl.float32, "new.product")
    counted = sbm.stack(shape, nl.float32, "new.counted")
    weights = weights.reshape((PMAX, units, tokens, group, tokens))
    for s in range(tokens):
        value = sbm.stack((d_head, this.count, kv_heads), nl.float32, f"new.value.{s}")
        new = queries.v[:, :, this.first : this.first + this.count, s].permute((0, 2, 1))
        nisa.tensor_copy(value, new)
        wide = value.reshape((d_head, units, 1)).broadcast(2, group).expand_dim(3)
        wide = wide.broadcast(3, tokens)
        nisa.tensor_tensor(product, weights[0:d_head, :, s, :, :], wide, nl.multiply)
        if visibility.new == None:
            last = tokens if visibility.window == 0 else min(tokens, s + visibility.window)
            seen_by = acc[:, :, :, s:last]
            nisa.tensor_tensor(seen_by, seen_by, product[:, :, :, s:last], nl.add)
        else:
            rows = slice(this.first, this.first + this.count)
            mask = visibility.new[0:d_head, s, rows, :, :].reshape(shape)
            nisa.memset(counted, 0.0)
            nisa.tensor_copy_predicated(counted, product, mask)
            nisa.tensor_tensor(acc, acc, counted, nl.add)


def merge(sbm, total, other, columns):
    """total = the partial over both's positions."""
    sbm.open_scope("merge")
    d_head = total.acc.shape[0]
    m = sbm.stack((PMAX, columns), nl.float32, "merge.m")
    scale = sbm.stack((PMAX, columns), nl.float32, "merge.scale")
    nisa.tensor_tensor(m, total.m[:, 0:columns], other.m[:, 0:columns], nl.maximum)
    for part in (total, other):
        nisa.tensor_tensor(scale, part.m[:, 0:columns], m, nl.subtract)
        nisa.activation(scale, nl.exp, scale)
        nisa.tensor_tensor(part.l[:, 0:columns], part.l[:, 0:columns], scale, nl.multiply)
        acc = part.acc[:, 0:columns]
        nisa.tensor_tensor(acc, acc, scale[0:d_head, :], nl.multiply)
    for a, b in ((total.l, other.l), (total.acc, other.acc)):
        nisa.tensor_tensor(a[:, 0:columns], a[:, 0:columns], b[:, 0:columns], nl.add)
    nisa.tensor_copy(total.m[:, 0:columns], m)
    sbm.close_scope()


def finish(sbm, queries, this, total, out):
    """out = acc / l; 0 where nothing counts."""
    columns = this.count * queries.columns()
    sbm.open_scope("finish")
    inverse = sbm.stack((PMAX, columns), nl.float32, "finish.inverse")
    # l is at least 1 where anything counts: its largest p is exp(0).
    nisa.tensor_scalar(inverse, total.l[:, 0:columns], nl.maximum, 0.5)
    nisa.reciprocal(inverse, inverse)
    target = out[:, this.first : this.first + this.count, :, :]
    shape = (queries.d_head, this.count, queries.heads, queries.tokens)
    nisa.tensor_tensor(
        target,
        total.acc[:, 0:columns].reshape(shape),
        inverse[0 : queries.d_head, :].reshape(shape),
        nl.multiply,
    )
    sbm.close_scope()


def load_sink(sbm, sink):
    """Sink logits [q, 1] in HBM, on every partition: [128, q] float32; None stays None."""
    if sink == None:
        return None
    heads = sink.shape[0]
    row = sbm.stack((1, heads), sink.dtype, "sink.row")
    nisa.dma_copy(row, sink.ap([[0, 1], [1, heads]], offset=0))
    return spread_row(sbm, row, PMAX, "sink")


def share_with_peer(sbm, total, other, columns):
    """`other` becomes the other core's partial, whose acc lies on d partitions."""
    peer = 1 - nl.program_id(0)
    for mine, theirs in ((total.m, other.m), (total.l, other.l), (total.acc, other.acc)):
        nisa.sendrecv(mine[:, 0:columns], theirs[:, 0:columns], peer, peer, pipe_id=0)
