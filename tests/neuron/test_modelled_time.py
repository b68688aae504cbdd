"""Modelled times beside their bounds: what the order of the work was chosen for."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from nkisim.chips import TRN2
from tkg.backends.neuron.output_columns import column_chunks
from tkg.cli import profile_figures
from tkg.cli.profile_figures import Figures, figures
from tkg.cli.profile_run import LAYERS, Profiled, Shape, run_shape

TIMES = 1.3  # of the larger bound


@cache
def profiled(layer: str, dtype: str, cache: str, batch: int, context: int, lnc: int) -> Profiled:
    named = replace(LAYERS[layer], name=layer)
    shape = Shape(named, dtype, batch, context, cache=cache)  # pyright: ignore
    return run_shape(shape, lnc, check=False)


def found(layer: str, dtype: str, cache: str, batch: int, context: int, lnc: int = 1) -> Figures:
    run = profiled(layer, dtype, cache, batch, context, lnc)
    return figures(run.call, run.report)


SHORT = [
    ("llama3-70b-tp64", "bf16", "flat", 1, 1024),
    ("llama3-70b-tp64", "bf16", "flat", 4, 1024),
    ("llama3-8b-tp8", "bf16", "flat", 1, 1024),
    ("gpt-oss-tp8-padded", "bf16", "flat", 1, 1024),
    ("gpt-oss-tp8-padded", "bf16", "flat", 1, 8192),
    ("gpt-oss-tp8-padded", "bf16", "block", 4, 1024),
    ("gpt-oss-tp8-padded", "bf16", "block", 16, 1024),
    ("llama3-8b-tp8", "fp8", "block", 1, 8192),
    ("llama3-8b-tp8", "fp8", "flat", 16, 1024),
    ("gpt-oss-tp8-padded", "bf16", "flat", 16, 1024),
    ("llama3-8b-tp8", "fp8", "block", 4, 8192),
]


@pytest.mark.parametrize("shape", SHORT, ids=str)
def test_a_short_call_is_near_its_bound(shape: tuple[str, str, str, int, int]) -> None:
    result = found(*shape)
    assert result.ratio <= TIMES
    assert result.total.times <= 1.02


@pytest.mark.parametrize(
    "shape",
    [
        ("llama3-70b-tp8", "fp8", "transposed", 1, 8192),
        ("llama3-8b-tp8", "bf16", "block", 4, 8192),
        ("llama3-8b-tp8", "fp8", "block", 4, 8192),
    ],
    ids=str,
)
def test_two_cores_are_faster(shape: tuple[str, str, str, int, int]) -> None:
    assert found(*shape).modelled >= 1.7 * found(*shape, lnc=2).modelled


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("cache, batch", [("flat", 1), ("block", 4), ("transposed", 16)])
@pytest.mark.parametrize("formats", ["bf16", "fp8"])
@pytest.mark.parametrize("layer", ["llama3-70b-tp64", "gpt-oss-tp8-padded"])
def test_the_bound_with_latencies(
    layer: str, formats: str, cache: str, batch: int, lnc: int
) -> None:
    """Above the DMA bound where a call is short, and never above what was modelled."""
    result = found(layer, formats, cache, batch, 1024, lnc)
    assert result.dma_bound < result.latency_bound < result.modelled


def test_what_the_last_multiply_waits_for() -> None:
    """All that is read but the sink, the projection's bias and scale, and where new tokens go; of
    the caches not what is written."""
    call = profiled("gpt-oss-tp8-padded", "fp8", "flat", 1, 1024, 1).call
    waits = profile_figures.latency_bound(call, TRN2, 1.0)
    waits -= profile_figures.latency_bound(call, TRN2, float("inf"))
    least = profile_figures.least_bytes(call)
    late = ("sink", "bias_out", "weight_dequant_scale_out", "kv_cache_update_idx", "out")
    new = 2 * 64  # K and V of one token, a byte an element
    assert waits == pytest.approx(sum(least.values()) - sum(least[x] for x in late) - new)


def test_the_latencies_are_the_chips() -> None:
    """Of a call that multiplies nothing: a transfer's start and end, twice, a multiply, a copy."""
    run = profiled("gpt-oss-tp8-padded", "bf16", "flat", 1, 1024, 1)
    bound = profile_figures.latency_bound(run.call, TRN2, float("inf"))
    multiply, copy = 144 + 64 / 2.4 + 170, 64 / 0.96 + 165
    assert bound == pytest.approx((2 * (1000 + 300) + multiply + copy + 7 + 2 * 20) / 1000)


def test_work_for_the_clock_counts_for_no_bound() -> None:
    """The tensor engine is held for longer than what its bound says, by those multiplies."""
    run = profiled("llama3-70b-tp64", "fp8", "flat", 4, 1024, 1)
    timeline = run.report.timeline
    spent = sum(
        held - start
        for record, start, held in zip(timeline.records, timeline.start, timeline.held, strict=True)
        if record.writes and record.writes[0].allocation.name == "clock"
    )
    busy = {use.engine: use.busy_us for use in run.report.engines}
    engine, bound = profile_figures.busiest_engine(run.report)
    assert engine == "Tensor"
    assert spent > 0
    assert bound == pytest.approx(busy["Tensor"] - spent / 1000)


def test_nobody_reads_what_the_clocks_work_writes() -> None:
    run = profiled("llama3-8b-tp8", "bf16", "flat", 1, 1024, 1)
    for record in run.report.timeline.records:
        assert all(access.allocation.name != "clock" for access in record.reads)


@pytest.mark.parametrize(
    "rows, share, chunks",
    [(1, 8192, 4), (1, 4096, 4), (1, 3072, 3), (1, 128, 1), (16, 4096, 2), (17, 8192, 1)],
)
def test_chunks_of_columns(rows: int, share: int, chunks: int) -> None:
    """They divide the columns, and their pieces of a row stay long."""
    assert column_chunks(rows, share) == chunks
    assert share % (128 * chunks) == 0
