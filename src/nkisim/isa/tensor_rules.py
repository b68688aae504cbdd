"""What the Tensor engine accepts (nki.isa.nc_matmul and nc_transpose, trainium2_arch.rst)."""

from __future__ import annotations

from math import prod
from typing import Any

from .. import dtypes, rules, running
from ..enums import engine as Engine
from ..enums import matmul_perf_mode
from ..tensor import NkiTensor

_OP = "nc_matmul"
_INPUTS = frozenset(
    ("float8_e4m3", "float8_e5m2", "bfloat16", "float16", "tfloat32", "float32")
)  # fmt: skip
_FLOAT8 = frozenset(("float8_e4m3", "float8_e5m2"))
_WIDE = frozenset(("float32", "tfloat32"))
_SIXTEEN_BITS = frozenset(("bfloat16", "float16", "uint16", "int16"))
_ROWS = _COLUMNS = 128
_MOVING = 512
_GEN3 = 3


def matmul_legal(
    operands: tuple[NkiTensor, NkiTensor, NkiTensor],
    passes: bool,
    accumulate: Any,
    tiling: tuple[Any, Any],
    perf_mode: Any,
) -> None:
    """`operands`: dst, stationary, moving; `passes`: the transpose mode of v3; `tiling`:
    (tile_position, tile_size)."""
    dst, stationary, moving = operands
    rules.tiles(_OP, dst=dst, stationary=stationary, moving=moving)
    rules.in_sbuf(_OP, stationary=stationary, moving=moving)
    rules.in_psum(_OP, dst=dst)
    _dtypes(stationary, moving)
    if accumulate is not None and accumulate not in (True, False):
        rules.refuse(
            _OP, "accumulate", f"must be True, False or None, got {accumulate!r}", "one of them"
        )
    double = False
    if perf_mode is not matmul_perf_mode.none:
        double = _double_row(stationary, moving, passes, perf_mode)
    rows, columns = _ROWS, _COLUMNS
    if tiling != ((), ()):
        rows, columns = _tiling(tiling, double)
    _sizes(dst, stationary, moving, double, (rows, columns))
    if passes:
        _passes_through(dst, stationary, accumulate)
    elif dst.dtype != "float32":
        rules.refuse(
            _OP, "dst", f"dtype {dst.dtype}; a matmul accumulates in float32", "a float32 PSUM tile"
        )
    one_bank(_OP, dst)


def _dtypes(stationary: NkiTensor, moving: NkiTensor) -> None:
    a, b = stationary.dtype, moving.dtype
    if a not in _INPUTS or b not in _INPUTS:
        rules.dtype_in(_OP, _INPUTS, stationary=stationary, moving=moving)
    if (a in _WIDE) is not (b in _WIDE):
        rules.refuse(
            _OP, "stationary and moving", f"{a} with {b}: float32 and tfloat32 need each other",
            "a cast of one (tensor_copy)",
        )  # fmt: skip


def _double_row(stationary: NkiTensor, moving: NkiTensor, passes: bool, perf_mode: Any) -> bool:
    if perf_mode is not matmul_perf_mode.double_row:
        rules.refuse(_OP, "perf_mode", f"got {perf_mode!r}", "a member of nki.isa.matmul_perf_mode")
    if running.current().chip.generation < _GEN3:
        rules.refuse(
            _OP, "perf_mode", "double_row needs a NeuronCore-v3 or newer", "perf_mode none"
        )
    if passes:
        rules.refuse(_OP, "perf_mode", "double_row has no transpose mode", "perf_mode none")
    rules.dtype_in(f"{_OP} (double_row)", _FLOAT8, stationary=stationary, moving=moving)
    for argument, tensor in (("stationary", stationary), ("moving", moving)):
        if tensor.ndim < 3 or tensor.shape[1] != 2:
            rules.refuse(
                _OP, argument, f"double_row needs shape [K, 2, ...], got {list(tensor.shape)}",
                "reshape_dim to split the contraction in two",
            )  # fmt: skip
    return True


def _tiling(tiling: tuple[Any, Any], double: bool) -> tuple[int, int]:
    position, size = tiling
    if len(position) != 2 or len(size) != 2:
        rules.refuse(
            _OP, "tile_position and tile_size", f"got {position!r} and {size!r}; tiling needs both",
            "(start_row, start_column) and (rows, columns)",
        )  # fmt: skip
    legal = (32, 64, 128) if running.current().chip.generation >= _GEN3 else (64, 128)
    if size[0] not in legal or size[1] not in legal:
        rules.refuse(_OP, "tile_size", f"got {size!r}", f"sizes of {', '.join(map(str, legal))}")
    for start, extent in zip(position, size, strict=True):
        if start % extent or not 0 <= start <= 128 - extent:
            rules.refuse(
                _OP, "tile_position", f"{position!r} is not a place of {size!r} tiles in 128 x 128",
                "multiples of tile_size inside the array",
            )  # fmt: skip
    if double and size[1] != _COLUMNS:
        rules.refuse(_OP, "tile_size", f"{size!r}: double_row has no column tiling", "128 columns")
    return size[0], size[1]


def _sizes(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    double: bool,
    room: tuple[int, int],
) -> None:
    skip = 2 if double else 1
    k, m, n = stationary.shape[0], prod(stationary.shape[skip:]), prod(moving.shape[skip:])
    if moving.shape[0] != k:
        rules.refuse(
            _OP, "moving", f"{moving.shape[0]} partitions, but stationary has {k}; the contraction"
            " is over partitions", "the same partitions in both",
        )  # fmt: skip
    if k > room[0]:
        rules.refuse(_OP, "stationary", f"K = {k} exceeds the {room[0]} rows", "smaller tiles of K")
    if m > room[1]:
        rules.refuse(
            _OP, "stationary", f"M = {m} exceeds the {room[1]} columns", "smaller tiles of M"
        )
    if n > _MOVING:
        rules.refuse(_OP, "moving", f"N = {n} exceeds {_MOVING}", "smaller tiles of N")
    if rules.elements(dst) != (m, n):
        rules.refuse(
            _OP, "dst", f"shape {list(dst.shape)}, but stationary {list(stationary.shape)} and"
            f" moving {list(moving.shape)} make [{m}, {n}]", f"a ({m}, {n}) tile",
        )  # fmt: skip


def _passes_through(dst: NkiTensor, stationary: NkiTensor, accumulate: Any) -> None:
    if accumulate:
        rules.refuse(
            _OP, "accumulate", "a transpose passes bits, it cannot add", "accumulate=False"
        )
    _same_or_wider(_OP, "stationary", dst, stationary)


def transpose_legal(dst: NkiTensor, data: NkiTensor, chosen: Engine) -> None:
    op = "nc_transpose"
    rules.tiles(op, dst=dst, data=data)
    rows, columns = rules.elements(data)
    limit = 128
    if chosen is Engine.tensor:
        rules.in_sbuf(op, data=data)
        rules.in_psum(op, dst=dst)
        _same_or_wider(op, "data", dst, data)
        one_bank(op, dst)
    elif chosen is Engine.vector:
        rules.same_dtype(op, data=data, dst=dst)
        limit = 32
    else:
        rules.refuse(op, "engine", f"{chosen} cannot run it", "engine.tensor or engine.vector")
    if rows > limit or columns > limit:
        rules.refuse(
            op, "data", f"{rows} x {columns} elements; the {chosen.name} engine transposes at most"
            f" {limit} x {limit}", "smaller tiles, or engine.tensor with a PSUM dst",
        )  # fmt: skip
    if rules.elements(dst) != (columns, rows):
        rules.refuse(
            op, "dst", f"shape {list(dst.shape)} for data of shape {list(data.shape)}",
            f"a ({columns}, {rows}) tile",
        )  # fmt: skip


def _same_or_wider(op: str, argument: str, dst: NkiTensor, source: NkiTensor) -> None:
    """A transpose keeps the dtype; float8 comes out in 16-bit slots (trainium2_arch.rst)."""
    if dst.dtype == source.dtype or source.dtype in dtypes.FLOAT8 and dst.dtype in _SIXTEEN_BITS:
        return
    rules.refuse(
        op, "dst", f"dtype {dst.dtype}, but {argument} is {source.dtype}; a transpose keeps it",
        f"a {source.dtype} tile",
    )  # fmt: skip


def one_bank(op: str, dst: NkiTensor) -> None:
    """The Tensor engine's output lies in one PSUM bank; a PSUM tensor starts where a bank does."""
    low, high = dst.access.span
    bank = running.current().chip.psum_bank_bytes
    if low // bank != (high - 1) // bank:
        rules.refuse(
            op, "dst", f"{dst!r} covers bytes {low} to {high - 1} of its partitions, across banks"
            f" of {bank}", "a tile inside one bank",
        )  # fmt: skip
