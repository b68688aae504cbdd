"""nkisim's modelled time beside the figures that AWS's documentation publishes for its matmul
tutorial and the kernel of its profiler page (float32, trn2). Run from the root of a checkout:

    PYTHONPATH=src:. python benchmarks/nki_figures.py

The programs are written as records without data, instruction by instruction as the pages' loops
give them; the published figures are those of the pages' profiler screenshots. Mamba's are printed
by benchmarks/nki_published.py, which runs the documentation's own file.
"""

from __future__ import annotations

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


def main() -> None:
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
