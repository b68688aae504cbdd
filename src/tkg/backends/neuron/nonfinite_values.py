"""V of cache slots that some queries of a unit may see and others may not.

A probability of 0 does not keep a NaN or an infinity of V out of a sum: 0 * NaN is NaN. Such values
are therefore taken out of V, and their places are counted by a second matmul:

    acc[:, c] = sum_s (V where finite, else 0)[s, :] p[s, c]
    count[:, c] = sum_s (1 where V is not finite, else 0)[s, :] seen[s, c]

acc becomes NaN where count > 0. The cost is one pass over V that makes the marks, one that clears,
and as many matmuls again; where all queries see the same slots those are cleared as a whole
(`CacheReader.values`), and nothing of this happens.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import PMAX

NAN_BITS = 0x7FC00000  # a quiet NaN of float32


class NonfiniteValues(nl.NKIObject):
    """Buffers for tiles [128, run, d] of V and `columns` queries of a unit."""

    def __init__(self, sbm, run, d_head, columns):
        self.marks = sbm.ring(2, (PMAX, run, d_head), nl.bfloat16, "nonfinite.marks")
        self.seen = sbm.ring(2, (PMAX, run, columns), nl.bfloat16, "nonfinite.seen")
        self.nan = sbm.stack((PMAX, 1), nl.int32, "nonfinite.nan")
        nisa.memset(self.nan, NAN_BITS)
        self.turn = 0

    def take_out(self, values, mask):
        """(marks, seen) [positions, run, d] and [positions, run, columns] of one group, bfloat16;
        clears what is not finite in `values`. `mask` [positions, run, g, t] uint8: who sees it."""
        height, run, d_head = values.shape
        marks = self.marks[self.turn % 2][0:height, :, :]
        seen = self.seen[self.turn % 2][0:height, :, :]
        self.turn = self.turn + 1
        # A finite number times 0 is 0; anything else is NaN, which differs from 0.
        nisa.tensor_scalar(marks, values, nl.multiply, 0.0, op1=nl.not_equal, operand1=0.0)
        nisa.tensor_copy_predicated(values, 0.0, marks.view(nl.uint16))
        nisa.tensor_copy(seen.reshape(mask.shape), mask, engine=nisa.engine.gpsimd)
        return marks, seen

    def put_back(self, acc, counts):
        """acc [d, columns] = NaN where a column sees a value that is not finite."""
        d_head, columns = acc.shape
        nan = self.nan[0:d_head, :].view(nl.float32).broadcast(1, columns)
        nisa.tensor_copy_predicated(acc, nan, counts.view(nl.uint32))
