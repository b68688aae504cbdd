"""Placement: addresses of automatic tensors, against brute force; overflow; speed."""

from __future__ import annotations

import random
import time

import pytest

from nkisim.enums import PSUM, SBUF, MemoryRegion
from nkisim.errors import NkiValidationError
from nkisim.memory import Allocation
from nkisim.placement import place
from nkisim.tensor import NkiTensor
from tests.nkisim.scripts import Script

KIB = 1024


def address(tensor: NkiTensor) -> int:
    found = tensor.storage.allocation.address
    assert found is not None
    return found[1]


def lives_of(script: Script, region: MemoryRegion) -> dict[int, tuple[Allocation, int, int]]:
    """Lifetimes by a plain scan: allocation, first and last record."""
    table: dict[int, tuple[Allocation, int, int]] = {}
    for record in script.core.records or ():
        for access in record.reads + record.writes:
            allocation = access.allocation
            if allocation.buffer is region:
                first = table.get(allocation.index, (allocation, record.index, 0))[1]
                table[allocation.index] = (allocation, first, record.index)
    return table


def check_apart(script: Script, region: MemoryRegion, room: int, unit: int) -> None:
    """No two tensors that live at the same time share a byte (a unit)."""
    lives = list(lives_of(script, region).values())
    for at, (a, first, last) in enumerate(lives):
        assert a.address is not None
        assert a.address[1] % unit == 0 and a.address[1] + a.row_bytes <= room
        for b, begin, end in lives[:at]:
            if begin <= last and first <= end:
                assert b.address is not None
                (low, size), (high, _) = sorted(
                    (x.address[1], x.row_bytes) for x in (a, b) if x.address is not None
                )
                assert low + -(-size // unit) * unit <= high


def random_script(seed: int, fill: float) -> Script:
    """Tensors of many sizes with random lifetimes, at most about `fill` of SBUF alive."""
    draw = random.Random(seed)
    script = Script()
    alive: list[NkiTensor] = []
    for _ in range(150):
        size = draw.choice([4, 20, 512, 2048, 8192, 20000])
        new = script.sbuf((128, size), "uint8")
        script.memset(new)
        alive.append(new)
        while sum(t.shape[1] for t in alive) > fill * 208 * KIB:
            old = alive.pop(draw.randrange(len(alive)))
            script.copy(new, old)
    return script


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fill", [0.3, 0.7])
def test_tensors_alive_together_lie_apart(seed: int, fill: float) -> None:
    script = random_script(seed, fill)
    placement = place(script.program, strict=True)
    check_apart(script, SBUF, 208 * KIB, 4)
    lives = list(lives_of(script, SBUF).values())
    peak = max(
        sum(a.row_bytes for a, first, last in lives if first <= record.index <= last)
        for record in script.core.records or ()
    )
    assert placement.memories[0].peak == peak


def test_addresses_rotate() -> None:
    """A second tile of the same size does not wait for the first to be given back."""
    script = Script()
    tiles = []
    for _ in range(6):
        tiles.append(script.sbuf((128, 32 * KIB), "uint8"))
        script.memset(tiles[-1])
    place(script.program, strict=True)
    assert [address(tile) for tile in tiles] == [k * 32 * KIB for k in range(6)]


def test_psum_tensors_start_on_banks() -> None:
    script = Script()
    small, wide, after = (script.psum((128, n)) for n in (100, 600, 512))
    for tile in (small, wide, after):
        script.memset(tile)
    script.tensor_tensor(small, wide, after)
    place(script.program, strict=True)
    check_apart(script, PSUM, 16 * KIB, 2048)
    assert address(wide) % 2048 == 0  # 2400 bytes: two banks


def test_psum_has_eight_banks() -> None:
    script = Script()
    tiles = [script.psum((128, 8)) for _ in range(9)]
    for tile in tiles:
        script.memset(tile)
    script.copy(script.sbuf((128, 8)), tiles[8])
    place(script.program, strict=True)  # each dead before the next
    for tile in tiles:
        script.copy(script.sbuf((128, 8)), tile)
    with pytest.raises(NkiValidationError, match="psum of core 0 overflows: 18432 bytes"):
        place(script.program, strict=True)


def test_automatic_tensors_go_around_explicit_ones() -> None:
    script = Script()
    fixed = script.sbuf((128, 64 * KIB), "uint8", address=(0, 10 * KIB))
    script.memset(fixed)
    tiles = [script.sbuf((128, 30 * KIB), "uint8") for _ in range(4)]
    for tile in tiles:
        script.memset(tile)
    for tile in tiles:
        script.copy(tile, fixed)
    place(script.program, strict=True)
    check_apart(script, SBUF, 208 * KIB, 4)
    assert address(fixed) == 10 * KIB


def test_pieces_are_mended() -> None:
    """Rotation alone would leave holes of 52 KiB; 104 KiB at once need another order."""
    script = Script()
    tiles = [script.sbuf((128, 52 * KIB), "uint8") for _ in range(4)]
    for tile in tiles:
        script.memset(tile)
    large = script.sbuf((128, 104 * KIB), "uint8")
    for at in (1, 3):
        script.copy(tiles[at - 1], tiles[at])
    script.memset(large)
    script.tensor_tensor(large, tiles[0], tiles[2])
    place(script.program, strict=True)
    check_apart(script, SBUF, 208 * KIB, 4)


def test_overflow_tells_who_lives() -> None:
    script = Script()
    weights = script.sbuf((128, 150 * KIB), "uint8", name="weights")
    script.memset(weights)
    tile = script.sbuf((128, 70 * KIB), "uint8", name="tile")
    script.memset(tile)
    script.copy(tile, weights)
    with pytest.raises(NkiValidationError) as error:
        script.report()
    text = str(error.value)
    total = 220 * KIB
    assert f"{total} bytes of each partition" in text and str(208 * KIB) in text
    for name, size in (("weights", 150 * KIB), ("tile", 70 * KIB)):
        row = next(line for line in text.splitlines() if line.strip().startswith(name))
        assert str(size) in row and row.count("scripts.py:") == 2
    assert f"high-water mark: {total}" in text


def test_overflow_is_let_through_without_checks() -> None:
    script = Script(checks="off")
    tiles = [script.sbuf((128, 150 * KIB), "uint8") for _ in range(2)]
    for tile in tiles:
        script.memset(tile)
    script.copy(tiles[0], tiles[1])
    report = script.report()
    assert report.sbuf_high_water == 300 * KIB
    assert report.latency_us > 0 and "does not fit" in str(report)


def test_former_owners() -> None:
    """Who held the bytes before, against a byte-by-byte replay."""
    script = random_script(9, 0.6)
    placement = place(script.program, strict=True)
    owner: dict[int, int] = {}
    lives = sorted(lives_of(script, SBUF).values(), key=lambda life: life[1])
    taken = 0
    for allocation, _, _ in lives:
        start = 0 if allocation.address is None else allocation.address[1]
        wanted = {}
        for byte in range(start, start + allocation.row_bytes, 4):
            if byte in owner:
                wanted.setdefault(owner[byte], set()).add(byte - start)
            owner[byte] = allocation.index
        got: dict[int, set[int]] = {}
        for old, low, high in placement.formers.get(allocation.index, ()):
            got.setdefault(old.index, set()).update(range(low, high, 4))
        assert got == wanted
        taken += len(got)
    assert taken > 50


def test_placing_is_fast() -> None:
    """Linear: ten times the tensors take about ten times as long (30 us each is far from it)."""
    script = Script()
    window = [script.sbuf((128, 512)) for _ in range(50)]
    for tile in window:
        script.memset(tile)
    for _ in range(10_000):
        window = [*window[1:], script.sbuf((128, 512))]
        script.copy(window[-1], window[0])
    start = time.process_time()
    place(script.program, strict=True)
    assert time.process_time() - start < 3.0
