"""What others took of the processors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tkg.bench import noise
from tkg.bench.noise import Noise


def at(monkeypatch: pytest.MonkeyPatch, path: Path, ticks: list[int], own: float) -> None:
    """The system's counters (user nice system idle iowait irq softirq steal) and our own time."""
    path.write_text("cpu  " + " ".join(map(str, ticks)) + " 0 0\ncpu0 1 2 3\n")
    monkeypatch.setattr(noise, "STAT", path)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(os, "times", lambda: os.times_result((own, 0.0, 0.0, 0.0, 0.0)))


def test_the_share_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """10 s on two processors: we 8 s, another process 3 s, the host 1 s, 8 s idle or waiting."""
    at(monkeypatch, tmp_path / "stat", [1000, 0, 100, 5000, 50, 0, 0, 7], own=4.0)
    counted = Noise()
    at(monkeypatch, tmp_path / "stat", [1900, 100, 200, 5700, 150, 0, 0, 107], own=12.0)
    assert counted.others() == pytest.approx((3 + 1) / 20)


def test_a_quiet_machine_and_an_unknown_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at(monkeypatch, tmp_path / "stat", [0] * 8, own=0.0)
    counted = Noise()
    at(monkeypatch, tmp_path / "stat", [100, 0, 0, 100, 0, 0, 0, 0], own=1.01)  # ticks are coarse
    assert counted.others() == 0.0
    monkeypatch.setattr(noise, "STAT", tmp_path / "nowhere")
    assert Noise().others() is None
