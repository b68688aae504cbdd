"""Attention of a few new tokens over a cached context, nothing spilled.

    scores[s, c] = K[s, :] . q[:, c]        c = (b, kv, g, t): row, KV head, query of it, new token
    m[c] = max_s scores                     p = exp(scores - m)
    l[c] = sum_s p                          acc[:, c] = sum_s V[s, :] p[s, c]
    out[:, c] = acc / l

Positions are on the partitions for scores and p, so K^T and V are both stationary operands just as
they come from HBM, and neither p nor the output is ever transposed. What lies on all partitions:
m and l (made equal there by a matmul with ones). A *partial* is (m, l, acc) over some positions.
It begins with a pass over cached positions; the new tokens and the sink, and each further pass,
scale it to the larger m and add their own. Each core of a pair may hold one: two are merged.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK, PMAX, factors
from tkg.backends.neuron.matrices import filled
from tkg.backends.neuron.merging import Merge
from tkg.backends.neuron.new_tokens import Ending, wide_sink
from tkg.backends.neuron.nonfinite_values import NonfiniteValues
from tkg.backends.neuron.partials import FLOOR, MASKED, rescale
from tkg.backends.neuron.passes import plan_passes
from tkg.backends.neuron.queries import cut_queries

FEW_TILES = 16  # of a pass, up to which the tensor engine adds up their p
HALVED = 1024  # most scores of a pass on a partition from which m is taken by two engines


def attention_tkg(sbm, queries, reader, visibility, rows, out, shared):
    """Writes out [d/parts, B, N*parts, S] for rows (first, count) of the batch.

    `shared`: whether the other core has the other part of the context. Where a row has more queries
    than there are partitions, some are done at a time. Returns the `Landmarks` of the last.
    """
    cuts = cut_queries(queries)
    if len(cuts) == 1:
        return attend(sbm, queries, reader, visibility, rows, (out, shared))
    if queries.maker != None:
        queries.maker.make(queries.turned)
    for row in range(rows[0], rows[0] + rows[1]):
        for cut in cuts:
            heads = slice(cut.heads.start * queries.parts, cut.heads.stop * queries.parts)
            target = out[:, :, heads, cut.tokens]
            some, seen_by = queries.cut(cut), visibility.cut(cut)
            landmarks = attend(sbm, some, reader, seen_by, (row, 1), (target, shared))
    return landmarks


class Landmarks(nl.NKIObject):
    """Instructions of attention that others come after, as lists: `scored`, `weighed`: those which
    empty PSUM of the last scores, and of the last sums over V, whereupon the tensor engine waits;
    `written`: those which write the output."""

    def __init__(self):
        self.scored = []
        self.weighed = []
        self.written = []


def attend(sbm, queries, reader, visibility, rows, target):
    """`attention_tkg` for queries that fit the partitions; `target`: (out, shared)."""
    out, shared = target
    first, count = rows
    plan = plan_passes(queries, first, count, reader)
    sbm.open_scope("attention")
    merge = Merge(sbm, queries, visibility, rows, shared, plan)
    columns = queries.columns()
    for this in plan:
        this.total = merge.total.part((this.first - first) * columns, this.count * columns)
        this.total.ends = merge.by_pass
    buffers = Buffers(sbm, queries, plan, reader, visibility)
    score(queries, reader, visibility, plan[0], buffers)
    if queries.maker != None:
        queries.maker.make(queries.turned)
    find_largest(queries, plan[0], buffers)
    for i in range(len(plan)):
        if i + 1 < len(plan):
            # The next pass's scores first, so that the tensor engine has work during this softmax.
            score(queries, reader, visibility, plan[i + 1], buffers)
            find_largest(queries, plan[i + 1], buffers)
        softmax(queries, plan[i], buffers, reader.by)
        ending = None
        if merge.by_pass:
            some = (plan[i].first, plan[i].count)
            # Of few tiles m is there before the new tokens' keys are.
            soon = not shared and plan[i].context.tiles() <= FEW_TILES
            how = (shared, buffers.minus if soon else None, reader.by)
            ending = Ending(sbm, queries, visibility, some, plan[i].total, how)
        weigh(sbm, queries, reader, visibility, plan[i], buffers)
        if ending != None:
            target = out[:, plan[i].first : plan[i].first + plan[i].count, :, :]
            ending.write(target, buffers.landmarks)
        else:
            merge.after_pass(sbm, queries, visibility, plan[i])
    merge.after_all(sbm, queries, visibility, rows, buffers.landmarks, out)
    landmarks = buffers.landmarks
    sbm.close_scope()
    return landmarks


class Buffers(nl.NKIObject):
    """What two passes in flight need: scores [128, rows, q heads * S, groups, 1 + run] and
    probabilities [128, rows, q heads * S, tiles], single values a column; a matrix of ones; what it
    takes where not all queries of a unit see the same slots, else None; and the `landmarks` so far.
    """

    def __init__(self, sbm, queries, plan, reader, visibility):
        self.landmarks = Landmarks()
        self.nonfinite = None
        if visibility.slots == None:
            unit = queries.group * queries.tokens
            self.nonfinite = NonfiniteValues(sbm, reader.context.run, reader.d_head, unit)
        rows = max([part.count for part in plan])
        groups = max([part.context.groups for part in plan])
        run = reader.context.run
        columns = queries.columns()
        # Before each group's one more, that holds the largest so far: so m is the sink or FLOOR at
        # least.
        shape = (PMAX, rows, columns, groups, 1 + run)
        self.scores = sbm.ring(2, shape, nl.float32, "attention.scores")
        shape = (PMAX, rows, columns, groups * run)
        self.weights = sbm.ring(2, shape, queries.kind, "attention.p")
        # Whether l goes to SBUF, where GpSimd reaches it.
        self.to_sbuf = reader.by == nisa.engine.gpsimd and visibility.sink == None
        self.ones = filled(sbm, (PMAX, PMAX), 1.0, "attention.ones")
        self.ones_of_kind = self.ones
        if queries.kind != nl.float32:
            self.ones_of_kind = filled(sbm, (PMAX, PMAX), 1.0, "attention.ones_p", queries.kind)
        self.minus = sbm.stack((1, PMAX), nl.float32, "attention.minus")
        # By Scalar: the others are busy with what is needed sooner.
        nisa.activation(self.minus, nl.copy, self.ones[0:1, :], scale=-1.0)
        flat = (PMAX, rows * columns)
        self.columns = [sbm.ring(3, flat, nl.float32, f"attention.columns.{i}") for i in range(2)]
        self.largest = sbm.ring(2, (PMAX, 1), nl.float32, "attention.largest")


def score(queries, reader, visibility, this, buffers):
    """scores = K q where a slot counts, MASKED elsewhere."""
    context = this.context
    scores = buffers.scores[this.turn % 2]
    masked = nisa.memset(scores, MASKED, engine=reader.by)
    if reader.by == nisa.engine.gpsimd:
        # Of a later pass not at the beginning, when the norm waits for GpSimd.
        masked.depends_on(*buffers.landmarks.scored)
    floor = scores[:, :, :, 0, 0]
    if visibility.sink == None:
        nisa.memset(floor, FLOOR, engine=reader.by)
    else:
        shape = (PMAX, scores.shape[1], queries.heads, queries.tokens)
        nisa.tensor_copy(floor.reshape(shape), wide_sink(visibility, shape), engine=reader.by)
    # As many rows as a PSUM bank holds are copied at once, or a KV head of one.
    size = queries.columns() * context.run
    step = max(1, BANK // size)
    heads = [range(queries.kv_heads)]
    if size > BANK:
        heads = [range(kv, kv + 1) for kv in range(queries.kv_heads)]
    unit = queries.group * queries.tokens
    for g in range(context.groups):
        there = context.first_group - reader.context.first_group + g
        for row in range(0, this.count, step):
            rows = range(this.first + row, this.first + min(row + step, this.count))
            part = scores[0 : context.height(g), row : row + len(rows), :, g, 1:]
            for kvs in heads:
                columns = slice(kvs[0] * unit, (kvs[-1] + 1) * unit)
                units = (rows, kvs, there)
                target = part[:, :, columns, :]
                buffers.landmarks.scored = score_units(queries, reader, visibility, units, target)
        if g + 1 < context.groups and this.exposed:
            # At once, so that there is less to do when the last group's are there.
            here = scores[:, 0 : this.count, :, g, :]
            largest = buffers.columns[this.turn % 2][1][:, 0 : this.count * queries.columns()]
            largest = largest.reshape(here.shape[0:3])
            nisa.tensor_reduce(largest, nl.maximum, here, axis=3)
            # Side by side first: what lies apart takes Vector twice as long.
            nisa.tensor_copy(scores[:, 0 : this.count, :, g + 1, 0], largest, engine=reader.by)


def score_units(queries, reader, visibility, which, scores):
    """Scores [positions, rows, columns, run] of `which`: (rows, KV heads, group); several of them
    only if they fit a PSUM bank. Returns the last instructions."""
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
        done = nisa.tensor_copy_predicated(target, psum, counts[:, :, heads, :, :])
    return [done]


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


def find_largest(queries, this, buffers):
    """The largest score of each column of a pass, the sink or FLOOR at least, on every partition:
    the pass's `largest`, and where the pass begins a partial that one's m."""
    turn = this.turn
    width = this.count * queries.columns()
    groups, run = this.context.groups, this.context.run
    first = groups - 1 if this.exposed else 0
    scores = buffers.scores[turn % 2][:, 0 : this.count, :, first:groups, :]
    scores = scores.reshape((PMAX, width, groups - first, 1 + run))
    part = buffers.columns[turn % 2][0][:, 0:width]
    nisa.tensor_reduce(part, nl.maximum, scores, axis=(2, 3))
    largest = buffers.largest[turn % 2][0:width, :]
    turned = nl.ndarray((width, PMAX), nl.float32, buffer=nl.psum)
    nisa.nc_transpose(turned, part, engine=nisa.engine.tensor)
    nisa.tensor_reduce(largest, nl.maximum, turned, axis=1)
    # Turned back from a view that repeats each value: no arithmetic, so a NaN stays in its column.
    this.largest = nl.ndarray((PMAX, width), nl.float32, buffer=nl.psum)
    nisa.nc_transpose(this.largest, largest.broadcast(1, PMAX), engine=nisa.engine.tensor)
    if this.begins:
        nisa.tensor_copy(this.total.m, this.largest, engine=nisa.engine.scalar)


def softmax(queries, this, buffers, by):
    """p = exp(scores - m) into the pass's weights; the partial scaled to the new m, and the sums of
    p added to its l."""
    turn, total = this.turn, this.total
    tiles = this.context.tiles()
    width = this.count * queries.columns()
    groups, run = this.context.groups, this.context.run
    scores = buffers.scores[turn % 2][:, 0 : this.count, :, 0:groups, 1:]
    scores = scores.reshape((PMAX, width, groups, run))
    weights = buffers.weights[turn % 2][:, 0 : this.count, :, 0:tiles]
    weights = weights.reshape((PMAX, width, tiles))
    by_group = weights.reshape((PMAX, width, groups, run))
    part, m, scale = [tile[:, 0:width] for tile in buffers.columns[turn % 2]]
    engines = (nisa.engine.vector, by)
    # In PSUM, where Vector takes it at twice the speed, and in SBUF, which GpSimd reaches.
    shifts = [this.largest, total.m if by == nisa.engine.gpsimd else this.largest]
    if not this.begins:
        nisa.tensor_tensor(m, this.largest, total.m, nl.maximum)
        shifts = [m, m]
    # In two halves where that is sooner done, each by an engine of its own.
    halves = PMAX < tiles * width <= HALVED and tiles > 1
    axis = 2 if groups > 1 or not halves else 3
    step = -(-scores.shape[axis] // 2) if halves else scores.shape[axis]
    exps = []
    for i in range(2 if halves else 1):
        first, last = i * step, min((i + 1) * step, scores.shape[axis])
        part_of = scores.slice(axis, first, last)
        shift = shifts[i].expand_dim(2).expand_dim(3)
        shift = shift.broadcast(2, part_of.shape[2]).broadcast(3, part_of.shape[3])
        nisa.tensor_tensor(part_of, part_of, shift, nl.subtract, engine=engines[i])
        exps.append(nisa.activation(by_group.slice(axis, first, last), nl.exp, part_of))
    buffers.landmarks.weighed = exps
    if this.begins and buffers.to_sbuf and tiles * width <= PMAX:
        # One multiply takes all of them, and Vector adds them up on their way to SBUF.
        sums = nl.ndarray((PMAX, width, tiles), nl.float32, buffer=nl.psum)
        nisa.nc_matmul(sums, buffers.ones_of_kind, weights, accumulate=False)
        nisa.tensor_reduce(total.l, nl.add, sums, axis=2)
        return
    sums = nl.ndarray((PMAX, width), nl.float32, buffer=nl.psum)
    if tiles <= FEW_TILES:
        for l in range(tiles):
            nisa.nc_matmul(sums, buffers.ones_of_kind, weights[:, :, l], accumulate=l > 0)
    else:
        nisa.tensor_reduce(part, nl.add, weights, axis=2)
        nisa.nc_matmul(sums, buffers.ones, part, accumulate=False)
    if total.ends:
        total.l = sums
    elif this.begins:
        nisa.tensor_copy(total.l, sums)
    else:
        rescale(total, m, scale)
        nisa.tensor_tensor(total.l, sums, total.l, nl.add)


def weigh(sbm, queries, reader, visibility, this, buffers):
    """acc += V^T p."""
    turn = this.turn
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
            slots = slots_of(visibility, b, kv)
            factors_here = None
            if slots != None and visibility.factors != None:
                factors_here = visibility.factors[:, b, 0, :]
            values = reader.values(b, queries.first_kv + kv, there, slots, factors_here)
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
        acc = this.total.acc[part]
        products = psum[:, part, :, :].reshape(acc.shape)
        if this.total.ends:
            this.total.acc[part] = products
        elif this.begins:
            buffers.landmarks.weighed = [nisa.tensor_copy(acc, products)]
        else:
            buffers.landmarks.weighed = [nisa.tensor_tensor(acc, products, acc, nl.add)]
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
