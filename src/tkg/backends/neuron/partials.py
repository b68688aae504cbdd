"""(m, l, acc) over some of the positions, and how two of them become one."""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import PMAX

MASKED = -3.0e38  # a score that does not count
FLOOR = -1.0e30  # m where nothing counts: then every p is 0, and so is l


class Partial(nl.NKIObject):
    """m, l [128, C] equal on all partitions; acc: [d/parts, C] for each part of a head; float32."""

    def __init__(self, sbm, size, parts, columns, name):
        self.m = sbm.stack((PMAX, columns), nl.float32, name + ".m")
        self.l = sbm.stack((PMAX, columns), nl.float32, name + ".l")
        self.acc = sbm.ring(parts, (size, columns), nl.float32, name + ".acc")


def merge(sbm, total, other, columns):
    """total = the partial over both's positions."""
    sbm.open_scope("merge")
    m = sbm.stack((PMAX, columns), nl.float32, "merge.m")
    scale = sbm.stack((PMAX, columns), nl.float32, "merge.scale")
    nisa.tensor_tensor(m, total.m[:, 0:columns], other.m[:, 0:columns], nl.maximum)
    for part in (total, other):
        nisa.tensor_tensor(scale, part.m[:, 0:columns], m, nl.subtract)
        nisa.activation(scale, nl.exp, scale)
        nisa.tensor_tensor(part.l[:, 0:columns], part.l[:, 0:columns], scale, nl.multiply)
        for tile in part.acc:
            acc = tile[:, 0:columns]
            nisa.tensor_tensor(acc, acc, scale[0 : acc.shape[0], :], nl.multiply)
    both = [(total.l, other.l)]
    for i in range(len(total.acc)):
        both.append((total.acc[i], other.acc[i]))
    for a, b in both:
        nisa.tensor_tensor(a[:, 0:columns], a[:, 0:columns], b[:, 0:columns], nl.add)
    nisa.tensor_copy(total.m[:, 0:columns], m)
    sbm.close_scope()


def share_with_peer(sbm, total, other, columns):
    """`other` becomes the other core's partial, whose acc lies on d partitions."""
    peer = 1 - nl.program_id(0)
    pairs = [(total.m, other.m), (total.l, other.l)]
    for i in range(len(total.acc)):
        pairs.append((total.acc[i], other.acc[i]))
    for mine, theirs in pairs:
        nisa.sendrecv(mine[:, 0:columns], theirs[:, 0:columns], peer, peer, pipe_id=0)


def finish(sbm, queries, this, total, out):
    """out = acc / l; 0 where nothing counts."""
    columns = this.count * queries.columns()
    sbm.open_scope("finish")
    inverse = sbm.stack((PMAX, columns), nl.float32, "finish.inverse")
    # l is at least 1 where anything counts: its largest p is exp(0).
    nisa.tensor_scalar(inverse, total.l[:, 0:columns], nl.maximum, 0.5)
    nisa.reciprocal(inverse, inverse)
    shape = (queries.size, this.count, queries.heads, queries.tokens)
    for i in range(queries.parts):
        # Head n's part i is at n*parts + i.
        heads = slice(i, queries.heads * queries.parts, queries.parts)
        nisa.tensor_tensor(
            out[:, this.first : this.first + this.count, heads, :],
            total.acc[i][:, 0:columns].reshape(shape),
            inverse[0 : queries.size, :].reshape(shape),
            nl.multiply,
        )
    sbm.close_scope()
