"""The report: traffic and use by hand, the critical path, published totals, the table, speed."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim.enums import SBUF
from nkisim.errors import NkiHazardError, NkiValidationError
from nkisim.kernel import jit, run
from nkisim.program import Options
from nkisim.report import Report
from tests.nkisim.scripts import Script

FLOAT = 4


def tiled_matmul(k: int, m: int, n: int) -> Script:
    """The tutorial's first tiled kernel (KOPT v2): both tiles loaded before each multiply."""
    script = Script()
    lhs, rhs = script.hbm((k, m), name="lhs"), script.hbm((k, n), name="rhs")
    out = script.hbm((m, n), name="out", kind="output")
    for row in range(0, m, 128):
        for column in range(0, n, 512):
            total = script.psum((128, 512))
            for depth in range(0, k, 128):
                a, b = script.sbuf((128, 128)), script.sbuf((128, 512))
                script.dma(a, lhs[depth : depth + 128, row : row + 128])
                script.dma(b, rhs[depth : depth + 128, column : column + 512])
                script.matmul(total, a, b)
            result = script.sbuf((128, 512))
            script.copy(result, total)
            script.dma(out[row : row + 128, column : column + 512], result)
    return script


def test_traffic_of_a_matmul() -> None:
    k, m, n = 256, 384, 1024
    report = tiled_matmul(k, m, n).report()
    by_name = {tensor.allocation.name: tensor for tensor in report.tensors}
    assert by_name["lhs"].read_bytes == k * m * FLOAT * (n // 512)
    assert by_name["rhs"].read_bytes == k * n * FLOAT * (m // 128)
    assert by_name["out"].written_bytes == m * n * FLOAT
    assert by_name["lhs"].least_read_bytes == k * m * FLOAT
    assert report.least_bytes == (k * m + k * n + m * n) * FLOAT
    assert report.dma_bytes == report.hbm_read_bytes + report.hbm_written_bytes
    assert report.flops == 2 * k * m * n
    assert report.mfu == pytest.approx(report.flops / 78.6e12 / (report.latency_us * 1e-6))
    assert report.instructions["nc_matmul"] == (k // 128) * (m // 128) * (n // 512)


def test_least_bytes_count_what_was_touched() -> None:
    """Overlapping and strided reads count each byte once, what nobody reads not at all."""
    script = Script()
    source = script.hbm((256, 1024), "bfloat16")
    tile = script.sbuf((128, 1024), "bfloat16")
    script.dma(tile, source[0:128])
    script.dma(tile[:, 0:512], source[64:192, 0:512])
    script.dma(tile[:, 0:256], source[128:256, 512:1024:2])
    (found,) = script.report().tensors
    seen = np.zeros((256, 1024), bool)
    seen[0:128] = True
    seen[64:192, 0:512] = True
    seen[128:256, 512:1024:2] = True
    assert found.least_read_bytes == seen.sum() * 2
    assert found.read_bytes == 128 * (1024 + 512 + 256) * 2


def test_a_gather_moves_its_rows_only() -> None:
    script = Script()
    table, tile = script.hbm((4096, 64)), script.sbuf((128, 64))
    script.dma(tile, table, indirect="vector", rows=128)
    (found,) = script.report().tensors
    assert found.read_bytes == found.least_read_bytes == 128 * 64 * FLOAT


def test_use_and_mbu() -> None:
    script = Script()
    source = script.hbm((128, 8192))
    for _ in range(10):
        script.dma(script.sbuf((128, 4096)), source[:, 0:4096])
    report = script.report()
    (sync,) = report.engines
    assert (sync.core, sync.engine, sync.instructions) == (0, "Sync", 10)
    assert sync.busy_us == pytest.approx(10 * 0.6)
    assert sync.utilisation == pytest.approx(sync.busy_us / report.latency_us)
    moved = 10 * 128 * 4096 * FLOAT
    assert report.mbu == pytest.approx(moved / (report.latency_us * 1000) / 716)
    assert report.dma_active == [pytest.approx(1.0)]
    assert report.bound == "DMA data"


def test_critical_path_is_without_gaps() -> None:
    report = tiled_matmul(256, 256, 1024).report()
    steps = report.critical_path
    assert steps[0].start_ns == 0 and steps[-1].end_ns == report.latency_us * 1000
    for first, second in pairwise(steps):
        assert first.end_ns == pytest.approx(second.start_ns)
    assert sum(report.bounds.values()) == pytest.approx(1.0)
    assert steps[-1].record.op == "dma_copy"


@pytest.mark.parametrize(
    ("engine", "bound"), [("vector", "Vector"), ("scalar", "Scalar"), ("tensor", "Tensor")]
)
def test_what_bounds(engine: str, bound: str) -> None:
    script = Script()
    a, b, total = script.sbuf((128, 128)), script.sbuf((128, 512)), script.psum((128, 512))
    script.memset(a)
    script.memset(b)
    for _ in range(50):
        if engine == "vector":
            script.tensor_tensor(b, b, b)
        elif engine == "scalar":
            script.activation(b, b)
        else:
            script.matmul(total, a, b)
    assert script.report().bound == bound


# -- published totals (figures read from the tutorials' profiles) ---------------------------------


def test_tiled_matmul_of_the_tutorial() -> None:
    """KOPT v2 at 4096 x 8192 x 8192: 39.89 ms, Tensor 87.28 %, DMA 99.93 %. Here 1/32 of its rows,
    a whole row of tiles: the loop is the same 32 times over, but for 3 us at the start and end."""
    report = tiled_matmul(8192, 128, 8192).report()
    assert report.latency_us * 32 / 1000 == pytest.approx(39.89, rel=0.15)
    (tensor,) = (use for use in report.engines if use.engine == "Tensor")
    assert tensor.utilisation == pytest.approx(0.8728, rel=0.15)
    assert report.dma_active[0] == pytest.approx(0.9993, rel=0.15)
    assert report.mbu == pytest.approx(0.3806, rel=0.15)


def test_mamba_of_the_tutorial() -> None:
    """MAMBA v1 on trn1: Vector is busy for 148.99 us; first DMA to last store takes 155.7 us of the
    172.93 us that include a launch (read from the profile). Its instructions, without data."""
    script = Script("trn1")
    delta, u = script.hbm((256, 512)), script.hbm((256, 512))
    parameters, b, c = script.hbm((256, 16)), script.hbm((16, 512)), script.hbm((16, 512))
    ones = script.sbuf((1, 128))
    script.memset(ones)
    out = script.hbm((256, 512), kind="output")
    for first in (0, 128):
        rows = slice(first, first + 128)
        total = script.sbuf((128, 512))
        script.memset(total)
        for state in range(16):
            tiles = [script.sbuf((128, 512)) for _ in range(8)]
            d, w, da, du, dbu, scanned, result, spread = tiles
            scale = script.sbuf((128, 1))
            script.dma(d, delta[rows])
            script.dma(scale, parameters[rows, state : state + 1])
            script.activation(da, d, scale)
            script.dma(w, u[rows])
            script.tensor_tensor(du, d, w)
            for vector, target, other in ((b, dbu, du), (c, result, scanned)):
                line = script.sbuf((1, 512))
                script.dma(line, vector[state : state + 1])
                broadcast = script.psum((128, 512))
                script.matmul(broadcast, ones, line)
                script.activation(spread, broadcast, op="copy")
                if vector is c:
                    script.core.issue(
                        "tensor_tensor_scan", nisa.engine.vector, (da, dbu), (scanned,), None
                    )
                script.tensor_tensor(target, other, spread)
            script.tensor_tensor(total, total, result)
        script.dma(out[rows], total)
    report = script.report()
    (vector_use,) = (use for use in report.engines if use.engine == "Vector")
    assert vector_use.busy_us == pytest.approx(148.99, rel=0.15)
    assert report.latency_us == pytest.approx(155.7, rel=0.15)
    assert report.latency_us == pytest.approx(172.93, rel=0.15)


# -- through the front door ------------------------------------------------------------------------


@jit
def doubled(x):  # type: ignore[no-untyped-def]
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm, name="out")
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf, name="tile")
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_tensor(tile, tile, tile, nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out


def test_the_table_of_a_kernel() -> None:
    report = run(doubled, np.ones((128, 64), np.float32)).report
    text = str(report)
    assert max(map(len, text.splitlines())) <= 100
    for word in ("doubled on trn2", "modelled latency", "Vector", "Sync", "x ", "out", "sbuf",
                 "findings: none", "test_report.py:"):  # fmt: skip
        assert word in text
    assert report.high_water(SBUF) == 64 * FLOAT
    assert report.tensors[0].allocation.name in ("x", "out")
    # Load, add, store, each after the other.
    assert [step.record.op for step in report.critical_path][0] == "dma_copy"
    assert {"dma_copy", "tensor_tensor"} == set(report.instructions)


def test_unobserved_and_unchecked_runs() -> None:
    x = np.ones((128, 64), np.float32)
    quiet = run(doubled, x, options_=Options(observe=False)).report
    assert np.isnan(quiet.latency_us) and "not observed" in str(quiet)
    loose = run(doubled, x, options_=Options(checks="off")).report
    assert loose.latency_us > 0 and "checks are off" in str(loose)


def test_an_empty_kernel() -> None:
    report = run(lambda: None).report
    assert report.latency_us == 0 and report.bound == "nothing" and report.mbu == 0
    assert "findings: none" in str(report)


def test_overflow_is_raised_with_the_kernels_lines() -> None:
    def kernel(x):  # type: ignore[no-untyped-def]
        tiles = []
        for _ in range(3):
            tiles.append(nl.ndarray((128, 100, 250), dtype=nl.float32, buffer=nl.sbuf, name="big"))
            nisa.memset(tiles[-1], 0)
        nisa.tensor_tensor(tiles[0], tiles[1], tiles[2], nl.add)

    x = np.ones((128, 4), np.float32)
    with pytest.raises(NkiValidationError, match=r"300000 bytes(.|\n)*test_report\.py:\d+"):
        run(kernel, x)
    run(kernel, x, options_=Options(checks="off"))


def test_findings_are_shown() -> None:
    def kernel(x):  # type: ignore[no-untyped-def]
        tile = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)
        out = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=tile)
        return out

    x = np.ones((128, 64), np.float32)
    with pytest.raises(NkiHazardError):
        run(kernel, x)
    report = run(kernel, x, options_=Options(checks="report")).report
    assert report.findings and "finding: uninitialised read" in str(report)
    assert max(map(len, str(report).splitlines())) <= 100


def test_the_passes_are_fast() -> None:
    """25 us an instruction on a free machine; ten times that says that something is not linear."""
    script = tiled_matmul(4096, 128, 8192)
    count = len(script.core.records or ())
    start = time.process_time()
    report = Report.of(script.program)
    assert report.latency_us > 0
    assert (time.process_time() - start) / count < 250e-6
