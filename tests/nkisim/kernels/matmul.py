"""lhs_t.T @ rhs, from one tile to blocks in all three dimensions, as in AWS's two tutorials."""

# pyright: reportMissingImports=false

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nkisim.kernels.tiles import drain, load, result_like

P = nl.tile_size.pmax
M_TILE = nl.tile_size.gemm_stationary_fmax
N_TILE = nl.tile_size.gemm_moving_fmax


def part(index, size):
    return slice(index * size, (index + 1) * size)


@nki.jit
def one_tile(lhs_t, rhs):
    """lhs_t (K <= 128, M <= 128), rhs (K, N <= 512)."""
    m, n = lhs_t.shape[1], rhs.shape[1]
    total = nl.ndarray((m, n), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=total, stationary=load(lhs_t), moving=load(rhs))
    result = result_like(lhs_t, (m, n))
    drain(result, total)
    return result


@nki.jit
def tiled(lhs_t, rhs):
    """Every tile is loaded for every product it takes part in."""
    (k_size, m_size), n_size = lhs_t.shape, rhs.shape[1]
    result = result_like(lhs_t, (m_size, n_size))
    for m in range(m_size // M_TILE):
        for n in range(n_size // N_TILE):
            total = nl.ndarray((M_TILE, N_TILE), nl.float32, buffer=nl.psum)
            for k in range(k_size // P):
                left = load(lhs_t[part(k, P), part(m, M_TILE)])
                right = load(rhs[part(k, P), part(n, N_TILE)])
                nisa.nc_matmul(total, left, right)
            drain(result[part(m, M_TILE), part(n, N_TILE)], total)
    return result


@nki.jit
def column_kept(lhs_t, rhs):
    """A column of lhs_t's tiles is loaded once and meets all of rhs."""
    (k_size, m_size), n_size = lhs_t.shape, rhs.shape[1]
    depth = k_size // P
    result = result_like(lhs_t, (m_size, n_size))
    for m in range(m_size // M_TILE):
        left = [load(lhs_t[part(k, P), part(m, M_TILE)]) for k in range(depth)]
        for n in range(n_size // N_TILE):
            right = [load(rhs[part(k, P), part(n, N_TILE)]) for k in range(depth)]
            total = nl.ndarray((M_TILE, N_TILE), nl.float32, buffer=nl.psum)
            for k in range(depth):
                nisa.nc_matmul(total, left[k], right[k], accumulate=k > 0)
            drain(result[part(m, M_TILE), part(n, N_TILE)], total)
    return result


@nki.jit
def free_blocked(lhs_t, rhs, m_tiles=2, n_tiles=2):
    """Blocks of m_tiles by n_tiles tiles of the result share what is loaded."""
    (k_size, m_size), n_size = lhs_t.shape, rhs.shape[1]
    depth = k_size // P
    result = result_like(lhs_t, (m_size, n_size))
    for m_block in range(m_size // (M_TILE * m_tiles)):
        rows = [m_block * m_tiles + i for i in range(m_tiles)]
        left = [[load(lhs_t[part(k, P), part(m, M_TILE)]) for k in range(depth)] for m in rows]
        for n_block in range(n_size // (N_TILE * n_tiles)):
            columns = [n_block * n_tiles + i for i in range(n_tiles)]
            right = [
                [load(rhs[part(k, P), part(n, N_TILE)]) for k in range(depth)] for n in columns
            ]
            for m, left_tiles in zip(rows, left, strict=True):
                for n, right_tiles in zip(columns, right, strict=True):
                    total = nl.ndarray((M_TILE, N_TILE), nl.float32, buffer=nl.psum)
                    for k in range(depth):
                        nisa.nc_matmul(total, left_tiles[k], right_tiles[k])
                    drain(result[part(m, M_TILE), part(n, N_TILE)], total)
    return result


def load_rows(source, first, count, columns):
    """count tiles of P rows side by side in one SBUF tensor, from row tile `first` on."""
    width = columns.stop - columns.start
    tiles = nl.ndarray((P, count, width), dtype=source.dtype, buffer=nl.sbuf)
    for i in range(count):
        nisa.dma_copy(dst=tiles[0:P, i, 0:width], src=source[part(first + i, P), columns])
    return tiles


@nki.jit
def all_blocked(lhs_t, rhs, m_tiles=16, n_tiles=2, k_tiles=8):
    """K in blocks too: sums wait in SBUF, in the result's dtype, between blocks of K."""
    (k_size, m_size), n_size = lhs_t.shape, rhs.shape[1]
    result = result_like(lhs_t, (m_size, n_size))
    n_block = N_TILE * n_tiles
    for n in range(n_size // n_block):
        columns = part(n, n_block)
        sums = []
        for _ in range(m_size // M_TILE):
            row = nl.ndarray((M_TILE, n_tiles, N_TILE), dtype=result.dtype, buffer=nl.sbuf)
            nisa.memset(dst=row, value=0.0)
            sums.append(row)
        for k in range(k_size // (P * k_tiles)):
            right = load_rows(rhs, k * k_tiles, k_tiles, columns)
            for m in range(m_size // (M_TILE * m_tiles)):
                left = load_rows(lhs_t, k * k_tiles, k_tiles, part(m, M_TILE * m_tiles))
                for i in range(m_tiles):
                    for j in range(n_tiles):
                        total = nl.ndarray((M_TILE, N_TILE), nl.float32, buffer=nl.psum)
                        for d in range(k_tiles):
                            nisa.nc_matmul(
                                total,
                                left[0:P, d, part(i, M_TILE)],
                                right[0:P, d, part(j, N_TILE)],
                            )
                        place = sums[m * m_tiles + i][0:M_TILE, j, 0:N_TILE]
                        nisa.tensor_tensor(dst=place, data1=place, data2=total, op=nl.add)
        for m in range(len(sums)):
            flat = sums[m].reshape((M_TILE, n_block))
            nisa.dma_copy(dst=result[part(m, M_TILE), columns], src=flat)
    return result
