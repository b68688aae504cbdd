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
from tkg.backends.neuron.matrices import filled
from tkg.backends.neuron.new_tokens import new_tokens
from tkg.backends.neuron.nonfinite_values import NonfiniteValues
from tkg.backends.neuron.partials import FLOOR, MASKED, Partial, finish, merge

SCORE_BYTES = 16 * 1024  # a partition, for the scores of one pass


class Queries(nl.NKIObject):
    """`q`: for each part of a head the tiles [d/parts, N, B, S] that sum to the scaled queries, in
    dtypes that multiply the cache's; `keyed`: the same in the parts that K^T comes in. `kind`: the
    dtype of probabilities. `k`, `v`: the new tokens' K and V, [d/parts, kv*parts, B, S'], rounded
    to the cache's dtype. `place`: the first KV head and the first token, where these are some of
    the queries of a row."""

    def __init__(self, q, keyed, kind, k, v, place=(0, 0)):
        self.q = q
        self.keyed = keyed
        self.kind = kind
        self.k = k
        self.v = v
        self.parts = len(q)
        self.size = q[0][0].shape[0]
        self.heads = q[0][0].shape[1]
        self.kv_heads = k.shape[1] // self.parts
        self.group = self.heads // self.kv_heads
        self.tokens = q[0][0].shape[3]
        self.new = k.shape[3]
        self.first_kv, self.first_token = place

    def cut(self, cut):
        """The queries of a `Cut`."""
        heads, tokens = cut.heads, cut.tokens
        q = [[tile[:, heads, :, tokens] for tile in part] for part in self.q]
        keyed = [[tile[:, heads, :, tokens] for tile in part] for part in self.keyed]
        kv = slice(cut.kv.start * self.parts, cut.kv.stop * self.parts)
        place = (cut.kv.start, cut.tokens.start)
        return Queries(q, keyed, self.kind, self.k[:, kv, :, :], self.v[:, kv, :, :], place)

    def columns(self):
        """Columns of one row of the batch."""
        return self.heads * self.tokens


class Cut(nl.NKIObject):
    """Some queries of each row, as slices: KV heads, their query heads, and tokens."""

    def __init__(self, kv, heads, tokens):
        self.kv = kv
        self.heads = heads
        self.tokens = tokens


def cut_queries(queries):
    """[Cut] of all queries of a row, each of no more columns than there are partitions."""
    group, tokens = queries.group, queries.tokens
    cuts = []
    if group * tokens <= PMAX:
        step = PMAX // (group * tokens)
        for kv in range(0, queries.kv_heads, step):
            last = min(kv + step, queries.kv_heads)
            cuts.append(Cut(slice(kv, last), slice(kv * group, last * group), slice(0, tokens)))
        return cuts
    heads = min(group, PMAX)
    step = PMAX // heads
    for kv in range(queries.kv_heads):
        for h in range(kv * group, (kv + 1) * group, heads):
            last = min(h + heads, (kv + 1) * group)
            for t in range(0, tokens, step):
                chosen = slice(t, min(t + step, tokens))
                cuts.append(Cut(slice(kv, kv + 1), slice(h, last), chosen))
    return cuts


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
    """Writes out [d/parts, B, N*parts, S] for rows (first, count) of the batch.

    `share`: None, or the function that fetches the other core's partial (where the context is split
    over them). Where a row has more queries than there are partitions, some are done at a time.
    """
    cuts = cut_queries(queries)
    if len(cuts) == 1:
        attend(sbm, queries, reader, visibility, rows, (out, share))
        return
    for row in range(rows[0], rows[0] + rows[1]):
        for cut in cuts:
            heads = slice(cut.heads.start * queries.parts, cut.heads.stop * queries.parts)
            target = out[:, :, heads, cut.tokens]
            some, seen_by = queries.cut(cut), visibility.cut(cut)
            attend(sbm, some, reader, seen_by, (row, 1), (target, share))


def attend(sbm, queries, reader, visibility, rows, target):
    """`attention_tkg` for queries that fit the partitions; `target`: (out, share)."""
    out, share = target
    plan = plan_passes(queries, rows[0], rows[1], reader.context)
    width = max([parts[0].count for parts in plan]) * queries.columns()
    sbm.open_scope("attention")
    nonfinite = None
    if visibility.slots == None:
        unit = queries.group * queries.tokens
        nonfinite = NonfiniteValues(sbm, reader.context.run, reader.d_head, unit)
    buffers = Buffers(sbm, queries, plan, width, nonfinite)
    work = [(parts, i) for parts in plan for i in range(len(parts))]
    total = Partial(sbm, queries.size, queries.parts, width, "attention.total")
    other = Partial(sbm, queries.size, queries.parts, width, "attention.other")
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
        weigh(sbm, queries, reader, visibility, this, (buffers, i), target)
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
    """Scores and probabilities of two passes in flight; a matrix of ones; what it takes where not
    all queries of a unit see the same slots, else None."""

    def __init__(self, sbm, queries, plan, width, nonfinite):
        columns = queries.group * queries.tokens
        units = width // columns
        tiles = max([part.context.tiles() for parts in plan for part in parts])
        self.scores = sbm.ring(2, (PMAX, units, tiles, columns), nl.float32, "attention.scores")
        self.weights = sbm.ring(2, (PMAX, units, tiles, columns), queries.kind, "attention.p")
        self.ones = filled(sbm, (PMAX, PMAX), 1.0, "attention.ones")
        self.nonfinite = nonfinite


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
                tile = reader.keys(b, queries.first_kv + kv, there)
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
    for part in range(len(queries.keyed)):
        columns = reader.key_columns(tile, group, l, part)
        for i in range(len(queries.keyed[part])):
            q = queries.keyed[part][i][:, heads, b, :]
            nisa.nc_matmul(psum, columns, q, accumulate=part + i > 0)


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


def weigh(sbm, queries, reader, visibility, this, place, partial):
    """acc = V^T p; `place`: (buffers, turn)."""
    buffers, turn = place
    nonfinite = buffers.nonfinite
    context = this.context
    columns = queries.group * queries.tokens
    units = this.count * queries.kv_heads
    shape = (queries.size, queries.parts, units, columns)
    psum = nl.ndarray(shape, nl.float32, buffer=nl.psum)
    counts = None
    if nonfinite != None:
        counts = nl.ndarray(shape, nl.float32, buffer=nl.psum)
    sbm.open_scope("weigh")
    used = buffers.weights[turn % 2][:, 0:units, 0 : context.tiles(), :]
    parts = factors(sbm, used, reader.V.dtype, "weigh.p")
    for row in range(this.count):
        b = this.first + row
        for kv in range(queries.kv_heads):
            unit = row * queries.kv_heads + kv
            for g in range(context.groups):
                there = context.first_group - reader.context.first_group + g
                values = reader.values(b, queries.first_kv + kv, there, slots_of(visibility, b, kv))
                height = context.height(g)
                tiles = slice(g * context.run, (g + 1) * context.run)
                weights = [part[0:height, unit, tiles, :] for part in parts]
                if counts != None:
                    all_tiles = slice(there * context.run, (there + 1) * context.run)
                    heads = slice(kv * queries.group, (kv + 1) * queries.group)
                    mask = seen(
                        visibility.scores,
                        height,
                        b,
                        all_tiles,
                        heads,
                        queries.group,
                        queries.tokens,
                    )
                    marks, who = nonfinite.take_out(values, mask)
                    add_products(counts[:, :, unit, :], marks, (who,), g > 0)
                add_products(psum[:, :, unit, :], values, weights, g > 0)
    for part in range(queries.parts):
        acc = partial.acc[part][:, 0 : units * columns]
        nisa.tensor_copy(acc, psum[:, part, :, :])
        if counts != None:
            nonfinite.put_back(acc, counts[:, part, :, :].reshape(acc.shape))
    sbm.close_scope()


def add_products(psum, values, weights, add):
    """psum [d/parts, parts, columns] (+)= the sum over the tiles l of values[:, l, :]^T and
    weights[:, l, :], where `weights` are tiles that are added up."""
    size = psum.shape[0]
    for l in range(values.shape[1]):
        for part in range(psum.shape[1]):
            value = values[:, l, part * size : (part + 1) * size]
            for i in range(len(weights)):
                weight = weights[i][:, l, :]
                nisa.nc_matmul(psum[:, part, :], value, weight, accumulate=add or l + i > 0)


def slots_of(visibility, b, kv):
    """The slots of a unit whose V may be used, [128, tiles], or None."""
    if visibility.slots == None:
        return None
    shared = visibility.slots.shape[2] == 1
    return visibility.slots[:, b, 0 if shared else kv, :]
