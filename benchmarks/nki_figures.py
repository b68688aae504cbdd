"""nkisim's modelled time beside the figures that AWS's documentation publishes for its matmul
tutorial and the kernel of its profiler page (float32, trn2), and, given a clone of aws-neuron-sdk,
for the Mamba tutorial (trn1). Run from the root of a checkout:

    PYTHONPATH=src:. python benchmarks/nki_figures.py [CLONE]

The matmul programs are written as records without data, instruction by instruction as the pages'
loops give them; Mamba is the clone's own file, unmodified. The published figures are those of the
pages' profiler screenshots.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np

import nkisim
from nkisim.report import Report
from tests.nkisim.scripts import Script

M, K, N = 4096, 8192, 8192


def version_2() -> Script:
    """Each product loads both of its operands."""
    s = Script("trn2")
    lhs, rhs, out = s.hbm((K, M)), s.hbm((K, N)), s.hbm((M, N), kind="output")
    for m in range(0, M, 128):
        for n in range(0, N, 512):
            psum = s.psum((128, 512))
            for k in range(0, K, 128):
                a, b = s.sbuf((128, 128)), s.sbuf((128, 512))
                s.dma(a, lhs[k : k + 128, m : m + 128])
                s.dma(b, rhs[k : k + 128, n : n + 512])
                s.matmul(psum, a, b)
            store(s, psum, out[m : m + 128, n : n + 512])
    return s


def version_3() -> Script:
    """A row of lhs tiles is loaded once; a column of rhs tiles for each of them."""
    s = Script("trn2")
    lhs, rhs, out = s.hbm((K, M)), s.hbm((K, N)), s.hbm((M, N), kind="output")
    for m in range(0, M, 128):
        row = [s.sbuf((128, 128)) for _ in range(0, K, 128)]
        for i, tile in enumerate(row):
            s.dma(tile, lhs[i * 128 : i * 128 + 128, m : m + 128])
        for n in range(0, N, 512):
            column = [s.sbuf((128, 512)) for _ in range(0, K, 128)]
            for i, tile in enumerate(column):
                s.dma(tile, rhs[i * 128 : i * 128 + 128, n : n + 512])
            psum = s.psum((128, 512))
            for a, b in zip(row, column, strict=True):
                s.matmul(psum, a, b)
            store(s, psum, out[m : m + 128, n : n + 512])
    return s


def store(s: Script, psum, out) -> None:  # type: ignore[no-untyped-def]
    tile = s.sbuf(psum.shape)
    s.copy(tile, psum)
    s.dma(out, tile)


def version_5(m_size: int, k_size: int, n_size: int) -> Script:
    """Blocked in m (2048), n (1024) and k (1024), summed in SBUF; the profiler page's kernel."""
    s = Script("trn2")
    lhs, rhs = s.hbm((k_size, m_size)), s.hbm((k_size, n_size))
    out = s.hbm((m_size, n_size), kind="output")
    for n in range(0, n_size, 1024):
        sums = {
            (m, half): s.sbuf((128, 512))
            for m in range(0, m_size, 128)
            for half in range(0, 1024, 512)
        }
        for tile in sums.values():
            s.memset(tile)
        for k in range(0, k_size, 1024):
            right = [s.sbuf((128, 1024)) for _ in range(8)]
            for i, tile in enumerate(right):
                s.dma(tile, rhs[k + i * 128 : k + i * 128 + 128, n : n + 1024])
            for block in range(0, m_size, 2048):
                left = [s.sbuf((128, 2048)) for _ in range(8)]
                for i, tile in enumerate(left):
                    s.dma(tile, lhs[k + i * 128 : k + i * 128 + 128, block : block + 2048])
                for half in range(0, 1024, 512):
                    for m in range(0, 2048, 128):
                        psum = s.psum((128, 512))
                        for a, b in zip(left, right, strict=True):
                            s.matmul(psum, a[:, m : m + 128], b[:, half : half + 512])
                        total = sums[block + m, half]
                        s.tensor_tensor(total, total, psum)
        for m in range(0, m_size, 128):
            row = s.sbuf((128, 1024))
            for half in range(0, 1024, 512):
                s.copy(row[:, half : half + 512], sums[m, half])
            s.dma(out[m : m + 128, n : n + 1024], row)
    return s


def line(name: str, published: str, report: Report) -> None:
    tensor = next(use.utilisation for use in report.engines if use.engine == "Tensor")
    print(
        f"{name:34} published {published:34} modelled {report.latency_us / 1000:7.3f} ms,"
        f" TensorE {tensor:6.1%}, DMA {report.dma_active[0]:6.1%}"
    )


def mamba(clone: Path) -> None:
    """Version 1: 256 channels, 512 steps, 16 states, random inputs."""
    nkisim.install(force=True)
    kernels = runpy.run_path(str(clone / "nki/examples/fused_mamba/mamba_nki_kernels.py"))
    rng = np.random.default_rng(0)
    shapes = ((1, 256, 512), (1, 256, 512), (256, 16), (1, 16, 512), (1, 16, 512))
    inputs = [rng.random(shape, dtype=np.float32) for shape in shapes]
    run = nkisim.run(kernels["mamba_v1"], *inputs, options_=nkisim.Options(target="trn1"))
    vector = next(use for use in run.report.engines if use.engine == "Vector")
    print(
        "Mamba version 1: published 172.93 us (155.7 us from the first DMA to the last store),"
        f" VectorE 149.0 us; modelled {run.report.latency_us:.1f} us,"
        f" VectorE {vector.busy_us:.1f} us"
    )


def main() -> None:
    if len(sys.argv) > 1:
        mamba(Path(sys.argv[1]))
    line("matmul version 2", "39.89 ms, TensorE 87.3%, DMA 99.9%", version_2().report())
    line("matmul version 3", "28.20 ms, TensorE 99.9%, DMA 99.7%", version_3().report())
    for layer, sizes, published in (
        (1, (2048, 2048, 2048), "0.881 ms of TensorE"),
        (2, (2048, 2048, 1024), "0.438 ms of TensorE"),
        (3, (2048, 1024, 1024), "0.219 ms of TensorE"),
    ):
        line(f"profiler page, layer {layer}", published, version_5(*sizes).report())


if __name__ == "__main__":
    main()
