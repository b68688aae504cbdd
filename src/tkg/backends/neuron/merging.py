"""When the partials of some rows, their new tokens and the sink are merged."""

import nki.language as nl

from tkg.backends.neuron.layout import GPSIMD_ELEMENTS
from tkg.backends.neuron.new_tokens import add_new_token, new_tokens, sees_itself
from tkg.backends.neuron.partials import finish, new_partial, share, swap_partials

MERGED = 256  # most columns whose partials are merged with all new tokens at once
SCORE_BYTES = 16 * 1024  # a partition, for the scores of one pass


class Merge(nl.NKIObject):
    """The partial `total` of some rows, and when what is not in the cache is added: the new tokens
    after the rows' first pass; but last where there is no other pass, or where the other core's
    partial comes (`shared`), together with that if there is one new token a row. `by_pass`: each
    pass is its rows' only one, which ends with their output (if shared, there is one for all)."""

    def __init__(self, sbm, queries, visibility, rows, shared, plan):
        columns = rows[1] * queries.columns()
        itself = sees_itself(queries, visibility)
        self.shared = shared
        self.by_pass = itself and all([part.begins for part in plan])
        self.by_pass = self.by_pass and queries.kind != nl.float32
        if shared and (len(plan) > 1 or columns * (1 + queries.parts) > GPSIMD_ELEMENTS):
            self.by_pass = False
        self.together = itself and columns <= MERGED and not self.by_pass
        self.together = self.together and (shared or len(plan) == 1)
        slots = 1
        if self.together:
            slots = 2 + (1 if shared else 0) + (0 if visibility.sink == None else 1)
        self.total, self.whole = new_partial(sbm, queries, columns, "attention.total", slots)
        self.last = []

    def after_pass(self, sbm, queries, visibility, this):
        if this.begins and not self.shared and not self.together:
            self.last = add_new(sbm, queries, visibility, (this.first, this.count), this.total)

    def after_all(self, sbm, queries, visibility, rows, landmarks, out):
        if self.by_pass:
            return
        if self.together:
            if self.shared:
                swap_partials(self.whole[:, :, 0, :], self.whole[:, :, 1, :])
            used = 2 if self.shared else 1
            self.last = add_new_token(sbm, queries, visibility, rows, self.whole, used)
        elif self.shared:
            share(sbm, queries, self.total, self.whole)
            self.last = add_new(sbm, queries, visibility, rows, self.total)
        landmarks.weighed = landmarks.weighed + self.last
        target = out[:, rows[0] : rows[0] + rows[1], :, :]
        landmarks.written = finish(queries, self.total, target, visibility.new != None)


def add_new(sbm, queries, visibility, rows, total):
    """Adds the new tokens of rows (first, count) to their partial, as many as may be at a time.
    Returns the instructions after which the tensor engine is free."""
    first, count = rows
    columns = queries.columns()
    step = max(1, SCORE_BYTES // (4 * columns * queries.new))
    for row in range(0, count, step):
        n = min(step, count - row)
        part = total.part(row * columns, n * columns)
        done = new_tokens(sbm, queries, visibility, (first + row, n), part)
    return done
