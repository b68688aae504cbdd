"""Where the positions of a context lie on chip, and which of them may be attended to.

A *run* is `run` consecutive positions. Runs go to partitions: run k of the context is on partition
k % 128 of group k // 128, so position s = (group*128 + partition)*run + l. A *tile* is one l of one
group: up to 128 positions, one a partition; tiles are numbered group*run + l.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import BANK, PMAX, load_small
from tkg.backends.neuron.matrices import spread_row
from tkg.backends.neuron.sbuf_manager import SMALL

FEW_SLOTS = 512  # of a partition, for which there is room to keep them in another form too
MANY_SLOTS = 1024  # from which 512 bytes a row more are nothing beside the caches
MAX_RUN = 32  # positions: 8 KiB of a row of 128 bfloat16, past which DMA gains nothing


class Context(nl.NKIObject):
    """`length` cache slots, of which a mask may allow the first `prior`. `first_group` and `groups`
    are the part that one core, or one pass, works on."""

    def __init__(self, length, prior, run):
        self.length = length
        self.prior = prior
        self.run = run
        self.runs = length // run
        self.first_group = 0
        self.groups = -(-self.runs // PMAX)

    def part(self, first_group, groups):
        """The same positions, seen through some of the groups."""
        other = Context(self.length, self.prior, self.run)
        other.first_group = first_group
        other.groups = groups
        return other

    def tiles(self):
        return self.groups * self.run

    def height(self, group):
        """Partitions that hold a run in a group (counted from the first of this part)."""
        return min(PMAX, self.runs - (self.first_group + group) * PMAX)

    def first_run(self, group):
        return (self.first_group + group) * PMAX


def plan_context(length, prior, block_len, batch):
    """The context of a call. Runs divide the length, and a block where there are blocks; where the
    context will be split over two cores, an even number of groups is preferred."""
    whole = length if block_len == 0 else block_len
    split = nl.num_programs(0) == 2 and batch % 2 == 1
    longest = max(1, min(MAX_RUN, length // (2 * PMAX if split else PMAX)))
    best = 0
    for run in range(1, whole + 1):
        fits = length % run == 0 and whole % run == 0
        if fits and (block_len == 0 or power_of_two(whole // run)):
            even = not split or Context(length, prior, run).groups % 2 == 0
            if best == 0 or (run <= longest and even):
                best = run
    return Context(length, prior, best)


def power_of_two(number):
    return number & (number - 1) == 0 and number <= PMAX


def positions(sbm, context):
    """The position of each (partition, tile), [128, tiles] float32."""
    tile = sbm.stack((PMAX, context.tiles()), nl.float32, "context.positions")
    for group in range(context.groups):
        nisa.iota(
            tile[:, group * context.run : (group + 1) * context.run],
            [[1, context.run]],
            offset=context.first_run(group) * context.run,
            channel_multiplier=context.run,
        )
    return tile


class Visibility(nl.NKIObject):
    """Who may attend to what.

    `scores`: [128, B, tiles, q or 1, S or 1] uint8, nonzero where a cache slot counts;
    `slots`: [128, B, kv or 1, tiles] uint8, nonzero where the slot's V may be used; None where the
    queries of a unit may see different slots;
    `new`: [128, S', B, q, S] uint8 on every partition for an explicit mask; None for causal, then
    within `window` (0: no window); `sink`: [128, q] float32 on every partition, or None; `factors`:
    `slots` as int32, 0 or 1, where they are few, else None.
    """

    def __init__(self, scores, slots, new, window):
        self.scores = scores
        self.slots = slots
        self.new = new
        self.window = window
        self.sink = None
        self.factors = None

    def cut(self, cut):
        """What the queries of a `Cut` may see."""
        scores, slots, new = self.scores, self.slots, self.new
        if scores.shape[3] > 1:
            scores = scores[:, :, :, cut.heads, :]
        if scores.shape[4] > 1:
            scores = scores[:, :, :, :, cut.tokens]
        if slots != None and slots.shape[2] > 1:
            slots = slots[:, :, cut.kv, :]
        if new != None:
            new = new[:, :, :, cut.heads, cut.tokens]
        result = Visibility(scores, slots, new, self.window)
        result.factors = self.factors
        if self.sink != None:
            result.sink = self.sink[:, cut.heads]
        return result


def visible_from_positions(sbm, context, pos_ids, tokens, window):
    """Slots before pos_ids[b, 0] (HBM [B, S], int32), and within the window of each token."""
    batch = pos_ids.shape[0]
    tiles = context.tiles()
    spread = tokens if window > 0 else 1
    scores = sbm.stack((PMAX, batch, tiles, 1, spread), nl.uint8, "mask.scores")
    factors = None
    if spread == 1 and batch * tiles <= FEW_SLOTS:
        factors = sbm.stack((PMAX, batch, 1, tiles), nl.int32, "mask.factors")
    sbm.open_scope("mask")
    limit = first_positions(sbm, pos_ids, context.length)
    here = positions(sbm, context).expand_dim(1).broadcast(1, batch)
    end = limit.expand_dim(2).broadcast(2, tiles)
    before = scores[:, :, :, 0, 0]
    if window > 0:
        before = sbm.stack((PMAX, batch, tiles), nl.float32, "mask.before")
    nisa.tensor_tensor(before, here, end, nl.less)
    for s in range(spread):
        target = scores[:, :, :, 0, s]
        if window > 0:
            inside = sbm.stack((PMAX, batch, tiles), nl.float32, f"mask.inside.{s}")
            start = sbm.stack((PMAX, batch), nl.float32, f"mask.start.{s}")
            nisa.tensor_scalar(start, limit, nl.add, float(s - window))
            nisa.tensor_tensor(inside, here, start.expand_dim(2).broadcast(2, tiles), nl.greater)
            nisa.tensor_tensor(target, inside, before, nl.multiply)
    sbm.close_scope(SMALL)
    if factors != None:
        nisa.tensor_copy(factors[:, :, 0, :], scores[:, :, :, 0, 0], engine=nisa.engine.gpsimd)
    slots = scores[:, :, :, :, 0].permute((0, 1, 3, 2)) if spread == 1 else None
    visible = Visibility(scores, slots, None, window)
    visible.factors = factors
    return visible


def first_positions(sbm, pos_ids, length):
    """pos_ids[b, 0] (HBM [B, S], int32) on every partition, [128, B] float32. `length`: slots of
    the context."""
    batch, tokens = pos_ids.shape
    if tokens > 1 or batch == 1 or length < MANY_SLOTS:
        row = sbm.stack((1, batch), pos_ids.dtype, "mask.pos_ids")
        load_small(row, pos_ids.ap([[0, 1], [tokens, batch]], offset=0))
        return spread_row(sbm, row, PMAX, "mask.limit")
    # They lie side by side and are nothing beside the caches: DMA brings them to all partitions.
    wide = sbm.stack((PMAX, batch), pos_ids.dtype, "mask.pos_ids")
    load_small(wide, pos_ids.ap([[0, PMAX], [1, batch]], offset=0))
    limit = sbm.stack((PMAX, batch), nl.float32, "mask.limit")
    nisa.tensor_copy(limit, wide)
    return limit


def visible_from_mask(sbm, context, mask, kv_heads):
    """An explicit mask [S_ctx, B, q, S] uint8 in HBM, no shorter than the context; its last S
    positions are the new tokens."""
    length, batch, q_heads, tokens = mask.shape
    row = batch * q_heads * tokens
    run = context.run
    tiles = context.tiles()
    raw = sbm.stack((PMAX, tiles, batch, q_heads, tokens), nl.uint8, "mask.scores")
    new = sbm.stack((PMAX, tokens, batch, q_heads, tokens), nl.uint8, "mask.new")
    if context.runs % PMAX > 0:
        # Also on a core without the last, short group: both must run the same instructions.
        nisa.memset(raw, 0)
    for group in range(context.groups):
        height = context.height(group)
        source = mask.ap(
            [[run * row, height], [1, run * row]], offset=context.first_run(group) * run * row
        )
        load_small(raw[0:height, group * run : (group + 1) * run, :, :, :], source)
    sbm.open_scope("mask")
    old = sbm.stack((PMAX, tiles), nl.float32, "mask.old")
    nisa.tensor_scalar(old, positions(sbm, context), nl.less, float(context.prior))
    flat = raw.reshape((PMAX, tiles, row))
    nisa.tensor_tensor(flat, flat, old.expand_dim(2).broadcast(2, row), nl.multiply)
    line = sbm.stack((1, tokens * row), nl.uint8, "mask.line")
    load_small(line, mask.ap([[0, 1], [1, tokens * row]], offset=context.prior * row))
    target = new.reshape((PMAX, tokens * row))
    for start in range(0, tokens * row, BANK):
        stop = min(start + BANK, tokens * row)
        sbm.open_scope("mask.spread")
        wide = spread_row(sbm, line[:, start:stop], PMAX, f"mask.spread.{start}")
        nisa.tensor_copy(target[:, start:stop], wide)
        sbm.close_scope()
    sbm.close_scope(SMALL)
    slots = None
    if q_heads // kv_heads * tokens == 1:
        slots = raw[:, :, :, :, 0].permute((0, 2, 3, 1))
    return Visibility(raw.permute((0, 2, 1, 3, 4)), slots, new, 0)
