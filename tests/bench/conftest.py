"""A tiny workload, a tiny processor cache and fixed ceilings: a row takes milliseconds."""

from __future__ import annotations

import pytest

from tkg import machine
from tkg.bench import rotation, workloads
from tkg.machine import Ceilings
from tkg.testing.case import Case

TINY = {
    "tiny": Case(name="tiny", hidden=64, q_heads=4, kv_heads=2, d_head=16),
    "tiny-norm": Case(name="tiny-norm", hidden=96, q_heads=6, kv_heads=2, d_head=16, pre_norm=1e-6),
    "tiny-one-head": Case(name="tiny-one-head", hidden=64, q_heads=4, kv_heads=1, d_head=16),
    "tiny-sink": Case(
        name="tiny-sink",
        hidden=80,
        q_heads=4,
        kv_heads=1,
        d_head=16,
        sink=True,
        bias_qkv=True,
        bias_out=True,
    ),
}

CACHE_BYTES = 100_000
CEILINGS = Ceilings(bytes_per_second=20e9, flops_per_second=300e9)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny layers as workloads, on a machine with a small last-level cache and slow memory."""
    for name, case in TINY.items():
        monkeypatch.setitem(workloads.WORKLOADS, name, case)
    monkeypatch.setattr(rotation, "last_level_cache", lambda: CACHE_BYTES)
    monkeypatch.setattr(machine, "read_bandwidth_now", lambda: CEILINGS.bytes_per_second)
