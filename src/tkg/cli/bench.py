"""`tkg bench`: the block beside what a user could take instead, checked and timed in one run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

import tkg
from tkg.backends import cpu
from tkg.bench import growth as sweeps
from tkg.bench import report, roofline, workloads
from tkg.bench.noise import TROUBLE, Noise
from tkg.bench.peers import PEERS, Peer, find
from tkg.bench.run import Plan, Result, measure
from tkg.bench.workloads import Row
from tkg.cli.bench_end_to_end import end_to_end as run_end_to_end
from tkg.machine import Ceilings, ceilings, measured_now

GROWTH = ("llama3-8b-tp8", "bf16")
QUICK_PEERS = ("tkg", "torch", "onnxruntime")
Picture = Callable[[list[report.Record], report.Record, Path], list[Path]]
WIDTH = 120
WIDTHS = (13, 14, 8, 18, 5, 7, 7, 6, 11, 12)


def bench(
    backend: Annotated[str, typer.Option(help="cpu or cuda: where everybody runs.")] = "cpu",
    workload: Annotated[
        str | None, typer.Option(help="Names, comma-separated, or all; --list shows them.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Names, comma-separated, or all.")] = None,
    batch: Annotated[str | None, typer.Option(help="Numbers, comma-separated.")] = None,
    context: Annotated[str | None, typer.Option(help="Numbers, comma-separated.")] = None,
    s_tkg: Annotated[str, typer.Option(help="New tokens a row, comma-separated.")] = "1",
    cache: Annotated[str, typer.Option(help="flat, block or flat,block.")] = "flat",
    peer: Annotated[
        str | None, typer.Option(help="Names, comma-separated, none or all (the default).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small set of rows and peers.")] = False,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Tokens a second of a whole model instead.")
    ] = False,
    growth: Annotated[
        bool, typer.Option("--growth", help="One layer's time over context, and over batch.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show what can be chosen.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for CSV, JSON, Markdown, PNG and SVG.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of tkg and every peer; default: tkg's.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Timed for each contestant in each row.")
    ] = 0.7,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contestant in a row.")] = 7,
) -> None:
    """Measure the attention block, and what a user could take instead, on this machine.

    Each answer is compared with a float64 run before its time is taken: one that is wrong is not
    timed, and the exit code is 1. docs/performance.md explains every figure.
    """
    console = Console()
    if list_:
        _list(console)
        return
    if backend == "cuda":
        options = {"workload": workload, "dtype": dtype, "batch": batch, "context": context}
        options |= {"s-tkg": s_tkg, "cache": cache, "peer": peer, "out": out}
        options |= {"seconds": seconds, "rounds": rounds}
        raise typer.Exit(_on_cuda(options, quick or end_to_end or growth or threads is not None))
    if backend != "cpu":
        _refuse(f"--backend must be cpu or cuda; got {backend!r}")
    if isinstance(ceilings(), str):
        _refuse(f"the ceilings cannot be measured: {ceilings()}")
    if threads is not None:
        tkg.set_num_threads(threads)
    if end_to_end:
        raise typer.Exit(run_end_to_end(console, out, rounds))
    try:
        if growth:
            chosen = _growth_rows(quick, workload, dtype)
        else:
            sizes = batch or "1,16", context or "1024,8192"
            chosen = _rows(quick, (workload, dtype, *sizes, s_tkg, cache))
        peers = _peers(quick, "none" if growth and peer is None else peer)
    except ValueError as error:
        _refuse(str(error))
    noise = Noise()
    results, best = _measure(console, chosen, peers, Plan(tkg.get_num_threads(), rounds, seconds))
    lines = report.records(results, best)
    facts = report.machine(best, tkg.get_num_threads(), cpu.core().isa(), peers)
    facts["others_share"] = noise.others()
    _show(console, lines, facts)
    if growth:
        _show_growth(console, lines)
    left_out = [p.name for p in PEERS if p not in peers]
    if left_out:
        console.print(f"not asked for: {', '.join(left_out)} (--peer all)")
    if out is not None:
        _write(console, out, lines, facts, [roofline.draw, *([sweeps.draw] if growth else [])])
    failed = sum(result.failed for result in results)
    if failed:
        console.print(f"{failed} FAILED: a wrong answer or a broken peer, see above", style="red")
        raise typer.Exit(1)


def _on_cuda(options: dict[str, Any], host_only: bool) -> int:
    """Hand the options that were given to the GPU's own command."""
    from tkg.bench.cuda.__main__ import main

    if host_only:
        theirs = "--quick, --end-to-end, --growth and --threads"
        _refuse(f"{theirs} are for --backend cpu; leave them out")
    given = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
    return main([word for pair in given for word in pair])


def _refuse(reason: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"tkg bench: {reason}", markup=False)
    raise typer.Exit(2) from None


def _rows(quick: bool, options: tuple[str | None, str | None, str, str, str, str]) -> list[Row]:
    names, dtypes, batches, contexts, tokens, caches = options
    if quick:
        if names or dtypes:
            raise ValueError("--quick has its own rows; leave --workload and --dtype out")
        return list(workloads.QUICK)
    return workloads.rows(
        list(workloads.WORKLOADS) if names in (None, "all") else _words(names),
        list(workloads.DTYPES) if dtypes == "all" else _words(dtypes or "bf16,fp8-row-kv8"),
        _numbers("batch", batches),
        _numbers("context", contexts),
        (_numbers("s-tkg", tokens), _words(caches)),
    )


def _growth_rows(quick: bool, workload: str | None, dtype: str | None) -> list[Row]:
    names, dtypes = _words(workload or GROWTH[0]), _words(dtype or GROWTH[1])
    if quick or len(names) > 1 or len(dtypes) > 1:
        raise ValueError("--growth has its own rows, of one --workload and one --dtype")
    workloads.rows(names, dtypes, [1], [sweeps.BATCH_CONTEXT], ([1], ["flat"]))  # the names exist
    return sweeps.rows(names[0], dtypes[0])


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",")]


def _numbers(what: str, text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise ValueError(f"{what} must be numbers, comma-separated; got {text!r}") from None


def _peers(quick: bool, names: str | None) -> list[Peer]:
    """Who takes part; tkg always does."""
    if names is None:
        return [find(name) for name in QUICK_PEERS] if quick else list(PEERS)
    if names == "all":
        return list(PEERS)
    asked = [] if names == "none" else [find(name) for name in _words(names)]
    return [peer for peer in PEERS if peer.ours or peer in asked]


def _measure(
    console: Console, rows: list[Row], peers: list[Peer], plan: Plan
) -> tuple[list[Result], Ceilings]:
    """All results, and the best ceilings: they are measured again after each row."""
    results: list[Result] = []
    best = measured_now()
    with console.status("measuring") as status:
        for number, row in enumerate(rows, 1):
            done = measure(
                row,
                peers,
                plan,
                lambda text, number=number: status.update(f"{number} of {len(rows)}: {text}"),
            )
            console.print(_short(row, done), style="dim", markup=False, highlight=False)
            results += done
            best = best.better(measured_now())
    return results, best


def _short(row: Row, results: list[Result]) -> str:
    """A row's medians, for someone who waits; the tables come when the ceilings are known."""
    parts = [
        f"{r.peer.name} {r.times.quartiles[1] * 1e3:.3f} ms"
        if r.times
        else f"{r.peer.name} {r.state}"
        for r in results
    ]
    return f"{row}: {', '.join(parts)}"


def _show(console: Console, lines: list[report.Record], facts: report.Record) -> None:
    console.print(report.machine_line(facts), markup=False, highlight=False)
    others = facts["others_share"]
    if others is not None and others > TROUBLE:
        console.print(
            f"others used {others:.0%} of the processors: measure again on a quiet machine",
            style="red",
        )
    groups: dict[str, list[report.Record]] = {}
    for line in lines:
        groups.setdefault(report.row_title(line), []).append(line)
    for group in groups.values():
        timed = [line for line in group if line["ms"] is not None]
        console.print()
        console.print(_table(report.heading((timed or group)[0]), timed))
        for line in group:
            if line["ms"] is None:
                style = "red" if line["state"] in ("wrong", "error") else "dim"
                text = f" {line['contestant']:14} {line['state']}: {line['note']}"
                console.print(text, style=style, markup=False, highlight=False)


def _show_growth(console: Console, lines: list[report.Record]) -> None:
    console.print()
    try:
        console.print("\n".join(sweeps.summary(lines)), markup=False, highlight=False)
    except ValueError as error:
        console.print(str(error), style="red", markup=False)


def _table(title: str, lines: list[report.Record]) -> Table:
    """The contestants of one row that were timed."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, width=WIDTH)
    for heading, width in zip(report.HEADINGS, WIDTHS, strict=True):
        side = "left" if heading in report.HEADINGS[:2] else "right"
        table.add_column(heading, justify=side, no_wrap=True, min_width=width)
    for line in lines:
        table.add_row(*report.cells(line), style="bold" if line["contestant"] == "tkg" else "")
    return table


def _write(
    console: Console,
    out: Path,
    lines: list[report.Record],
    facts: report.Record,
    pictures: list[Picture],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    command = ["tkg", *sys.argv[1:]]
    paths = [out / f"bench.{kind}" for kind in ("csv", "json", "md")]
    texts = (
        report.as_csv(lines),
        report.as_json(lines, facts, command),
        report.as_markdown(lines, facts, command),
    )
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    try:
        for draw in pictures:
            paths += draw(lines, facts, out)
    except ModuleNotFoundError as error:
        console.print(f"no picture: {error.name} is absent (pip install 'tkg[bench]')")
    except ValueError as error:
        console.print(f"no picture: {error}")
    console.print(f"written: {', '.join(str(path) for path in paths)}", soft_wrap=True)


def _list(console: Console) -> None:
    for title, names in (
        ("workloads", [(n, str(_layer(n))) for n in workloads.WORKLOADS]),
        ("dtypes", [(n, ", ".join(map(str, f.values()))) for n, f in workloads.DTYPES.items()]),
        ("quick", [(str(n), str(row)) for n, row in enumerate(workloads.QUICK, 1)]),
        ("peers", [(p.name, _peer(p)) for p in PEERS]),
    ):
        table = Table(title=title, title_justify="left", title_style="bold", box=None)
        table.show_header = False
        table.add_column(no_wrap=True, min_width=14)
        table.add_column(overflow="fold")
        for name, text in names:
            table.add_row(name, text)
        console.print(table)
    numbers = f"batch {workloads.BATCHES}, context {workloads.CONTEXTS}, s-tkg {workloads.TOKENS}"
    console.print(f"sizes of the project's own tables: {numbers}; any other may be given")


def _peer(peer: Peer) -> str:
    absent = peer.absent()
    return f"{peer.what} {peer.version()}" if absent is None else f"absent: {absent}"


def _layer(name: str) -> str:
    case = workloads.WORKLOADS[name]
    extras = [
        text
        for text, has in (("QK norm", case.pre_norm), ("sinks", case.sink), ("bias", case.bias_out))
        if has
    ]
    heads = f"H {case.hidden}, {case.q_heads}/{case.kv_heads} heads of {case.d_head}"
    return ", ".join([heads, *extras])
