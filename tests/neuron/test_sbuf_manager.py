"""SbufManager: a stack with scopes from below, a heap from above, and nothing in two places."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim.errors import NkiHazardError
from tests.nkisim.harness import execute
from tkg.backends.neuron.sbuf_manager import ALIGNMENT, SbufManager, bytes_of, row_bytes

ROOM = 16 * ALIGNMENT


def offset(tile: Any) -> int:
    return tile.storage.allocation.address[1]


def tile(sbm: SbufManager, units: int, name: str = "t", heap: bool = False) -> Any:
    """A tile of so many alignment units a partition."""
    take = sbm.allocate if heap else sbm.stack
    return take((128, units * ALIGNMENT // 4), nl.float32, name)


def inside(body: Any) -> Any:
    """What the body returns, given a manager of ROOM bytes, inside a kernel."""
    return execute(lambda: body(SbufManager(0, ROOM)))


def test_a_scope_gives_its_bytes_back() -> None:
    def body(sbm: SbufManager) -> list[int]:
        first = tile(sbm, 2)
        sbm.open_scope("a")
        second = tile(sbm, 3)
        sbm.open_scope("b")
        third = tile(sbm, 1)
        sbm.close_scope()
        fourth = tile(sbm, 4)
        sbm.close_scope()
        fifth = tile(sbm, 1)
        return [offset(t) // ALIGNMENT for t in (first, second, third, fourth, fifth)]

    assert inside(body) == [0, 2, 5, 5, 2]


def test_a_small_scope_may_keep_its_bytes() -> None:
    """Until the scope around it is closed."""

    def body(sbm: SbufManager) -> list[int]:
        sbm.open_scope("a")
        for units in (2, 3):
            sbm.open_scope("b")
            tile(sbm, units)
            sbm.close_scope(keep=2 * ALIGNMENT)
        second = tile(sbm, 1)
        sbm.close_scope()
        return [offset(t) // ALIGNMENT for t in (second, tile(sbm, 1))]

    assert inside(body) == [2, 0]


def test_the_heap_grows_down_and_fills_gaps() -> None:
    def body(sbm: SbufManager) -> list[int]:
        a = tile(sbm, 2, "a", heap=True)
        b = tile(sbm, 3, "b", heap=True)
        c = tile(sbm, 1, "c", heap=True)
        sbm.free("b")
        d = tile(sbm, 2, "d", heap=True)
        e = tile(sbm, 2, "e", heap=True)
        f = tile(sbm, 1, "f", heap=True)
        return [offset(t) // ALIGNMENT for t in (a, b, c, d, e, f)]

    assert inside(body) == [14, 11, 10, 12, 8, 11]


def test_the_largest_use_is_remembered() -> None:
    def body(sbm: SbufManager) -> list[int]:
        marks = [sbm.high_water]
        sbm.open_scope("a")
        tile(sbm, 5)
        tile(sbm, 4, "h", heap=True)
        marks.append(sbm.high_water)
        sbm.close_scope()
        sbm.free("h")
        tile(sbm, 8)
        marks.append(sbm.high_water)
        tile(sbm, 3, "h", heap=True)
        marks.append(sbm.high_water)
        return [mark // ALIGNMENT for mark in marks]

    assert inside(body) == [0, 9, 9, 11]


@pytest.mark.parametrize("heap", [False, True])
def test_one_unit_too_much_is_refused(heap: bool) -> None:
    """The message names the tile, what was asked, what is left, and who holds the rest."""

    def body(sbm: SbufManager) -> str:
        sbm.open_scope("stage")
        tile(sbm, 6)
        tile(sbm, 5, "kept", heap=True)
        tile(sbm, 5, "fits", heap=heap)
        with pytest.raises(AssertionError) as caught:
            tile(sbm, 1, "too much", heap=heap)
        return str(caught.value)

    text = inside(body)
    for part in ("too much", f"{ALIGNMENT} bytes", "0 left", "scope stage", "heap: kept"):
        assert part in text


def test_a_gap_between_stack_and_heap_is_used_whole() -> None:
    def body(sbm: SbufManager) -> tuple[int, int]:
        tile(sbm, 4, "h", heap=True)
        return offset(tile(sbm, 12)), sbm.high_water

    assert inside(body) == (0, ROOM)


def test_tiles_start_at_multiples_wherever_the_room_does() -> None:
    def body() -> list[int]:
        sbm = SbufManager(100, 1000)
        return [offset(tile(sbm, 1)), offset(tile(sbm, 1, "h", heap=True))]

    assert execute(body) == [128, 896]


def test_rings() -> None:
    def body(sbm: SbufManager) -> tuple[list[str], list[int], list[str]]:
        stack = sbm.ring(2, (128, 16), nl.float32, "stack")
        heap = sbm.allocate_ring(3, (128, 16), nl.float32, "heap")
        tile(sbm, 1, "heaped", heap=True)
        names = [t.storage.allocation.name for t in stack + heap]
        places = [offset(t) // ALIGNMENT for t in stack + heap]
        sbm.free_ring("heap")
        return names, places, [name for _, _, name in sbm.heap]

    names, places, left = inside(body)
    assert names == ["stack.0", "stack.1", "heap.0", "heap.1", "heap.2"]
    assert places == [0, 1, 15, 14, 13]
    assert left == ["heaped"]


def test_mistakes_are_told() -> None:
    def body(sbm: SbufManager) -> None:
        with pytest.raises(AssertionError, match="no scope is open"):
            sbm.close_scope()
        tile(sbm, 1, "a", heap=True)
        sbm.free("a")
        with pytest.raises(AssertionError, match="no heap tile is named a"):
            sbm.free("a")

    inside(body)


def test_a_tile_must_not_be_read_after_its_scope() -> None:
    def body(sbm: SbufManager) -> None:
        sbm.open_scope("a")
        gone = tile(sbm, 1, "gone")
        nisa.memset(gone, 1.0)
        sbm.close_scope()
        nisa.memset(tile(sbm, 1, "taker"), 2.0)
        with pytest.raises(NkiHazardError, match=re.escape("gone")):
            nisa.tensor_copy(tile(sbm, 1, "other"), gone)

    inside(body)


def test_the_default_room_is_all_of_sbuf() -> None:
    def body() -> tuple[int, int, int]:
        sbm = SbufManager()
        return sbm.first, sbm.last, nl.tile_size.sbuf_fmax_bytes

    first, last, size = execute(body)
    assert (first, last) == (0, size)


def test_sizes() -> None:
    """Bytes of a row in one partition, in whole alignment units."""
    assert row_bytes((128, 16), nl.float32) == ALIGNMENT
    assert row_bytes((1, 17), nl.float32) == 2 * ALIGNMENT
    assert row_bytes((128, 3, 5), nl.bfloat16) == ALIGNMENT
    assert row_bytes((128, 65), nl.float8_e4m3) == 2 * ALIGNMENT
    for name in ("float32", "bfloat16", "float16", "float8_e4m3", "int32", "uint8", "int16"):
        dtype = getattr(nl, name)
        size = execute(lambda d=dtype: nl.ndarray((1, 4), d, buffer=nl.sbuf).itemsize)
        assert bytes_of(dtype) == size, name


def widest_gap(scopes: list[list[range]], heap: dict[str, range], anywhere: bool) -> int:
    """Free bytes in a row above the stack; `anywhere`: also between heap tiles."""
    top = max([place.stop for scope in scopes for place in scope], default=0)
    bounds = sorted(place.start for place in heap.values()) + [ROOM]
    starts = [top] + sorted(place.stop for place in heap.values())
    gaps = [end - start for start, end in zip(starts, bounds, strict=True)]
    return max(gaps) if anywhere else gaps[0]


STEPS = st.lists(
    st.tuples(st.sampled_from(["open", "close", "stack", "heap", "free"]), st.integers(1, 5)),
    max_size=40,
)


@settings(max_examples=60)
@given(STEPS)
def test_live_tiles_never_overlap(steps: list[tuple[str, int]]) -> None:
    """Against a model: a set of intervals, and a stack of how many tiles each scope has."""

    def body(sbm: SbufManager) -> None:
        scopes: list[list[range]] = [[]]
        heap: dict[str, range] = {}
        largest = 0
        for number, (step, units) in enumerate(steps):
            if step == "open":
                sbm.open_scope(str(number))
                scopes.append([])
            elif step == "close" and len(scopes) > 1:
                sbm.close_scope()
                scopes.pop()
            elif step == "free" and heap:
                name = list(heap)[units % len(heap)]
                sbm.free(name)
                del heap[name]
            elif step in ("stack", "heap"):
                try:
                    new = tile(sbm, units, str(number), heap=step == "heap")
                except AssertionError:
                    assert widest_gap(scopes, heap, step == "heap") < units * ALIGNMENT
                    continue
                place = range(offset(new), offset(new) + units * ALIGNMENT)
                if step == "heap":
                    heap[str(number)] = place
                else:
                    scopes[-1].append(place)
            live = [place for scope in scopes for place in scope] + list(heap.values())
            used = np.zeros(ROOM, int)
            for place in live:
                assert 0 <= place.start and place.stop <= ROOM
                used[place.start : place.stop] += 1
            assert used.max(initial=0) <= 1
            largest = max(largest, int(used.sum()))
        assert sbm.high_water == largest

    inside(body)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.data())
def test_room_is_refused_only_where_there_is_none(sizes: list[int], data: st.DataObject) -> None:
    """The heap takes any gap that is wide enough."""

    def body(sbm: SbufManager) -> None:
        for number, units in enumerate(sizes[:4]):
            tile(sbm, units, str(number), heap=True)
        gone = data.draw(st.integers(0, len(sizes[:4]) - 1))
        sbm.free(str(gone))
        place = ROOM - ALIGNMENT * sum(sizes[: gone + 1])
        assert offset(tile(sbm, sizes[gone], "again", heap=True)) == place

    inside(body)
