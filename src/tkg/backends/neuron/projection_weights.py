"""The output projection's weights on their way from HBM."""

import nki.language as nl

from tkg.backends.neuron.fp8_codes import values_of
from tkg.backends.neuron.layout import copy, hidden_share

PIECE_ROWS = 16  # partitions: what two DMA engines bring
LAST_TILES = 2  # contraction tiles that come in such pieces


class Weights(nl.NKIObject):
    """The weights [N*D, H] in HBM, and the instructions that come before their loads. `end`: past
    this core's last column."""

    def __init__(self, weight, wait_for):
        self.weight = weight
        self.wait_for = wait_for
        self.end = sum(hidden_share(weight.shape[1]))

    def load(self, tile, pattern, offset, last):
        """The `last` come in pieces of two DMA engines each: the end of a DMA is known the later
        the more it takes."""
        step, rows = pattern[0]
        piece = PIECE_ROWS if last else rows
        for first in range(0, rows, piece):
            count = min(piece, rows - first)
            source = self.weight.ap([[step, count]] + pattern[1:], offset=offset + first * step)
            load = copy(tile[first : first + count, :, :], source)
            if len(self.wait_for) > 0:
                load.depends_on(*self.wait_for)


class WeightStream(nl.NKIObject):
    """A chunk's columns, from `start` on, of `step` contraction tiles at a time; the first are load
    number `turn` of the ring."""

    def __init__(self, source, ring, codes, turn, step, start):
        self.source = source
        self.ring = ring
        self.codes = codes
        self.turn = turn
        self.step = step
        self.start = start

    def load(self, g):
        """Those of contraction tiles g .. g+step, [K, step, columns]."""
        tile = self.ring[(self.turn + g // self.step) % len(self.ring)]
        rows, _, count = tile.shape
        hidden = self.source.weight.shape[1]
        pattern = [[hidden, rows], [rows * hidden, self.step], [1, count]]
        depth = self.source.weight.shape[0]
        near_end = depth - g * rows <= LAST_TILES * self.step * rows
        last = near_end and self.start + count == self.source.end
        self.source.load(tile, pattern, g * rows * hidden + self.start, last)
        return values_of(self.codes, tile)
