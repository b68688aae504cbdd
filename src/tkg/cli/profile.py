"""`tkg profile`: a call on simulated NeuronCores, its modelled time beside its bounds."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from nkisim.enums import PSUM, SBUF
from nkisim.report import Report
from tkg.backends.neuron.launch import simulated
from tkg.cli.profile_figures import Figures, Traffic, figures
from tkg.cli.profile_run import LAYERS, Profiled, Shape, run_case, run_shape
from tkg.contract.errors import Unsupported
from tkg.testing.case import Case
from tkg.testing.cases import find

WORKLOAD = "llama3-8b-tp8"
SHAPE = ("workload", "batch", "context", "s_tkg", "cache", "block_len", "dtype")
WIDTH = 100


def profile(
    context_: typer.Context,
    workload: Annotated[
        str | None, typer.Option(help=f"The layer of a shape; default: {WORKLOAD}.")
    ] = None,
    case: Annotated[str | None, typer.Option(help="A case of `tkg verify` instead.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows, B.")] = 1,
    context: Annotated[int, typer.Option(min=2, help="S_ctx, new tokens included.")] = 8192,
    s_tkg: Annotated[int, typer.Option(min=1, help="New tokens a row.")] = 1,
    cache: Annotated[
        Literal["flat", "transposed", "block"], typer.Option(help="Layout of the KV cache.")
    ] = "flat",
    block_len: Annotated[int, typer.Option(min=1, help="Slots a page of a block cache.")] = 32,
    dtype: Annotated[
        str, typer.Option(help="bf16, fp8 (weights and cache), bf16-kv8, or one of tkg bench.")
    ] = "bf16",
    lnc: Annotated[int | None, typer.Option(min=1, max=2, help="Cores of the device.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write a trace for ui.perfetto.dev.")] = None,
    timeline: Annotated[Path | None, typer.Option(help="Draw the engines: PNG or SVG.")] = None,
    memory_map: Annotated[Path | None, typer.Option(help="Draw SBUF and PSUM.")] = None,
    full: Annotated[bool, typer.Option("--full", help="The simulator's own report too.")] = False,
) -> None:
    """Run the neuron backend on nkisim; print modelled times, bounds, traffic and memory.

    The answer is compared with float64 first: if it is wrong nothing is printed, and the exit
    code is 1. Times are modelled and bytes counted; nothing is measured on hardware.
    """
    _check_request(_shape_options(context_) if case else [], bool(timeline or memory_map))
    console = Console(width=WIDTH, highlight=False)
    try:
        if case is not None:
            what, profiled, checked = case, run_case(find(case), lnc), ""
        else:
            shape = Shape(
                _layer(workload or WORKLOAD), dtype, batch, context, s_tkg, cache, block_len
            )
            what = str(shape)
            profiled, checked = _run(shape, lnc or 1)
    except (ValueError, TypeError, Unsupported) as error:
        _refuse(str(error))
    cores = len(profiled.report.program.cores)
    console.print(f"{what}, {cores} core{'s' if cores > 1 else ''}", style="bold", markup=False)
    _judge(console, profiled, checked)
    _show(console, figures(profiled.call, profiled.report), profiled.report)
    if full:
        print(f"\n{profiled.report}")
    _write(console, profiled.report, trace, timeline, memory_map)


def _shape_options(context: typer.Context) -> list[str]:
    """The options of a shape that were given."""
    return [
        f"--{name.replace('_', '-')}"
        for name in SHAPE
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]


def _check_request(too_many: list[str], drawing: bool) -> None:
    if too_many:
        _refuse(f"--case has its own shape; leave out {', '.join(too_many)}")
    if drawing and importlib.util.find_spec("matplotlib") is None:
        _refuse("the pictures need matplotlib: pip install 'tkg[bench]'; --trace needs nothing")
    if not simulated():
        _refuse("AWS's NKI is installed here; the profile is that of the simulator nkisim")


def _refuse(reason: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"tkg profile: {reason}", markup=False)
    raise typer.Exit(2) from None


def _layer(name: str) -> Case:
    if name not in LAYERS:
        raise ValueError(f"workload must be one of {', '.join(LAYERS)}; got {name!r}")
    return replace(LAYERS[name], name=name)


def _run(shape: Shape, lnc: int) -> tuple[Profiled, str]:
    """The run of a shape with the checks of it, or of a shorter one, and the words for which."""
    short = shape.checkable()
    if short == shape:
        return run_shape(shape, lnc), ""
    checks = run_shape(short, lnc).checks
    profiled = run_shape(shape, lnc, check=False)
    where = f", checked at S_ctx={short.context}: float64 would take long at S_ctx={shape.context}"
    return Profiled(profiled.call, profiled.report, checks), where


def _judge(console: Console, profiled: Profiled, checked: str) -> None:
    """Say that the answer is right, or leave with exit code 1."""
    worst = max(profiled.checks, key=lambda check: check.used)
    text = f"{worst.what} used {worst.used:.0%} of its error budget{checked}"
    if not profiled.right:
        console.print(f"answer: WRONG: {text}", style="red")
        raise typer.Exit(1)
    console.print(f"answer: right ({text})\n")


def _show(console: Console, found: Figures, report: Report) -> None:
    shares = ", ".join(f"{what} {share:.0%}" for what, share in list(report.bounds.items())[:3])
    table = _table("modelled", "us", "")
    table.add_row("time", f"{found.modelled:,.1f}", f"critical path: {shares}")
    rate = found.bytes_per_us / 1000
    moved = f"{found.total.least / 1e6:,.2f} MB, each byte once, at {rate:,.0f} GB/s"
    table.add_row("DMA bound", f"{found.dma_bound:,.1f}", moved)
    after = "and what comes before the first byte and after the last"
    table.add_row("with latencies", f"{found.latency_bound:,.1f}", after)
    busy = f"{found.engine}: the time that its instructions hold it"
    table.add_row("busiest engine", f"{found.engine_bound:,.1f}", busy)
    table.add_row("time / bound", f"{found.ratio:.2f}", "the larger of the two bounds")
    for part in (table, _engines(report), _traffic(found), _memory(report)):
        console.print(part)
        console.print()
    console.print(
        "Times are modelled by nkisim from AWS's public numbers, bytes are counted; nothing here"
        " was measured on a device."
    )


def _table(*headings: str) -> Table:
    """Columns of text, name, number, number, ..., without lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title_justify="left")
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="right" if at and heading else "left", no_wrap=at == 0)
    return table


def _engines(report: Report) -> Table:
    table = _table("engine", "instructions", "busy us, modelled", "use", "")
    several = len(report.program.cores) > 1
    for core, moving in enumerate(report.dma_busy):
        rows = [
            (use.engine, f"{use.instructions:,}", use.busy_us, use.utilisation)
            for use in report.engines
            if use.core == core
        ]
        rows.append(("DMA data", "", moving * report.latency_us, moving))
        for engine, count, busy, share in rows:
            name = f"{engine} (core {core})" if several else engine
            table.add_row(name, count, f"{busy:,.1f}", f"{share:.0%}", _bar(share))
    return table


def _traffic(found: Figures) -> Table:
    table = _table("HBM tensor", "read", "written", "least", "times")
    for tensor in (*found.tensors, found.total):
        times = f"{tensor.times:.3f}" if tensor.least else "not needed"
        table.add_row(tensor.tensor, *map(_bytes, _counts(tensor)), times)
    return table


def _counts(tensor: Traffic) -> tuple[int, int, int]:
    return tensor.read, tensor.written, tensor.least


def _bytes(count: int) -> str:
    return f"{count:,}" if count else "-"


def _memory(report: Report) -> Table:
    chip = report.program.chip
    table = _table("memory", "bytes a partition", "of", "use", "")
    for region, room in ((SBUF, chip.sbuf_partition_bytes), (PSUM, chip.psum_partition_bytes)):
        peak = report.high_water(region)
        use = peak / room
        name = f"{region.value.upper()} high water"
        table.add_row(name, f"{peak:,}", f"{room:,}", f"{use:.0%}", _bar(use))
    return table


def _bar(share: float) -> str:
    return "#" * round(min(1.0, share) * 24)


def _write(
    console: Console,
    report: Report,
    trace: Path | None,
    timeline: Path | None,
    memory_map: Path | None,
) -> None:
    for path, write in (
        (trace, report.trace),
        (timeline, report.plot),
        (memory_map, report.memory_map),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(str(path))
            console.print(f"wrote {path}", soft_wrap=True, markup=False)
