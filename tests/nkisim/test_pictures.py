"""Pictures: drawn for all kinds of runs, right marks, a clear error without matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from nkisim import pictures
from tests.nkisim.scripts import Script
from tests.nkisim.test_report import tiled_matmul


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that the next calls save."""
    saved: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: saved.append(self))
    return saved


@pytest.mark.parametrize("kind", ["plot", "memory_map"])
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_pictures_are_written(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{ending}"
    getattr(tiled_matmul(256, 128, 512).report(), kind)(str(path))
    start = path.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if ending == "png" else b"<?xml" in start


def test_the_timeline_has_a_row_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = drawn(monkeypatch)
    report = tiled_matmul(256, 128, 512).report()
    report.plot("never written")
    (axes,) = saved[0].axes
    rows = [label.get_text().partition("\n")[0] for label in axes.get_yticklabels()]
    assert rows == ["Tensor", "Vector", "Sync", "DMA data"]
    assert axes.get_xlim()[1] == pytest.approx(report.latency_us)
    legend = {text.get_text() for text in saved[0].legends[0].get_texts()}
    assert legend == {"nc_matmul", "tensor_copy", "DMA trigger", "load", "store"}


def test_the_memory_map_shows_each_tensor_where_it_lay(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = drawn(monkeypatch)
    script = Script()
    tiles = [script.sbuf((128, 1024), name=f"tile{k}") for k in range(3)]
    total = script.psum((128, 512), name="total")
    for tile in (*tiles, total):
        script.memset(tile)
    script.tensor_tensor(total, tiles[0][:, 0:512], tiles[2][:, 0:512])
    report = script.report()
    report.memory_map("never written")
    sbuf, psum = saved[0].axes
    for panel, count in ((sbuf, 3), (psum, 1)):
        paths = panel.collections[0].get_paths()
        assert len(paths) == count
        lows = sorted(path.get_extents().y0 for path in paths)
        assert lows == pytest.approx([4.0 * k for k in range(count)])
    assert sbuf.get_ylim() == (0, 208)


def test_two_cores_have_panels_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = drawn(monkeypatch)
    script = Script(cores=2, checks="off")
    for core in script.program.cores:
        script.core = core
        script.memset(script.sbuf((128, 64)))
    report = script.report()
    report.memory_map("never written")
    report.plot("never written")
    assert len(saved[0].axes) == 2
    rows = [label.get_text() for label in saved[1].axes[0].get_yticklabels()]
    assert len(rows) == 2 and "core 1" in rows[1]


def test_many_instructions_are_drawn_as_few_pieces() -> None:
    pieces = [(k * 1.0, k + 0.9, "op") for k in range(10_000)]
    assert pictures._by_name(pieces, least=1.0)["op"] == [(0.0, pytest.approx(9999.9))]


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="need matplotlib"):
        tiled_matmul(128, 128, 512).report().plot("never written")


def test_the_tensors_that_take_most_have_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes and time, not by number; tiles of a ring ("ring.0", "ring.1") are one name."""
    saved = drawn(monkeypatch)
    script = Script()
    for k in range(2):
        script.memset(script.sbuf((128, 4096), name=f"ring.{k}"))
    for k in range(pictures._MOST_NAMES):
        for _ in range(3):
            script.memset(script.sbuf((128, 8), name=f"small{chr(97 + k)}"))
    script.report().memory_map("never written")
    legend = [text.get_text() for text in saved[0].legends[0].get_texts()]
    assert legend[0] == "ring"
    assert len(legend) == pictures._MOST_NAMES + 1 and legend[-1] == "others"
