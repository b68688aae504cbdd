"""Attention of a few new tokens over a cached context, nothing spilled.

    scores[s, c] = K[s, :] . q[:, c]        c = (b, kv, g, t): row, KV head, query of it, new token
    m[c] = max_s scores                     p = exp(scores - m)
    l[c] = sum_s p                          acc[:, c] = sum_s V[s, :] p[s, c]
    out[:, c] = acc / l

Positions are on the partitions for scores and p, so K^T and V are both stationary operands just as
they come from HBM, and neither p nor the output is ever transposed. What lies on all partitions:
m and l (made equal there by a matmul with ones). A *partial* is (m, l, acc) over some positions.
It begins with the new tokens and the sink, which wait for no cache; each pass over cached positions
scales it to the larger m and adds its own. Each core of a pair may hold one: two are merged.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK, PMAX, factors
from tkg.backends.neuron.matrices import filled
from tkg.backends.neuron.new_tokens import new_tokens
from tkg.backends.neuron.nonfinite_values import NonfiniteValues
from tkg.backends.neuron.partials import MASKED, finish, new_partial, rescale, share

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


def plan_passes(queries, first_row, rows, reader):
    """Passes: rows so that columns fit the partitions, and parts of the context so that the scores
    fit SBUF. K and V of a pass take half of their rings: the next one's are on their way while this
    one's V waits for its softmax."""
    context = reader.context
    columns = queries.columns()
    room = SCORE_BYTES // (4 * columns * context.run)
    ahead = max(1, reader.depth // (2 * queries.kv_heads))
    groups = min(context.groups, ahead, max(1, room))
    count = max(1, min(rows, PMAX // columns, ahead // groups, room // groups))
    plan = []
    for first in range(first_row, first_row + rows, count):
        n = min(count, first_row + rows - first)
        for g in range(0, context.groups, groups):
            part = context.part(context.first_group + g, min(groups, context.groups - g))
            plan.append(Pass(first, n, part))
    return plan


def attention_tkg(sbm, queries, reader, visibility, rows, out, shared):
    """Writes out [d/parts, B, N*parts, S] for rows (first, count) of the batch.

    `shared`: whether the other core has the other part of the context. Where a row has more queries
    than there are partitions, some are done at a time.
    """
    cuts = cut_queries(queries)
    if len(cuts) == 1:
        attend(sbm, queries, reader, visibility, rows, (out, shared))
        return
    for row in range(rows[0], rows[0] + rows[1]):
        for cut in cuts:
            heads = slice(cut.heads.start * queries.parts, cut.heads.stop * queries.parts)
            target = out[:, :, heads, cut.tokens]
            some, seen_by = queries.cut(cut), visibility.cut(cut)
            attend(sbm, some, reader, seen_by, (row, 1), (target, shared))


def attend(sbm, queries, reader, visibility, rows, target):
    """`attention_tkg` for queries that fit the partitions; `target`: (out, shared)."""
    out, shared = target
    first, count = rows
    columns = queries.columns()
    plan = plan_passes(queries, first, count, reader)
    sbm.open_scope("attention")
    total = new_partial(sbm, queries, count * columns, "attention.total")
    nonfinite = None
    if visibility.slots == None:
        unit = queries.group * queries.tokens
        nonfinite = NonfiniteValues(sbm, reader.context.run, reader.d_head, unit)
    buffers = Buffers(sbm, queries, plan, nonfinite)
    score(queries, reader, visibility, plan[0], buffers, 0)
    step = max(1, SCORE_BYTES // (4 * columns * queries.new))
    for b in range(first, first + count, step):
        n = min(step, first + count - b)
        here = total.part((b - first) * columns, n * columns)
        new_tokens(sbm, queries, visibility, (b, n), here, 0.5 if shared else 1.0)
    for i in range(len(plan)):
        this = plan[i]
        if i + 1 < len(plan):
            # The next pass's scores first, so that the tensor engine has work during this softmax.
            score(queries, reader, visibility, plan[i + 1], buffers, i + 1)
        here = total.part((this.first - first) * columns, this.count * columns)
        softmax(queries, this, buffers, i, here)
        weigh(sbm, queries, reader, visibility, this, (buffers, i), here)
    if shared:
        share(sbm, queries, total)
    finish(queries, total, out[:, first : first + count, :, :])
    sbm.close_scope()


class Buffers(nl.NKIObject):
    """What two passes in flight need: scores and probabilities [128, rows, q heads * S, tiles],
    single values a column; a matrix of ones; and what it takes where not all queries of a unit see
    the same slots, else None."""

    def __init__(self, sbm, queries, plan, nonfinite):
        self.nonfinite = nonfinite
        rows = max([part.count for part in plan])
        tiles = max([part.context.tiles() for part in plan])
        columns = queries.columns()
        shape = (PMAX, rows, columns, tiles)
        self.scores = sbm.ring(2, shape, nl.float32, "attention.scores")
        self.weights = sbm.ring(2, shape, queries.kind, "attention.p")
        self.ones = filled(sbm, (PMAX, PMAX), 1.0, "attention.ones")
        flat = (PMAX, rows * columns)
        self.columns = [sbm.ring(3, flat, nl.float32, f"attention.columns.{i}") for i in range(2)]
        self.largest = sbm.ring(2, (PMAX, 1), nl.float32, "attention.largest")


def score(queries, reader, visibility, this, buffers, turn):
    """scores = K q where a slot counts, MASKED elsewhere."""
    context = this.context
    scores = buffers.scores[turn % 2]
    nisa.memset(scores, MASKED, engine=nisa.engine.gpsimd)
    # As many rows as a PSUM bank holds are copied at once, or a KV head of one.
    size = queries.columns() * context.run
    step = max(1, BANK // size)
    heads = [range(queries.kv_heads)]
    if size > BANK:
        heads = [range(kv, kv + 1) for kv in range(queries.kv_heads)]
    unit = queries.group * queries.tokens
    for g in range(context.groups):
        there = context.first_group - reader.context.first_group + g
        tiles = slice(g * context.run, (g + 1) * context.run)
        for row in range(0, this.count, step):
            rows = range(this.first + row, this.first + min(row + step, this.count))
            part = scores[0 : context.height(g), row : row + len(rows), :, tiles]
            for kvs in heads:
                columns = slice(kvs[0] * unit, (kvs[-1] + 1) * unit)
                score_units(queries, reader, visibility, (rows, kvs, there), part[:, :, columns, :])


def score_units(queries, reader, visibility, which, scores):
    """Scores [positions, rows, columns, run] of `which`: (rows, KV heads, group); several of them
    only if they fit a PSUM bank."""
    rows, kvs, group = which
    height, _, columns, run = scores.shape
    n = min(run, BANK // columns)
    for l in range(0, run, n):
        tiles = min(n, run - l)
        psum = nl.ndarray((height, len(rows), columns, tiles), nl.float32, buffer=nl.psum)
        by_unit = psum.reshape((height, len(rows) * len(kvs), columns // len(kvs), tiles))
        units = [(b, kv) for b in rows for kv in kvs]
        for u in range(len(units)):
            if l == 0:
                keys = reader.keys(units[u][0], queries.first_kv + units[u][1], group)
            for i in range(tiles):
                place = (group, l + i)
                multiply_keys(queries, reader, keys, place, units[u], by_unit[:, u, :, i])
        first = group * run + l
        counts = seen(visibility.scores, (height, rows, range(first, first + tiles)), queries)
        heads = slice(kvs[0] * queries.group, (kvs[-1] + 1) * queries.group)
        target = scores[:, :, :, l : l + tiles]
        nisa.tensor_copy_predicated(target, psum, counts[:, :, heads, :, :])


def multiply_keys(queries, reader, tile, place, unit, psum):
    """psum [positions, columns] = K q for one tile of positions; `place`: (group, l), `unit`: (row
    of the batch, KV head)."""
    group, l = place
    b, kv = unit
    heads = slice(kv * queries.group, (kv + 1) * queries.group)
    for part in range(len(queries.keyed)):
        columns = reader.key_columns(tile, group, l, part)
        for i in range(len(queries.keyed[part])):
            q = queries.keyed[part][i][:, heads, b, :]
            nisa.nc_matmul(psum, columns, q, accumulate=part + i > 0)


def seen(mask, where, queries):
    """The mask [128, B, tiles, q or 1, S or 1] of `where`, (partitions, rows, tiles), as
    [positions, rows, q * S, tiles]."""
    height, rows, tiles = where
    part = mask[0:height, rows[0] : rows[-1] + 1, tiles[0] : tiles[-1] + 1, :, :]
    if part.shape[3] < queries.heads:
        part = part.broadcast(3, queries.heads)
    if part.shape[4] < queries.tokens:
        part = part.broadcast(4, queries.tokens)
    return part.permute((0, 1, 3, 4, 2))


def softmax(queries, this, buffers, turn, total):
    """p = exp(scores - m) into the pass's weights; `total` scaled to the new m, and the sums of p
    added to its l."""
    tiles = this.context.tiles()
    width = this.count * queries.columns()
    flat = (PMAX, width, tiles)
    scores = buffers.scores[turn % 2][:, 0 : this.count, :, 0:tiles].reshape(flat)
    weights = buffers.weights[turn % 2][:, 0 : this.count, :, 0:tiles].reshape(flat)
    part, m, scale = [tile[:, 0:width] for tile in buffers.columns[turn % 2]]
    nisa.tensor_reduce(part, nl.maximum, scores, axis=2)
    largest = buffers.largest[turn % 2][0:width, :]
    turned = nl.ndarray((width, PMAX), nl.float32, buffer=nl.psum)
    nisa.nc_transpose(turned, part, engine=nisa.engine.tensor)
    nisa.tensor_reduce(largest, nl.maximum, turned, axis=1)
    # Turned back from a view that repeats each value: no arithmetic, so a NaN stays in its column.
    everywhere = nl.ndarray((PMAX, width), nl.float32, buffer=nl.psum)
    nisa.nc_transpose(everywhere, largest.broadcast(1, PMAX), engine=nisa.engine.tensor)
    nisa.tensor_tensor(m, everywhere, total.m, nl.maximum)
    shift = m.expand_dim(2).broadcast(2, tiles)
    nisa.tensor_tensor(scores, scores, shift, nl.subtract, engine=nisa.engine.gpsimd)
    nisa.activation(weights, nl.exp, scores)
    nisa.tensor_reduce(part, nl.add, weights, axis=2)
    sums = nl.ndarray((PMAX, width), nl.float32, buffer=nl.psum)
    nisa.nc_matmul(sums, buffers.ones, part, accumulate=False)
    rescale(total, m, scale)
    nisa.tensor_tensor(total.l, sums, total.l, nl.add)


def weigh(sbm, queries, reader, visibility, this, place, total):
    """acc += V^T p; `place`: (buffers, turn)."""
    buffers, turn = place
    nonfinite = buffers.nonfinite
    context = this.context
    columns = queries.columns() // queries.kv_heads
    units = this.count * queries.kv_heads
    shape = (queries.size, queries.parts, units, columns)
    psum = nl.ndarray(shape, nl.float32, buffer=nl.psum)
    counts = None
    if nonfinite != None:
        counts = nl.ndarray(shape, nl.float32, buffer=nl.psum)
    sbm.open_scope("weigh")
    used = buffers.weights[turn % 2][:, 0 : this.count, :, 0 : context.tiles()]
    by_unit = (PMAX, units, columns, context.tiles())
    parts = [part.reshape(by_unit) for part in factors(sbm, used, reader.V.dtype, "weigh.p")]
    for unit in range(units):
        b, kv = this.first + unit // queries.kv_heads, unit % queries.kv_heads
        for g in range(context.groups):
            there = context.first_group - reader.context.first_group + g
            values = reader.values(b, queries.first_kv + kv, there, slots_of(visibility, b, kv))
            height = context.height(g)
            tiles = slice(g * context.run, (g + 1) * context.run)
            weights = [part[0:height, unit, :, tiles].permute((0, 2, 1)) for part in parts]
            if counts != None:
                all_tiles = range(there * context.run, (there + 1) * context.run)
                mask = seen(visibility.scores, (height, range(b, b + 1), all_tiles), queries)
                heads = slice(kv * queries.group, (kv + 1) * queries.group)
                mask = mask[:, 0, heads, :, :].permute((0, 3, 1, 2))
                marks, who = nonfinite.take_out(values, mask)
                add_products(counts[:, :, unit, :], marks, (who,), g > 0)
            add_products(psum[:, :, unit, :], values, weights, g > 0)
    for part in range(queries.parts):
        acc = total.acc[part]
        nisa.tensor_tensor(acc, psum[:, part, :, :].reshape(acc.shape), acc, nl.add)
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
