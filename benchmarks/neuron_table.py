"""Modelled times of the neuron backend beside their bounds, as Markdown.

    python benchmarks/neuron_table.py [WORD ...]

One row a shape: the time on nkisim, the DMA bound (the least HBM bytes at the full rate of the DMA
engines), the same with the latencies that no order hides, the busiest engine's own time, the time
in units of the DMA bound or the engine's, and HBM bytes moved in units of the least. Each shape is
compared with float64 first, over a context as long as takes a moment; exit status 1 if an answer is
wrong. With words, only the shapes whose description has one of them, as `llama3-8b-tp8` or
`S_ctx=1024`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace

from tkg.cli.profile_figures import figures
from tkg.cli.profile_run import LAYERS, Shape, run_shape
from tkg.contract.errors import Unsupported

RANKS = (
    "llama3-70b-tp64",
    "llama3-70b-tp8",
    "llama3-8b-tp8",
    "qwen3-235b-tp4",
    "gpt-oss-tp8-padded",
)
BATCHES = (1, 4, 16)
CONTEXTS = (1024, 8192, 32768)
MOST_COLUMNS = 128  # B * q_heads of a row of the first table
SCORES = 2**14  # of the comparison with float64

Row = tuple[Shape, int]  # and the cores


def by_layer() -> Iterator[Row]:
    """Every rank, batch and context: a flat bfloat16 cache, one core."""
    for name, batch, context in itertools.product(RANKS, BATCHES, CONTEXTS):
        layer = replace(LAYERS[name], name=name)
        if batch * layer.q_heads <= MOST_COLUMNS:
            yield Shape(layer, batch=batch, context=context), 1


def by_format() -> Iterator[Row]:
    """Every rank and batch, contexts that are not long: FP8, and pages; one core."""
    for (dtype, cache), name, batch, context in itertools.product(
        (("fp8", "flat"), ("bf16", "block"), ("fp8", "block")), RANKS, BATCHES, CONTEXTS[:2]
    ):
        layer = replace(LAYERS[name], name=name)
        if batch * layer.q_heads <= MOST_COLUMNS:
            yield Shape(layer, dtype, batch, context, cache=cache), 1  # pyright: ignore


def by_cache() -> Iterator[Row]:
    """One rank on one and two cores: every layout, bfloat16 and FP8."""
    layer = replace(LAYERS["llama3-70b-tp8"], name="llama3-70b-tp8")
    for cache, dtype, context, lnc in itertools.product(
        ("flat", "transposed", "block"), ("bf16", "fp8"), CONTEXTS[1:], (1, 2)
    ):
        yield Shape(layer, dtype, context=context, cache=cache), lnc  # pyright: ignore


def by_batch() -> Iterator[Row]:
    """Block caches and batches on one and two cores, and the longest context."""
    layer = replace(LAYERS["llama3-8b-tp8"], name="llama3-8b-tp8")
    for dtype, batch, lnc in itertools.product(("bf16", "fp8"), BATCHES, (1, 2)):
        yield Shape(layer, dtype, batch, cache="block"), lnc
    for lnc in (1, 2):
        yield Shape(replace(LAYERS["llama3-70b-tp8"], name="llama3-70b-tp8"), context=131072), lnc


@functools.cache
def check(shape: Shape, lnc: int) -> None:
    """Compare the answer with float64, once for the contexts that are checked at the same one."""
    checks = run_shape(shape, lnc).checks
    assert all(check.ok for check in checks), f"{shape} on {lnc} cores: {checks}"


def cells(row: Row) -> list[str]:
    """The figures of a row.

    Raises:
        Unsupported: the kernels cannot run it.
        AssertionError: the answer is wrong.
    """
    shape, lnc = row
    check(shape.checkable(SCORES), lnc)
    profiled = run_shape(shape, lnc, check=False)
    found = figures(profiled.call, profiled.report)
    return [
        f"{found.modelled:,.1f}",
        f"{found.dma_bound:,.1f}",
        f"{found.latency_bound:,.1f}",
        f"{found.engine_bound:,.1f} {found.engine}",
        f"{found.ratio:.2f}",
        f"{found.modelled / found.dma_bound:.2f}",
        f"{found.total.times:.3f}",
    ]


def table(title: str, rows: list[Row]) -> None:
    """Print one table as its rows are known."""
    print(f"**{title}**\n")
    headings = "layer|formats|cache|B|S_ctx|cores|modelled us|DMA bound us|with latencies us"
    headings += "|busiest engine us"
    headings += "|time / bound|time / DMA bound|bytes / least"
    print(f"| {headings.replace('|', ' | ')} |")
    print("|---|---|---" + "|---:" * 6 + "|---" + "|---:" * 3 + "|")
    for row in rows:
        shape, lnc = row
        size = [shape.layer.name, shape.dtype, shape.cache, shape.batch, shape.context, lnc]
        try:
            found = cells(row)
        except Unsupported as error:
            found = ["; ".join(error.reasons.get("neuron", [])), *[""] * 6]
        print(f"| {' | '.join([*map(str, size), *found])} |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description="Modelled times of the neuron backend.")
    parser.add_argument("words", nargs="*", help="only shapes whose description has one of these")
    words = parser.parse_args().words
    for title, rows in (
        ("One core, flat bfloat16 cache", by_layer()),
        ("One core, FP8 and pages of 32", by_format()),
        ("Layouts, FP8 and two cores (LNC=2)", by_cache()),
        ("Batches on a block cache (pages of 32), and the longest context", by_batch()),
    ):
        chosen = [row for row in rows if not words or any(word in str(row[0]) for word in words)]
        if chosen:
            table(title, chosen)


if __name__ == "__main__":
    try:
        main()
    except AssertionError as error:
        sys.exit(f"wrong answer: {error}")
