"""Which rows of the batch and which part of the context attention takes at a time."""

import nki.language as nl

from tkg.backends.neuron.layout import PMAX
from tkg.backends.neuron.merging import SCORE_BYTES


class Pass(nl.NKIObject):
    """Rows first..first+count of the batch over one part of the context; pass number `turn`.
    `begins`: whether it is those rows' first. `exposed`: whether its softmax has no other pass's
    work beside it. `total`: their partial. `largest`: the pass's own m, in PSUM."""

    def __init__(self, rows, context, turn, begins):
        self.first, self.count = rows
        self.context = context
        self.turn = turn
        self.begins = begins
        self.exposed = False
        self.total = None
        self.largest = None


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
            plan.append(Pass((first, n), part, len(plan), g == 0))
    for this in (plan[0], plan[-1]):
        this.exposed = True
    return plan
