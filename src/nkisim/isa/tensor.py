"""Tensor engine: matrix multiply and transpose through the 128 x 128 systolic array.

Rules from the references of nki.isa.nc_matmul and nc_transpose, and trainium2_arch.rst ("Double FP8
Matmul Performance", "Built-in Transpose Support").
"""

from __future__ import annotations

import numpy as np

from .. import dtypes, rules, running
from ..enums import PSUM, matmul_perf_mode
from ..enums import engine as Engine
from ..memory import BY_MATMUL
from ..operands import float32, hazard, mark, value, write_bits
from ..record import NkiInstruction
from ..tensor import NkiTensor
from .tensor_rules import matmul_legal, transpose_legal

_GEN3 = 3
_Pair = tuple[int, int] | tuple[()]
_DOUBLE_ROW = matmul_perf_mode.double_row


def nc_matmul(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: _Pair = (),
    tile_size: _Pair = (),
    perf_mode: matmul_perf_mode = matmul_perf_mode.none,
    name: str | None = None,
) -> NkiInstruction:
    """dst[M, N] (+)= stationary[K, M].T @ moving[K, N], float32 accumulation in PSUM; free
    dimensions are flattened.

    `accumulate`: False overwrites, True adds to what matmuls left there, None overwrites elements
    that no matmul has written and adds to the others. `double_row`: float8 operands [K, 2, M] and
    [K, 2, N], contraction over 2K. `is_transpose` (v3): the bits of stationary.T, `moving` being an
    identity. Record: `k`, `m`, `n` (per row pair), `dtype`, `onezero`, `transpose`, `double_row`,
    `tile` (start row, start column, rows, columns).
    """
    core = running.current()
    double = perf_mode is _DOUBLE_ROW
    passes = is_transpose and core.chip.generation >= _GEN3
    if core.checks:
        tiling = (tile_position, tile_size)
        matmul_legal((dst, stationary, moving), passes, accumulate, tiling, perf_mode)
        _honest_hint("stationary", stationary, is_stationary_onezero)
        _honest_hint("moving", moving, is_moving_onezero)
    k = stationary.shape[0]
    if passes:
        source = value("nc_matmul", "stationary", stationary).reshape(k, -1)
        _store_transposed(dst, source[_order(moving)].T)
        m, n = source.shape[1], moving.size // k
    else:
        rows = 2 * k if double else k
        a = float32("nc_matmul", "stationary", stationary).reshape(rows, -1)
        b = float32("nc_matmul", "moving", moving).reshape(rows, -1)
        _accumulate(dst, a.T @ b, accumulate)
        m, n = a.shape[1], b.shape[1]
    return core.issue(
        "nc_matmul", Engine.tensor, (stationary, moving), (dst,), name,
        k=k, m=m, n=n, dtype=stationary.dtype, double_row=double, transpose=bool(is_transpose),
        onezero=bool(is_stationary_onezero or is_moving_onezero),
        tile=(*tile_position, *tile_size) if tile_size else (0, 0, 128, 128),
    )  # fmt: skip


def _honest_hint(argument: str, tensor: NkiTensor, onezero: bool) -> None:
    """A float32 operand announced as ones and zeros is multiplied in fewer passes, as if it
    were."""
    if not onezero or tensor.dtype != "float32":
        return
    values = value("nc_matmul", argument, tensor)
    if not ((values == 0) | (values == 1)).all():
        hazard(
            "false hint",
            f"{running.site()}: nc_matmul: is_{argument}_onezero: {tensor!r} holds values other"
            " than 0 and 1; leave the hint out",
        )


def _accumulate(dst: NkiTensor, product: np.ndarray, accumulate: bool | None) -> None:
    """Store or add, by the state of each element of the destination (see `memory`)."""
    array = dst.array
    product = product.reshape(array.shape)
    if accumulate is None or accumulate:
        mine = _by_matmul(dst)
        if accumulate and not np.all(mine):
            _not_started(dst, mine)
            mine = True
        if mine is True:
            array += product
        elif mine is False:
            array[...] = product
        else:
            array[...] = np.where(mine, array + product, product)
    else:
        array[...] = product
    mark(dst, BY_MATMUL)


def _by_matmul(dst: NkiTensor) -> bool | np.ndarray:
    """Whether a matmul wrote the elements: True, False, or for each where they differ."""
    if dst.storage.shadow is None:
        return dst.storage.by_matmul
    state = dst.state
    if state.ndim > dst.ndim:
        state = state.min(axis=-1)
    mine = state == BY_MATMUL
    if mine.all():
        return True
    return mine if mine.any() else False


def _not_started(dst: NkiTensor, mine: bool | np.ndarray) -> None:
    missing = dst.size - int(np.sum(np.broadcast_to(mine, dst.shape)))
    hazard(
        "accumulation not started",
        f"{running.site()}: nc_matmul: accumulate: {missing} of {dst.size} elements of {dst!r}"
        " hold no matmul's result (never written, or written by another instruction), and adding"
        " to them is undefined; use accumulate=False for the first matmul",
    )


def _order(moving: NkiTensor) -> np.ndarray:
    """Which row of `stationary` the transpose mode passes to each column of the output."""
    bits = value("nc_matmul", "moving", moving)
    weights = dtypes.to_float32(bits).reshape(moving.shape[0], -1)
    order = weights.argmax(axis=0)
    if running.current().checks:
        columns = np.arange(len(order))
        if not (weights[order, columns] == 1).all() or np.count_nonzero(weights) != len(order):
            rules.refuse(
                "nc_matmul", "moving", f"{moving!r} is not an identity, which is_transpose needs",
                "a tile with a single 1 in each column, as nl.shared_identity_matrix has",
            )  # fmt: skip
    return order


def nc_transpose(
    dst: NkiTensor,
    data: NkiTensor,
    engine: Engine = Engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """dst[F, P] = data[P, F] transposed, bit for bit; free dimensions are flattened.

    On the Tensor engine at most 128 x 128, SBUF to PSUM; on the Vector engine at most 32 x 32. Left
    open, a PSUM destination means Tensor (if `data` is in SBUF), else Vector. float8 data may go to
    a 16-bit tile on the Tensor engine: each byte with a zero above it. Record, on the Tensor
    engine: `k` (partitions), `n` (elements a partition), `dtype`.
    """
    core = running.current()
    chosen = engine
    if chosen is Engine.unknown:
        tensor_engine = dst.buffer is PSUM and data.buffer is not PSUM
        chosen = Engine.tensor if tensor_engine else Engine.vector
    if core.checks:
        transpose_legal(dst, data, chosen)
    source = value("nc_transpose", "data", data).reshape(data.shape[0], -1)
    _store_transposed(dst, source.T)
    work = {}
    if chosen is Engine.tensor:
        work = {"k": source.shape[0], "n": source.shape[1], "dtype": data.dtype}
    return core.issue("nc_transpose", chosen, (data,), (dst,), name, **work)


def _store_transposed(dst: NkiTensor, values: np.ndarray) -> None:
    """Bits as they are; bytes into a 16-bit destination get a zero upper byte."""
    array = dst.array
    if values.dtype != array.dtype:
        values = values.view(f"u{values.itemsize}").astype(f"u{array.itemsize}").view(array.dtype)
    write_bits(dst, values)
