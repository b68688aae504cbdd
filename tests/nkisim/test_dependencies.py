"""Dependencies, against element by element replays of random programs and by hand."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import numpy as np
import pytest

from nkisim.dependencies import dependencies
from nkisim.errors import NkiValidationError
from nkisim.placement import place
from nkisim.record import NkiInstruction
from nkisim.tensor import Access, NkiTensor
from tests.nkisim.scripts import Script


def waits_of(script: Script, schedule: tuple = ()) -> list[set[int]]:
    found = dependencies(script.program, place(script.program, strict=True), schedule)
    return [set(needs) for needs in found[0]]


def reach(waits: list[set[int]]) -> list[set[int]]:
    """All earlier records that each waits for, directly or through others."""
    result: list[set[int]] = []
    for needs in waits:
        result.append(needs.union(*(result[need] for need in needs)))
    return result


def elements(access: Access) -> np.ndarray:
    """Byte numbers of an access in its whole memory (on chip) or tensor, by its definition."""
    places = np.array([access.offset])
    for size, step in zip(access.shape, access.strides, strict=True):
        places = (places[:, None] + np.arange(size) * step).reshape(-1)
    byte = (places[:, None] * access.itemsize + np.arange(access.itemsize)).reshape(-1)
    allocation = access.allocation
    if not allocation.on_chip:
        return byte
    assert allocation.address is not None
    partition, inside = np.divmod(byte, allocation.row_bytes)
    return (partition + allocation.address[0]) * 10**6 + inside + allocation.address[1]


def conflicts(script: Script, unit: int = 1) -> set[tuple[int, int]]:
    """Pairs (later, earlier) that touch a common byte, one of them writing it; `unit`: of all
    accesses, so that fewer bytes need a look."""
    writers: dict[object, list[int]] = {}
    readers: dict[object, list[int]] = {}
    pairs: set[tuple[int, int]] = set()
    for record in script.core.records or ():
        mine: list[tuple[object, bool]] = []
        for accesses, writes in ((record.reads, False), (record.writes, True)):
            for access in accesses:
                memory = access.allocation.buffer if access.allocation.on_chip else (
                    access.allocation.index)  # fmt: skip
                units = np.unique(elements(access) // unit).tolist()
                mine += [((memory, byte), writes) for byte in units]
        for key, writes in mine:
            pairs |= {(record.index, other) for other in writers.get(key, ())}
            if writes:
                pairs |= {(record.index, other) for other in readers.get(key, ())}
        for key, writes in mine:
            (writers if writes else readers).setdefault(key, []).append(record.index)
    return {(later, earlier) for later, earlier in pairs if later != earlier}


def some_view(draw: random.Random, tensor: NkiTensor) -> NkiTensor:
    """A random box, at times strided, of a tensor (4, 6, 8)."""
    view = tensor
    for dim, size in enumerate(tensor.shape):
        start = draw.randrange(size)
        stop = draw.randrange(start, size) + 1
        step = draw.choice([1, 1, 2]) if dim or not tensor.on_chip else 1
        view = view.slice(dim, start, stop, step)
    return tensor if draw.random() < 0.3 else view


@pytest.mark.parametrize("seed", range(12))
def test_random_programs(seed: int) -> None:
    """Every conflict is waited for, and no record waits for one that it has no conflict with unless
    their boxes meet."""
    draw = random.Random(seed)
    script = Script()
    pool = [script.sbuf((4, 6, 8)), script.hbm((4, 6, 8)), script.psum((4, 6, 8))]
    for _ in range(60):
        source, target = draw.sample(pool, 2)
        script.copy(some_view(draw, target), some_view(draw, source))
    waits = waits_of(script)
    reached = reach(waits)
    real = conflicts(script)
    for later, earlier in real:
        assert earlier in reached[later], (later, earlier)
    records = script.core.records or []
    for later, needs in enumerate(waits):
        for earlier in needs - {e for n, e in real if n == later}:
            assert boxes_meet_somewhere(records[later], records[earlier])


def boxes_meet_somewhere(a: object, b: object) -> bool:
    for x in (*a.reads, *a.writes):  # type: ignore[attr-defined]
        for y in (*b.reads, *b.writes):  # type: ignore[attr-defined]
            p, q = x.box, y.box
            if x.allocation is y.allocation and all(
                p[k] < q[k + 1] and q[k] < p[k + 1] for k in (0, 2, 4)
            ):
                return True
    return False


@pytest.mark.parametrize("seed", range(6))
def test_reused_addresses(seed: int) -> None:
    """Tensors that take over bytes wait for the last users of those, whatever view comes first."""
    draw = random.Random(seed)
    script = Script()
    for _ in range(40):
        tile = script.sbuf((1, draw.choice([2, 4, 6]), 2500))
        for part in range(tile.shape[1]):
            script.memset(tile[:, part])
        if draw.random() < 0.7:
            script.copy(script.sbuf((1, 1, 2500)), tile[:, 0:1])
    waits = waits_of(script)
    addresses = {r.writes[0].allocation.address for r in script.core.records or ()}
    assert len(addresses) < 60  # bytes were used again
    reached = reach(waits)
    for later, earlier in conflicts(script, unit=2500 * 4):
        assert earlier in reached[later]


def test_explicit_tensors_meet_by_address() -> None:
    script = Script()
    a = script.sbuf((128, 64), address=(0, 0))
    b = script.sbuf((64, 64), address=(64, 128))
    c = script.sbuf((64, 64), address=(0, 256))
    apart = script.sbuf((128, 16), address=(0, 512))
    for tile in (a, b, c, apart):
        script.memset(tile)
    # b shares partitions and bytes with a; c shares bytes with b, but no partition.
    assert waits_of(script) == [set(), {0}, set(), set()]


def test_interleaved_views_are_apart() -> None:
    script = Script()
    tile = script.sbuf((128, 4, 2, 64))
    script.memset(tile[:, :, 0])
    script.memset(tile[:, :, 1])
    script.memset(tile[:, :, :, 0:64:2])
    assert waits_of(script) == [set(), set(), {0, 1}]


def test_readers_do_not_wait_for_readers() -> None:
    script = Script()
    tile, other = script.sbuf((128, 8)), script.sbuf((128, 8))
    script.memset(tile)
    first = script.sbuf((128, 8))
    script.copy(first, tile)
    script.copy(other, tile)
    script.memset(tile)
    assert waits_of(script) == [set(), {0}, {0}, {0, 1, 2}]


def test_run_time_indices_are_not_seen() -> None:
    """A scatter's HBM side orders nothing; its chip side does."""
    script = Script()
    cache, row, tile = script.hbm((512, 64)), script.sbuf((128, 64)), script.sbuf((128, 64))
    script.memset(row)
    script.dma(cache, row, indirect="vector")
    script.dma(tile, cache[0:128])
    script.memset(row)
    assert waits_of(script) == [set(), {0}, set(), {0, 1}]


def test_depends_on_and_schedules() -> None:
    script = Script()
    tiles = [script.sbuf((128, 8), name=f"tile{k}") for k in range(3)]
    issued: list[NkiInstruction] = [script.memset(tile) for tile in tiles]
    issued[1].depends_on(issued[0])
    assert waits_of(script) == [set(), {0}, set()]
    assert waits_of(script, (("tile2", ("tile0", "tile1")),)) == [set(), {0}, {0, 1}]
    with pytest.raises(NkiValidationError, match="with_schedule: no instruction .* 'tile9'"):
        waits_of(script, (("tile2", ("tile9",)),))


def test_accumulator_readout_follows_its_activation() -> None:
    script = Script()
    a, b, sums = script.sbuf((128, 8)), script.sbuf((128, 8)), script.sbuf((128, 1))
    script.memset(a)
    script.activation(b, a)
    script.core.issue("activation_read", script.core.records[1].engine, (), (sums,))  # type: ignore[index]
    assert waits_of(script) == [set(), {0}, {1}]


def test_many_tiles_of_one_tensor_stay_linear() -> None:
    """8,000 stores to one HBM tensor; comparing all pairs would take half a minute."""
    script = Script()
    out = script.hbm((128 * 100, 80 * 16), kind="output")
    tile = script.sbuf((128, 16))
    script.memset(tile)
    for row in range(100):
        for column in range(80):
            script.dma(out[row * 128 : row * 128 + 128, column * 16 : column * 16 + 16], tile)
    start = time.process_time()
    waits = waits_of(script)
    assert time.process_time() - start < 20.0
    assert waits[1:] == [{0}] * 8_000


def test_psum_accumulation_is_a_chain() -> None:
    script = Script()
    a, b, c = script.sbuf((128, 128)), script.sbuf((128, 512)), script.psum((128, 512))
    script.memset(a)
    script.memset(b)
    for _ in range(4):
        script.matmul(c, a, b)
    waits = waits_of(script)
    assert [4 in waits[5], waits[2]] == [True, {0, 1}]
    assert all(first in waits[second] for first, second in pairwise(range(2, 6)))
