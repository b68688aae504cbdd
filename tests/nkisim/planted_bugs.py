"""Kernels with one bug each, and their twins without it.

`planted` registers them: the kind of error, what its text must say, and the source lines that it
must name. Hazards (`kind` given) are errors by default and findings where the checks only report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nkisim.isa as nisa
import nkisim.language as nl


@dataclass
class Bug:
    """`body(True)` has the bug, `body(False)` does not; some also take an input tensor, float32
    (64, 8). `lines`: pieces of source whose file:line is
    in the error's text. `says`: pieces of that text. `kind`: of the finding, "" where a rule of the
    hardware or of NKI is broken."""

    body: Callable[[bool], Any]
    kind: str
    lines: tuple[str, ...]
    says: tuple[str, ...]
    cores: int


BUGS: list[Bug] = []


def planted(
    *lines: str, kind: str = "", says: tuple[str, ...] = (), cores: int = 1
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a kernel body that takes whether it has the bug."""

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        BUGS.append(Bug(body, kind, lines, says, cores))
        return body

    return register


def filled(shape: tuple[int, ...], dtype: Any = nl.float32, value: float = 1, **place: Any) -> Any:
    tile = nl.ndarray(shape, dtype=dtype, **place)
    nisa.memset(dst=tile, value=value)
    return tile


def output(tile: Any) -> Any:
    result = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=result, src=tile)
    return result


# -- uninitialised reads --------------------------------------------------------------------------

NEVER = {"kind": "uninitialised read", "says": ("never written",)}


@planted("tile = nl.ndarray", "nisa.tensor_scalar", **NEVER)
def float_never_written(bug: bool) -> Any:
    tile = nl.ndarray((128, 4), dtype=nl.float32)
    if not bug:
        nisa.memset(dst=tile, value=0.0)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.add, operand0=1.0)
    return output(tile)


@planted("tile = nl.ndarray", "nisa.tensor_copy(dst=other", **NEVER)
def integer_never_written(bug: bool) -> Any:
    tile = nl.ndarray((128, 4), dtype=nl.int32)
    other = nl.ndarray((128, 4), dtype=nl.int32)
    if not bug:
        nisa.memset(dst=tile, value=0)
    nisa.tensor_copy(dst=other, src=tile)
    return output(other)


@planted("tile = nl.ndarray", "nisa.nc_matmul", **NEVER)
def fp8_never_written(bug: bool) -> Any:
    tile = nl.ndarray((128, 32), dtype=nl.float8_e4m3)
    total = nl.ndarray((32, 32), dtype=nl.float32, buffer=nl.psum)
    if not bug:
        nisa.memset(dst=tile, value=1.0)
    nisa.nc_matmul(dst=total, stationary=tile, moving=tile)
    return output(nl.copy(total))


@planted("tile = nl.ndarray", "nisa.activation", kind=NEVER["kind"], says=("128 of 1024", "[0, 7]"))
def last_column_never_written(bug: bool) -> Any:
    tile = nl.ndarray((128, 8), dtype=nl.float32)
    nisa.memset(dst=tile[:, 0 : 7 if bug else 8], value=0.0)
    nisa.activation(dst=tile, op=nl.exp, data=tile)
    return output(tile)


@planted("tile = nl.ndarray", "nisa.dma_copy(dst=result", **NEVER)
def stored_before_it_is_loaded(bug: bool) -> Any:
    tile = nl.ndarray((16, 8), dtype=nl.bfloat16)
    result = nl.ndarray((16, 8), dtype=nl.bfloat16, buffer=nl.shared_hbm)
    nisa.memset(dst=tile[0 : 15 if bug else 16], value=0.0)
    nisa.dma_copy(dst=result, src=tile)
    return result


@planted("rows = nl.ndarray", "nisa.dma_copy(dst=picked", **NEVER)
def indices_never_written(bug: bool, table: Any) -> Any:
    rows = nl.ndarray((4, 1), dtype=nl.uint32)
    if not bug:
        nisa.memset(dst=rows, value=3)
    picked = nl.ndarray((4, 8), dtype=nl.float32)
    nisa.dma_copy(dst=picked, src=table.vector_select(0, rows), oob_mode=nisa.oob_mode.skip)
    return output(picked)


@planted("result = nl.ndarray", kind="unwritten output", says=("64 of 128", "never written"))
def half_an_output(bug: bool) -> Any:
    result = nl.ndarray((16, 8), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = filled((16, 8))
    for half in range(1 if bug else 2):
        rows = slice(8 * half, 8 * half + 8)
        nisa.dma_copy(dst=result[rows], src=tile[rows])
    return result


# -- memory ---------------------------------------------------------------------------------------


@planted(
    "old = nl.ndarray",
    "new = nl.ndarray",
    "nisa.tensor_scalar",
    kind="use after free",
    says=("overwritten", "sbuf"),
)
def overlapping_addresses(bug: bool) -> Any:
    old = nl.ndarray((128, 64), dtype=nl.float32, address=(0, 0))
    new = nl.ndarray((128, 64), dtype=nl.float32, address=(0, 252 if bug else 256))
    for tile in (old, new):
        nisa.memset(dst=tile, value=1.0)
    nisa.tensor_scalar(dst=old, data=old, op0=nl.add, operand0=1.0)
    return output(old), output(new)


@planted(
    "old = nl.ndarray", "new = nl.ndarray", kind="use after free", says=("512 of 2048", "[64, 8]")
)
def overlapping_partitions(bug: bool) -> Any:
    old = nl.ndarray((128 if bug else 64, 16), dtype=nl.float32, address=(0, 0))
    new = nl.ndarray((64, 16), dtype=nl.float32, address=(64, 32))
    for tile in (old, new):
        nisa.memset(dst=tile, value=1.0)
    return output(old)


@planted("tiles.append", "nisa.tensor_tensor", says=("sbuf", "212992", "81920"))
def sbuf_overflow(bug: bool) -> Any:
    """Three tiles of 80 KiB a partition, all needed at the end."""
    tiles = []
    for _ in range(3 if bug else 2):
        tiles.append(nl.ndarray((1, 20480), dtype=nl.float32))
        nisa.memset(dst=tiles[-1], value=1.0)
    for tile in tiles[1:]:
        nisa.tensor_tensor(dst=tiles[0], data1=tiles[0], data2=tile, op=nl.add)
    return output(tiles[0])


@planted("tile = nl.ndarray", says=("sbuf", "212996", "212992", "free dimension"))
def one_tile_larger_than_sbuf(bug: bool) -> Any:
    tile = nl.ndarray((1, 53249 if bug else 53248), dtype=nl.float32)
    nisa.memset(dst=tile, value=1.0)
    return output(tile)


@planted("tiles.append", says=("psum", "16384"))
def psum_overflow(bug: bool) -> Any:
    """Nine accumulators alive at once; PSUM has eight banks."""
    tiles = []
    one = filled((32, 32))
    for _ in range(9 if bug else 8):
        tiles.append(nl.ndarray((32, 32), dtype=nl.float32, buffer=nl.psum))
        nisa.nc_matmul(dst=tiles[-1], stationary=one, moving=one)
    for tile in tiles:
        nisa.tensor_tensor(dst=one, data1=one, data2=tile, op=nl.add)
    return output(one)


@planted("total = nl.ndarray(", says=("address", "2048"))
def psum_address_inside_a_bank(bug: bool) -> Any:
    one = filled((32, 32))
    total = nl.ndarray(
        (32, 32), dtype=nl.float32, buffer=nl.psum, address=(0, 1024 if bug else 2048)
    )
    nisa.nc_matmul(dst=total, stationary=one, moving=one)
    return output(nl.copy(total))


@planted("nisa.nc_matmul", says=("nc_matmul", "bank"))
def matmul_across_banks(bug: bool) -> Any:
    one = filled((32, 32))
    total = nl.ndarray((32, 1024), dtype=nl.float32, buffer=nl.psum)
    start = 500 if bug else 512
    nisa.nc_matmul(dst=total[:, start : start + 32], stationary=one, moving=one)
    return output(nl.copy(total[:, start : start + 32]))


# -- run-time indices -----------------------------------------------------------------------------


@planted("nisa.dma_copy(dst=picked", says=("64", "rows 0 to 63"))
def gather_outside(bug: bool, table: Any) -> Any:
    rows = filled((4, 1), nl.uint32, 64 if bug else 63)
    picked = nl.ndarray((4, 8), dtype=nl.float32)
    nisa.dma_copy(dst=picked, src=table.vector_select(0, rows))
    return output(picked)


@planted("nisa.dma_copy(dst=table", says=("-1", "rows 0 to 63"))
def scatter_outside(bug: bool, table: Any) -> Any:
    rows = filled((1, 1), nl.int32, -1 if bug else 0)
    nisa.dma_copy(dst=table.vector_select(0, rows), src=filled((1, 8)))
    return table


@planted("nisa.dma_copy(dst=tile", says=("33", "out of bounds"))
def register_outside(bug: bool, table: Any) -> Any:
    register = nisa.register_alloc(33 if bug else 32)
    tile = nl.ndarray((32, 8), dtype=nl.float32)
    nisa.dma_copy(dst=tile, src=table.ap([[8, 32], [1, 8]], scalar_offset=register))
    return output(tile)


@planted("nisa.dma_copy(dst=table", kind="duplicate scatter index", says=("row 5",))
def duplicate_slots(bug: bool, table: Any) -> Any:
    rows = filled((4, 1), nl.uint32, 5)
    if not bug:
        nisa.iota(rows, [[1, 1]], offset=5, channel_multiplier=1)
    nisa.dma_copy(dst=table.vector_select(0, rows), src=filled((4, 8)))
    return table


@planted("nisa.dma_copy(dst=tile[:, 1:5]", kind="overlap within one DMA", says=("share bytes",))
def dma_onto_its_source(bug: bool) -> Any:
    tile = filled((16, 8))
    start = 0 if bug else 5
    nisa.dma_copy(dst=tile[:, 1:5], src=filled((16, 4)) if not bug else tile[:, start : start + 4])
    return output(tile)


# -- two cores ------------------------------------------------------------------------------------


def shared_rows(core: int) -> Any:
    """A shared tensor of which each core has written its row, and both know it."""
    shared = nl.ndarray((2, 8), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=shared[core : core + 1], src=filled((1, 8)))
    nisa.core_barrier(shared, (0, 1))
    return shared


@planted("dst=shared[core", "src=shared[1 - core", kind="race", says=("core_barrier", "shared_hbm"),
         cores=2)  # fmt: skip
def update_without_barrier(bug: bool) -> Any:
    """Each core reads the other's row after an update that nothing makes it wait for."""
    core = nl.program_id()
    shared = shared_rows(core)
    tile = filled((1, 8), value=float(core))
    nisa.dma_copy(dst=shared[core : core + 1], src=tile)
    if not bug:
        nisa.core_barrier(shared, (0, 1))
    nisa.dma_copy(dst=tile, src=shared[1 - core : 2 - core])
    return output_of_core(tile, core)


@planted("dst=shared[core", "src=shared[1 - core", kind="race", says=("core_barrier",), cores=2)
def barrier_too_late(bug: bool) -> Any:
    """The barrier stands after the read that it should keep waiting."""
    core = nl.program_id()
    shared = shared_rows(core)
    tile = filled((1, 8), value=float(core))
    nisa.dma_copy(dst=shared[core : core + 1], src=tile)
    for late in (False, True):
        if late == bug:
            nisa.core_barrier(shared, (0, 1))
        if not late:
            nisa.dma_copy(dst=tile, src=shared[1 - core : 2 - core])
    return output_of_core(tile, core)


@planted("dst=tile, src=shared", kind="uninitialised read", says=("never written",), cores=2)
def other_cores_row_too_early(bug: bool) -> Any:
    """A race that shows as a read of what the other core has yet to write."""
    core = nl.program_id()
    shared = nl.ndarray((2, 8), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = filled((1, 8), value=float(core))
    nisa.dma_copy(dst=shared[core : core + 1], src=tile)
    if not bug:
        nisa.core_barrier(shared, (0, 1))
    nisa.dma_copy(dst=tile, src=shared[1 - core : 2 - core])
    return output_of_core(tile, core)


@planted("nisa.dma_copy(dst=result", kind="race", says=("nothing orders",), cores=2)
def both_cores_write_one_row(bug: bool) -> Any:
    row = 0 if bug else nl.program_id()
    result = nl.ndarray((1 if bug else 2, 8), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=result[row : row + 1], src=filled((1, 8)))
    return result


def output_of_core(tile: Any, core: int) -> Any:
    result = nl.ndarray((2, *tile.shape[1:]), dtype=tile.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=result[core : core + 1], src=tile)
    return result


@planted(
    "nisa.memset(dst=tile, value=2.0)", kind="divergent control flow", says=("program 1",), cores=2
)
def one_core_does_more(bug: bool) -> Any:
    core = nl.program_id()
    tile = filled((1, 8))
    if core == 1 or not bug:
        nisa.memset(dst=tile, value=2.0)
    return output_of_core(tile, core)


@planted("nisa.dma_copy(dst=shared[0:2]", kind="divergent control flow", says=("memset",), cores=2)
def branches_that_differ(bug: bool) -> Any:
    """A branch on the core is fine (nki.isa.core_barrier's example has one), not so another
    sequence of instructions."""
    shared = nl.ndarray((4, 8), dtype=nl.float32, buffer=nl.shared_hbm)
    tile = filled((2, 8))
    if nl.program_id() == 0:
        nisa.dma_copy(dst=shared[0:2], src=tile)
        nisa.memset(dst=tile, value=2.0)
    else:
        if bug:
            nisa.memset(dst=tile, value=2.0)
        nisa.dma_copy(dst=shared[2:4], src=tile)
        if not bug:
            nisa.memset(dst=tile, value=3.0)
    nisa.core_barrier(shared, (0, 1))
    return shared


@planted("nisa.core_barrier", says=("deadlock", "core 1 has finished"), cores=2)
def barrier_by_one_core(bug: bool) -> Any:
    core = nl.program_id()
    result = nl.ndarray((2, 8), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=result[core : core + 1], src=filled((1, 8)))
    if core == 0 or not bug:
        nisa.core_barrier(result, (0, 1))
    return result


@planted("pipe_id=core if bug", says=("deadlock", "pipe_id 0", "pipe_id 1"), cores=2)
def sendrecv_on_two_pipes(bug: bool) -> Any:
    core = nl.program_id()
    mine, theirs = filled((1, 8), value=float(core)), nl.ndarray((1, 8), dtype=nl.float32)
    nisa.sendrecv(mine, theirs, 1 - core, 1 - core, pipe_id=core if bug else 0)
    return output_of_core(theirs, core)


@planted("nisa.sendrecv(", says=("sendrecv", "sends to core"), cores=2)
def sendrecv_to_itself(bug: bool) -> Any:
    core = nl.program_id()
    mine, theirs = filled((1, 8), value=float(core)), nl.ndarray((1, 8), dtype=nl.float32)
    nisa.sendrecv(mine, theirs, core if bug else 1 - core, 1 - core, pipe_id=0)
    return output_of_core(theirs, core)


# -- engines and dtypes ---------------------------------------------------------------------------


@planted("nisa.dma_copy(dst=result", says=("dma_copy", "src", "PSUM"))
def dma_from_psum(bug: bool) -> Any:
    one = filled((32, 32))
    total = nl.ndarray((32, 32), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=total, stationary=one, moving=one)
    result = nl.ndarray((32, 32), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=result, src=total if bug else nl.copy(total))
    return result


@planted("nisa.nc_matmul", says=("nc_matmul", "accumulate"))
def accumulation_without_a_start(bug: bool) -> Any:
    one = filled((32, 32))
    total = nl.ndarray((32, 32), dtype=nl.float32, buffer=nl.psum)
    for step in range(2):
        nisa.nc_matmul(dst=total, stationary=one, moving=one, accumulate=bug or step > 0)
    return output(nl.copy(total))


@planted("accumulate=True)", says=("nc_matmul", "accumulate"))
def accumulation_over_memset(bug: bool) -> Any:
    one = filled((32, 32))
    total = filled((32, 32), buffer=nl.psum)
    if not bug:
        nisa.nc_matmul(dst=total, stationary=one, moving=one, accumulate=False)
    nisa.nc_matmul(dst=total, stationary=one, moving=one, accumulate=True)
    return output(nl.copy(total))


@planted("nisa.tensor_scalar", says=("tensor_scalar", "dst", "partition 16", "0 or 32 or 64 or 96"))
def start_partition(bug: bool) -> Any:
    tile = filled((128, 8))
    first = 16 if bug else 32
    part = tile[first : first + 32]
    nisa.tensor_scalar(dst=part, data=part, op0=nl.add, operand0=1.0)
    return output(tile)


@planted("tile = nl.ndarray(", says=("129 partitions",))
def too_many_partitions(bug: bool) -> Any:
    tile = nl.ndarray((129 if bug else 128, 4), dtype=nl.float32)
    nisa.memset(dst=tile, value=1.0)
    return output(tile)


@planted("nisa.tensor_copy", says=("tensor_copy", "HBM"))
def engine_on_hbm(bug: bool, table: Any) -> Any:
    tile = nl.ndarray((64, 8), dtype=nl.float32)
    nisa.tensor_copy(dst=tile, src=table if bug else nl.load(table))
    return output(tile)


@planted("nisa.nc_matmul", says=("nc_matmul", "float32", "bfloat16"))
def matmul_of_mixed_dtypes(bug: bool) -> Any:
    total = nl.ndarray((32, 32), dtype=nl.float32, buffer=nl.psum)
    moving = filled((32, 32), nl.bfloat16 if bug else nl.float32)
    nisa.nc_matmul(dst=total, stationary=filled((32, 32)), moving=moving)
    return output(nl.copy(total))


@planted("nisa.dma_copy(", says=("dma_copy", "hwdge", "cast"))
def hardware_dma_that_casts(bug: bool) -> Any:
    tile = filled((32, 32))
    other = nl.ndarray((32, 32), dtype=nl.bfloat16 if bug else nl.float32)
    nisa.dma_copy(dst=other, src=tile, dge_mode=nisa.dge_mode.hwdge)
    return output(other)


@planted("nisa.memset", says=("memset", "value", "int32"))
def float_into_integers(bug: bool) -> Any:
    tile = nl.ndarray((32, 32), dtype=nl.int32)
    nisa.memset(dst=tile, value=2.0 if bug else 2)
    return output(tile)


@planted("nisa.tensor_tensor", says=("tensor_tensor", "PSUM"))
def both_operands_in_psum(bug: bool) -> Any:
    one = filled((32, 32))
    a = filled((32, 32), buffer=nl.psum)
    b = filled((32, 32), buffer=nl.psum)
    nisa.tensor_tensor(dst=one, data1=a, data2=b if bug else nl.copy(b), op=nl.add)
    return output(one)


@planted("nisa.iota", says=("iota", "psum"))
def gpsimd_into_psum(bug: bool) -> Any:
    tile = nl.ndarray((32, 8), dtype=nl.int32, buffer=nl.psum if bug else nl.sbuf)
    nisa.iota(tile, [[1, 8]], offset=0, channel_multiplier=0)
    return output(nl.copy(tile))
