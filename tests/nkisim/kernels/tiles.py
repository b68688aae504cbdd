"""What the kernels of this folder share: moving a tile in and out."""

# pyright: reportMissingImports=false

import nki.isa as nisa
import nki.language as nl


def load(source):
    """A copy in SBUF of a view of an HBM tensor, in its own dtype."""
    tile = nl.ndarray(source.shape, dtype=source.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=source)
    return tile


def result_like(tensor, shape=None):
    """A result tensor with this one's dtype, and its shape if none is given."""
    shape = tensor.shape if shape == None else shape  # noqa: E711 (NKI has no "is")
    return nl.ndarray(shape, dtype=tensor.dtype, buffer=nl.shared_hbm)


def drain(destination, psum_tile):
    """PSUM to HBM by way of SBUF, cast on the way."""
    tile = nl.ndarray(psum_tile.shape, dtype=destination.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=tile, src=psum_tile)
    nisa.dma_copy(dst=destination, src=tile)
