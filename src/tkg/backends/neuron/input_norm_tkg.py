"""The hidden states on chip, and their RMSNorm, with the hidden dimension on the partitions.

    X [R, H] in HBM or [128, R, J] in SBUF, h = p*J + j        x [P, J, R] on chip

    rstd[r] = 1 / sqrt(sum_h X[r, h]^2 / H + eps)              xn = x * rstd * gamma

P = ceil(H / J) partitions hold data; the last one may hold only `last` of its J values. With two
cores each takes half of the J columns. Each squares all of a few rows; of many, whose bytes would
count, it squares its half and the sums are exchanged.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import (
    BANK,
    PMAX,
    copy,
    exchange,
    load_small,
    reciprocal_root,
)
from tkg.backends.neuron.matrices import filled

PIECE = 256  # elements of a partition that are normalised at once
IN_PSUM = 1024  # elements of a partition, up to which PSUM has room for them
SCRATCH = 16 * 1024  # bytes, that the tables loaded meanwhile need not wait for


class HiddenSplit(nl.NKIObject):
    """How H lies on chip. `hidden`: elements that count; `width`: J; `full`: partitions with all J
    values, `last`: values on the partition after those (0 if there is none); `first`, `count`: this
    core's columns j; `row`: elements from one row of X or W to the next. `loads`: the instructions
    that bring X from HBM."""

    def __init__(self, hidden, row, width=0):
        self.hidden = hidden
        self.row = row
        self.width = width if width > 0 else hidden_width(hidden)
        self.full = hidden // self.width
        self.last = hidden % self.width
        lnc = nl.num_programs(0)
        assert self.width % lnc == 0, (
            f"attention_block_tkg: X: H // 128 must be even on two cores; this is {self.width}"
        )
        half = self.width // lnc
        self.first = nl.program_id(0) * half
        self.count = half
        self.loads = []

    def both(self):
        """The same for the columns of both cores."""
        whole = HiddenSplit(self.hidden, self.row, self.width)
        whole.first, whole.count = 0, self.width
        return whole

    def partitions(self):
        """Partitions that hold any value."""
        return self.full + (1 if self.last > 0 else 0)

    def height(self, j):
        """Partitions that hold a value in column j (counted from this core's first)."""
        return self.full + (1 if self.first + j < self.last else 0)

    def spans(self, first, count):
        """[(first partition, partitions, first column, columns)] that cover columns first.. of this
        core: the full partitions, and what the last one has."""
        spans = []
        if self.full > 0:
            spans.append((0, self.full, first, count))
        tail = min(count, self.last - self.first - first)
        if tail > 0:
            spans.append((self.full, 1, first, tail))
        return spans

    def areas(self):
        """[(partitions from the first on, first column, columns)] that cover the same values, as
        an engine takes them: it does not begin at any partition."""
        tail = max(0, min(self.count, self.last - self.first))
        areas = [(self.full + 1, 0, tail), (self.full, tail, self.count - tail)]
        return [area for area in areas if area[0] > 0 and area[2] > 0]


def hidden_width(hidden):
    """J: as few columns as the partitions allow, or up to an eighth more if that leaves no rest, on
    a partition of its own and in DMAs of its own; for two cores an even number that divides H, so
    that both run the same instructions."""
    width = -(-hidden // PMAX)
    two = nl.num_programs(0) == 2
    for candidate in range(width, (hidden if two else width + width // 8) + 1):
        if hidden % candidate > 0 or (two and candidate % 2 == 1):
            continue
        if two or hidden // candidate > PMAX - 8 or hidden < PMAX:
            return candidate
    return width


def load_hidden(sbm, X, split, rows, normed=False):
    """This core's part of X as [P, J, R], in X's dtype. X: [.., H] in HBM, or [128, R, J] in
    SBUF. A row's columns lie side by side, as they do in X: DMA moves them in long pieces. What the
    last partition lacks is 0, unless X will be `normed`: then that is, and loading need not wait.
    """
    x = sbm.stack((split.partitions(), rows, split.count), X.dtype, "input.x")
    if split.last > 0 and not normed:
        nisa.memset(x, 0.0)
    for p, partitions, j, columns in split.spans(0, split.count):
        part = x[p : p + partitions, :, j : j + columns]
        if X.buffer == nl.sbuf:
            first = split.first + j
            load_small(part, X[p : p + partitions, :, first : first + columns])
        else:
            source = X.ap(
                [[split.width, partitions], [split.row, rows], [1, columns]],
                offset=p * split.width + split.first + j,
            )
            split.loads.append(copy(part, source))
    return x.permute((0, 2, 1))


def load_gamma(sbm, gamma, split):
    """This core's part of the norm's weight [1, H] as [P, J]."""
    tile = sbm.stack((split.partitions(), split.count), gamma.dtype, "input.gamma")
    for p, partitions, j, columns in split.spans(0, split.count):
        source = gamma.ap(
            [[split.width, partitions], [1, columns]], offset=p * split.width + split.first + j
        )
        load_small(tile[p : p + partitions, j : j + columns], source)
    return tile


def input_norm_tkg(sbm, x, split, gamma, eps, name="input_norm", whole=None):
    """RMSNorm of x [P, J, R] over the hidden dimension, in float32; a new tile in x's dtype.

    `gamma`: [P, J] on chip (`load_gamma`), or None. `whole`: both cores' columns [P, 2J, R], where
    they are here.
    """
    partitions, columns, rows = x.shape
    normed = sbm.stack((partitions, rows, columns), x.dtype, name + ".x")
    sbm.open_scope(name)
    in_psum = split.last == 0 and rows > 1 and 2 * PIECE < rows * columns <= IN_PSUM
    if in_psum and gamma != None:
        # First: what has its bank next waits for the last use of it.
        wide = nl.ndarray(gamma.shape, nl.float32, buffer=nl.psum)
        nisa.tensor_copy(wide, gamma)
        gamma = wide
    if whole == None:
        sums = square_sums(sbm, x, split, name)
    else:
        sums = square_sums(sbm, whole, split.both(), name)
    ones = filled(sbm, (partitions, PMAX), 1.0, name + ".ones")
    psum = nl.ndarray((PMAX, rows), nl.float32, buffer=nl.psum)
    nisa.nc_matmul(psum, ones, sums, accumulate=False)
    total = psum
    if nl.num_programs(0) == 2 and whole == None:
        total = sbm.stack((PMAX, rows), nl.float32, name + ".total")
        nisa.tensor_copy(total, psum)
        exchange(sbm, total, nl.add, name)
    # Before the products with gamma, which are made meanwhile: Vector takes it between them.
    rstd = sbm.stack((PMAX, rows), nl.float32, name + ".rstd")
    reciprocal_root(rstd, total, 1.0 / split.hidden, eps)
    factor = rstd[0:partitions, :].expand_dim(2).broadcast(2, columns)
    # In pieces, so that the projection begins with the first.
    step = max(1, PIECE // rows)
    pieces = [slice(j, min(j + step, columns)) for j in range(0, columns, step)]
    if in_psum:
        norm_in_psum(x, gamma, pieces, factor, normed)
    else:
        weighted = sbm.stack(normed.shape, nl.float32, name + ".weighted")
        weigh(x, split, gamma, weighted)
        for here in pieces:
            target, source = normed[:, :, here], weighted[:, :, here]
            nisa.tensor_tensor(target, source, factor[:, :, here], nl.multiply)
    sbm.close_scope(SCRATCH)
    return normed.permute((0, 2, 1))


def weigh(x, split, gamma, weighted):
    """weighted [P, R, J] float32 = x [P, J, R] * gamma [P, J] (None: 1)."""
    partitions, columns, rows = x.shape
    by_row = x.permute((0, 2, 1))
    if split.last > 0:
        nisa.memset(weighted, 0.0, engine=nisa.engine.gpsimd)
    step = max(1, PIECE // rows)
    # GpSimd takes one piece of two; with more it would be late for the gathers of a block cache.
    shared = rows * columns <= 2 * PIECE
    turn = 0
    for height, first, count in split.areas():
        for j in range(first, first + count, step):
            here = slice(j, min(j + step, first + count))
            target, source = weighted[0:height, :, here], by_row[0:height, :, here]
            by = nisa.engine.gpsimd if shared and turn % 2 == 1 else nisa.engine.vector
            turn = turn + 1
            if gamma == None:
                nisa.tensor_copy(target, source, engine=by)
            else:
                weight = gamma[0:height, here].expand_dim(1).broadcast(1, rows)
                nisa.tensor_tensor(target, source, weight, nl.multiply, engine=by)


def norm_in_psum(x, gamma, pieces, factor, normed):
    """normed [P, R, J] = x [P, J, R] * gamma [P, J] (None: 1) * factor [P, R, J], some columns at a
    time. gamma and the first product are in PSUM: Vector takes one input from there and one from
    SBUF at twice the speed of two from SBUF."""
    by_row = x.permute((0, 2, 1))
    rows = by_row.shape[1]
    for here in pieces:
        source = by_row[:, :, here]
        weighted = nl.ndarray(source.shape, nl.float32, buffer=nl.psum)
        if gamma == None:
            nisa.tensor_copy(weighted, source)
        else:
            weight = gamma[:, here].expand_dim(1).broadcast(1, rows)
            nisa.tensor_tensor(weighted, source, weight, nl.multiply)
        nisa.tensor_tensor(normed[:, :, here], weighted, factor[:, :, here], nl.multiply)


def square_sums(sbm, x, split, name):
    """[P, R] float32: the sums of the squares of x [P, J, R] on each partition."""
    partitions, columns, rows = x.shape
    by_row = x.permute((0, 2, 1))
    if rows * columns <= BANK:
        squares = nl.ndarray(by_row.shape, nl.float32, buffer=nl.psum)
    else:
        squares = sbm.stack(by_row.shape, nl.float32, name + ".squares")
    sums = sbm.stack((partitions, rows), nl.float32, name + ".sums")
    if rows == 1 and split.last == 0:
        # Scalar adds up what it squares, over all that an instruction takes.
        nisa.activation_reduce(squares, nl.square, by_row, nl.add, sums)
        return sums
    if split.last > 0:
        nisa.memset(squares, 0.0)
    # Of many in two halves: the first one's are added up while Scalar makes the second one's.
    step = -(-rows // 2) if rows * columns > BANK else rows
    for r in range(0, rows, step):
        some = slice(r, min(r + step, rows))
        for height, first, count in split.areas():
            here = slice(first, first + count)
            target, source = squares[0:height, some, here], by_row[0:height, some, here]
            nisa.activation(target, nl.square, source)
        nisa.tensor_reduce(sums[:, some], nl.add, squares[:, some, :], axis=2)
    return sums
