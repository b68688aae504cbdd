"""The queries of a call, and which of them attention takes at a time."""

import nki.language as nl

from tkg.backends.neuron.layout import PMAX


class Queries(nl.NKIObject):
    """`q`: for each part of a head the tiles [d/parts, N, B, S] that sum to the scaled queries, in
    dtypes that multiply the cache's; `keyed`: the same in the parts that K^T comes in. `kind`: the
    dtype of probabilities. `k`, `v`: the new tokens' K and V, [d/parts, kv*parts, B, S'], rounded
    to the cache's dtype. `place`: the first KV head and the first token, where these are some of
    the queries of a row. `maker`: what is asked to `make` k and v once the first pass over the
    cache is under way, after the instructions `turned`; None where they are there."""

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
        self.maker = None
        self.turned = []

    def made_by(self, maker):
        """k and v come when `maker` is asked to `make` them."""
        self.maker = maker

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
