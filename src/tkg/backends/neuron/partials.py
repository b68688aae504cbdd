"""(m, l, acc) over some of the positions, and how two of them become one."""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import PMAX

MASKED = -3.0e38  # a score that does not count
FLOOR = -1.0e30  # m where nothing counts: then every p is 0, and so is l


class Partial(nl.NKIObject):
    """m, l [128, C] equal on all partitions; acc [d, C]; float32."""

    def __init__(self, sbm, d_head, columns, name):
        self.m = sbm.stack((PMAX, columns), nl.float32, name + ".m")
        self.l = sbm.stack((PMAX, columns), nl.float32, name + ".l")
        self.acc = sbm.stack((d_head, columns), nl.float32, name + ".acc")


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


def share_with_peer(sbm, total, other, columns):
    """`other` becomes the other core's partial, whose acc lies on d partitions."""
    peer = 1 - nl.program_id(0)
    for mine, theirs in ((total.m, other.m), (total.l, other.l), (total.acc, other.acc)):
        nisa.sendrecv(mine[:, 0:columns], theirs[:, 0:columns], peer, peer, pipe_id=0)


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
