"""(m, l, acc) over some of the positions, how it grows, and how two cores' become one."""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import PMAX, swap_with_peer

MASKED = -3.0e38  # a score that does not count
FLOOR = -1.0e30  # m where nothing counts: then every p is 0, and so is l


class Partial(nl.NKIObject):
    """m, l [128, C] equal on all partitions; acc: [d/parts, C] for each part of a head; float32."""

    def __init__(self, m, l, acc):
        self.m = m
        self.l = l
        self.acc = acc

    def part(self, first, count):
        """Some of the columns."""
        here = slice(first, first + count)
        return Partial(self.m[:, here], self.l[:, here], [acc[:, here] for acc in self.acc])

    def sums(self):
        """What is scaled when m grows."""
        return [self.l] + self.acc


def new_partial(sbm, queries, columns, name):
    m, l = [sbm.stack((PMAX, columns), nl.float32, f"{name}.{part}") for part in "ml"]
    return Partial(
        m, l, sbm.ring(queries.parts, (queries.size, columns), nl.float32, name + ".acc")
    )


def rescale(partial, m, scale):
    """The partial's l and acc for the larger m [128, columns]; `scale`: as large, to work in."""
    nisa.tensor_tensor(scale, partial.m, m, nl.subtract)
    nisa.activation(scale, nl.exp, scale)
    for tile in partial.sums():
        nisa.tensor_tensor(tile, tile, scale[0 : tile.shape[0], :], nl.multiply)
    nisa.tensor_copy(partial.m, m)


def share(sbm, queries, total):
    """`total` becomes the partial over both cores' positions. Both began with the new tokens, so
    each counts them by half."""
    width = total.m.shape[1]
    sbm.open_scope("share")
    other = new_partial(sbm, queries, width, "share.other")
    swap_with_peer(total.m, other.m)
    for i in range(1 + queries.parts):
        swap_with_peer(total.sums()[i], other.sums()[i])
    m, scale = sbm.ring(2, (PMAX, width), nl.float32, "share.m")
    nisa.tensor_tensor(m, total.m, other.m, nl.maximum)
    rescale(total, m, scale)
    rescale(other, m, scale)
    for i in range(1 + queries.parts):
        mine = total.sums()[i]
        nisa.tensor_tensor(mine, mine, other.sums()[i], nl.add)
    sbm.close_scope()


def finish(queries, total, out):
    """out [d/parts, rows, N*parts, S] = acc / l; 0 where nothing counts. Uses up l."""
    l = total.l
    # It is at least 1 where anything counts: the largest p is exp(0).
    nisa.tensor_scalar(l, l, nl.maximum, 0.5)
    nisa.reciprocal(l, l)
    for i in range(queries.parts):
        # Head n's part i is at n*parts + i.
        target = out[:, :, i : queries.heads * queries.parts : queries.parts, :]
        inverse = l[0 : queries.size, :].reshape(target.shape)
        nisa.tensor_tensor(target, total.acc[i].reshape(target.shape), inverse, nl.multiply)
