"""(m, l, acc) over some of the positions, how it grows, and how two cores' become one."""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import GPSIMD_ELEMENTS, PMAX, swap_with_peer

MASKED = -3.0e38  # a score that does not count
FLOOR = -1.0e30  # m where nothing counts: then every p is 0, and so is l


class Partial(nl.NKIObject):
    """m, l [128, C] equal on all partitions; acc: [d/parts, C] for each part of a head; float32.
    `ends`: whether nothing comes after the first pass but the output: l and acc are left in
    PSUM."""

    def __init__(self, m, l, acc):
        self.m = m
        self.l = l
        self.acc = acc
        self.ends = False

    def part(self, first, count):
        """Some of the columns."""
        here = slice(first, first + count)
        return Partial(self.m[:, here], self.l[:, here], [acc[:, here] for acc in self.acc])


def new_partial(sbm, queries, columns, name, slots=1):
    """(a partial, [128, 2 + parts, slots, columns]): its parts lie side by side, so that one
    transfer takes all of it, and so may those of others that it will be merged with."""
    whole = sbm.stack((PMAX, 2 + queries.parts, slots, columns), nl.float32, name)
    if queries.size < PMAX:
        # What no part of a head is on is sent too.
        nisa.memset(whole, 0.0, engine=nisa.engine.gpsimd)
    acc = [whole[0 : queries.size, 2 + i, 0, :] for i in range(queries.parts)]
    return Partial(whole[:, 0, 0, :], whole[:, 1, 0, :], acc), whole


def swap_partials(mine, theirs):
    """`theirs` becomes the other core's `mine`, [128, 2 + parts, columns]."""
    if mine.shape[1] * mine.shape[2] <= GPSIMD_ELEMENTS:
        swap_with_peer(mine, theirs)
        return
    for i in range(mine.shape[1]):
        swap_with_peer(mine[:, i, :], theirs[:, i, :])


def rescale(partial, m, scale):
    """The partial's l and acc for the larger m [128, columns]; `scale`: as large, to work in."""
    # l by GpSimd, beside what Vector does.
    nisa.tensor_tensor(scale, partial.m, m, nl.subtract)
    nisa.activation(scale, nl.exp, scale)
    nisa.tensor_copy(partial.m, m, engine=nisa.engine.scalar)
    nisa.tensor_tensor(partial.l, partial.l, scale, nl.multiply, engine=nisa.engine.gpsimd)
    for tile in partial.acc:
        factor = scale[0 : tile.shape[0], :]
        nisa.tensor_tensor(tile, tile, factor, nl.multiply)


def share(sbm, queries, total, whole):
    """`total`, whose tile is `whole`, becomes the partial over both cores' positions."""
    width = total.m.shape[1]
    sbm.open_scope("share")
    other, theirs = new_partial(sbm, queries, width, "share.other")
    swap_partials(whole[:, :, 0, :], theirs[:, :, 0, :])
    m, scale, scale_of_other = sbm.ring(3, (PMAX, width), nl.float32, "share.m")
    nisa.tensor_tensor(m, total.m, other.m, nl.maximum)
    rescale(total, m, scale)
    rescale(other, m, scale_of_other)
    nisa.tensor_tensor(total.l, total.l, other.l, nl.add, engine=nisa.engine.gpsimd)
    for i in range(queries.parts):
        nisa.tensor_tensor(total.acc[i], total.acc[i], other.acc[i], nl.add)
    sbm.close_scope()


def finish(queries, total, out, masked):
    """Writes `out` (`write_heads`) = acc / l; 0 where nothing counts, which there may be only if
    `masked`. Uses up l. Returns the instructions that write it."""
    l = total.l
    if masked:
        # It is at least 1 where anything counts: the largest p is exp(0).
        nisa.tensor_scalar(l, l, nl.maximum, 0.5)
    # By GpSimd: Vector's reciprocal takes eight times as long.
    nisa.tensor_scalar(l, l, nl.power, -1.0, engine=nisa.engine.gpsimd)
    written = []
    for i in range(queries.parts):
        written += write_heads(queries, total.acc[i], l, out, i)
    return written


def write_heads(queries, acc, inverse, out, part):
    """out [fold*d/parts, rows, N*parts/fold, S] = acc [d/parts, C] * inverse [128, C] for one part
    of the heads; head g*fold + i goes to partitions i*d .. (i+1)*d. Returns the instructions."""
    size, heads, tokens = queries.size, queries.heads, queries.tokens
    fold = out.shape[0] // size
    shape = (size, out.shape[1], heads, tokens)
    acc, inverse = acc.reshape(shape), inverse[0:size, :].reshape(shape)
    written = []
    for i in range(fold):
        # Head n's part is at n*parts + part.
        target = out[i * size : (i + 1) * size, :, part : out.shape[2] : queries.parts, :]
        here = slice(i, heads - fold + i + 1, fold)
        # Engines in turn, so that they work at once.
        by = nisa.engine.gpsimd if i % 2 == 1 else nisa.engine.vector
        some = (acc[:, :, here, :], inverse[:, :, here, :])
        written.append(nisa.tensor_tensor(target, some[0], some[1], nl.multiply, engine=by))
    return written
