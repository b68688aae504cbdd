"""The rotation really exceeds the processor's cache, and every copy in it is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.bench.conftest import CACHE_BYTES
from tkg.bench import inputs, rotation
from tkg.bench.peers import Setup
from tkg.bench.peers.ours import Ours
from tkg.bench.peers.torch_eager import Torch, block
from tkg.bench.rotation import copies, free_memory, last_level_cache
from tkg.bench.workloads import Row


@pytest.mark.parametrize("size", [1, 999, 10**6, 2 * 10**6, 2 * 10**6 + 1, 10**9])
def test_the_copies_exceed_the_cache_many_times(size: int) -> None:
    number = copies(size, 10**6)
    assert number * size > 8 * 10**6
    assert number == 1 or (number - 1) * size <= 8 * 10**6


def test_an_unknown_cache_is_taken_for_a_large_one() -> None:
    assert copies(2**20, None) * 2**20 > 8 * 64 * 2**20


def test_the_last_level_is_the_largest_cache(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "32K", "2048K", "105M")):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "size").write_text(f"{size}\n")
    assert last_level_cache(tmp_path) == 105 * 2**20
    assert last_level_cache(tmp_path / "nothing") is None


def test_free_memory_is_a_sensible_number() -> None:
    assert 2**20 < free_memory() < 2**50


def setup(row: Row) -> Setup:
    call = inputs.distinct(row)
    return Setup(call, copies(inputs.big_bytes(call), rotation.last_level_cache()), 1)


def test_ours_rotates_through_more_than_the_cache() -> None:
    made = setup(Row("tiny", context=64))
    ours = Ours(made)
    arrays = []
    for layer, cache in ours._sets:
        panels = [a for a in layer.block.prepared.arrays if a.dtype == np.uint8]
        assert len(panels) == 2
        arrays += [*panels, cache.k.source, cache.v.source]
    assert len(ours._sets) == made.copies > 1
    spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert sum(end - start for start, end in spans) > 8 * CACHE_BYTES


def test_every_copy_is_used_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    made = setup(Row("tiny", context=64))
    used: list[int] = []
    ours = Ours(made)
    monkeypatch.setattr(ours, "_step", lambda layer, cache: used.append(id(layer)))
    for _ in range(2 * made.copies):
        ours.run()
    assert len(set(used)) == made.copies
    assert used[: made.copies] == used[made.copies :]


def test_a_peer_has_memory_of_its_own() -> None:
    call = inputs.plain(inputs.distinct(Row("tiny", context=64)), "bfloat16")
    peer = Torch(Setup(call, 3, 1), block)
    places = {t.data_ptr() for layer in peer._layers for t in layer}
    assert len(places) == 3 * 4
    assert not places & {np.asarray(call[name]).ctypes.data for name in inputs.BIG}
