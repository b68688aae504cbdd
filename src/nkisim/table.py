"""The report as a table of plain text, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .critical import Step
from .enums import PSUM, SBUF

if TYPE_CHECKING:
    from .report import Report

_WIDTH = 100
_BAR = 24
_ROWS = 8


def table(report: Report) -> str:
    """The whole report, or a line if the run was not observed."""
    program = report.program
    cores = len(program.cores)
    title = f"{report.name} on {program.chip.name}, {cores} core{'s' if cores > 1 else ''}"
    if not program.options.observe:
        return f"{title}: not observed (options observe=True)"
    lines = [title, "=" * min(_WIDTH, len(title))]
    if any(core.records for core in program.cores):
        lines += [*_summary(report), "", *_engines(report), "", *_path(report)]
        lines += ["", *_traffic(report)] if report.tensors else []
        lines += ["", *_memory(report)]
    lines += ["", *_findings(report)]
    return "\n".join(line[:_WIDTH].rstrip() for line in lines)


def _summary(report: Report) -> Iterator[str]:
    shares = ", ".join(f"{what} {share:.0%}" for what, share in list(report.bounds.items())[:3])
    yield f"modelled latency {report.latency_us:,.2f} us   bound by {report.bound}"
    yield f"critical path: {shares}"
    ops = ", ".join(f"{op} {count:,}" for op, count in list(report.instructions.items())[:5])
    yield f"instructions: {sum(report.instructions.values()):,} ({ops})"
    yield (
        f"flops {report.flops:.4g}   MFU {report.mfu:.2%} (of the bfloat16 peak)"
        f"   MBU {report.mbu:.2%}"
    )


def _engines(report: Report) -> Iterator[str]:
    yield f"{'core engine':20} {'instructions':>12} {'busy us':>12} {'use':>7}"
    for use in report.engines:
        name = f"{use.core:4} {use.engine}"
        yield (
            f"{name:20} {use.instructions:12,} {use.busy_us:12,.2f} {use.utilisation:7.1%}"
            f"  {_bar(use.utilisation)}"
        )
    for core, (active, busy) in enumerate(zip(report.dma_active, report.dma_busy, strict=True)):
        for name, share in (("DMA in flight", active), ("DMA engines moving", busy)):
            spent = share * report.latency_us
            yield f"{core:4} {name:28} {spent:12,.2f} {share:7.1%}  {_bar(share)}"


def _bar(share: float) -> str:
    return "#" * round(min(1.0, share) * _BAR)


def _path(report: Report) -> Iterator[str]:
    """The critical path by line of the kernel."""
    spent: dict[tuple[str, str, str], float] = {}
    for step in report.critical_path:
        key = _place(step), step.record.op, step.what
        spent[key] = spent.get(key, 0.0) + step.end_ns - step.start_ns
    total = sum(spent.values()) or 1.0
    yield f"{'critical path at':36} {'instruction':22} {'spent on':24} {'share':>7}"
    rows = sorted(spent.items(), key=lambda pair: -pair[1])
    for (place, op, what), time in rows[:_ROWS]:
        yield f"{place:36.36} {op:22.22} {what:24.24} {time / total:7.1%}"
    if len(rows) > _ROWS:
        yield f"... and {len(rows) - _ROWS} more"


def _place(step: Step) -> str:
    return str(step.record.site).rpartition("/")[2]


def _traffic(report: Report) -> Iterator[str]:
    yield f"{'HBM tensor':30} {'kind':10} {'read':>12} {'written':>12} {'least':>12} {'times':>7}"
    for tensor in report.tensors[:_ROWS]:
        name = tensor.allocation.name or str(tensor.allocation.site).rpartition("/")[2]
        moved = tensor.read_bytes + tensor.written_bytes
        least = tensor.least_read_bytes + tensor.least_written_bytes
        times = f"{moved / least:7.2f}" if least else f"{'-':>7}"
        yield (
            f"{name:30.30} {tensor.allocation.kind:10} {_bytes(tensor.read_bytes):>12}"
            f" {_bytes(tensor.written_bytes):>12} {_bytes(least):>12} {times}"
        )
    if len(report.tensors) > _ROWS:
        yield f"... and {len(report.tensors) - _ROWS} more"
    moved = report.hbm_read_bytes + report.hbm_written_bytes
    times = f"{moved / report.least_bytes:7.2f}" if report.least_bytes else f"{'-':>7}"
    yield (
        f"{'all':41} {_bytes(report.hbm_read_bytes):>12} {_bytes(report.hbm_written_bytes):>12}"
        f" {_bytes(report.least_bytes):>12} {times}"
    )
    yield f"DMA moved {_bytes(report.dma_bytes)} in all"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _memory(report: Report) -> Iterator[str]:
    for region in (SBUF, PSUM):
        memories = [m for m in report.placement.memories if m.region is region]
        peak, capacity = report.high_water(region), memories[0].capacity
        yield (
            f"{region.value:5} high water {peak:9,} of {capacity:9,} bytes a partition"
            f" {peak / capacity:7.1%}  {_bar(peak / capacity)}"
        )
        if not all(m.fits for m in memories):
            yield f"{region.value} does not fit: no addresses, so no waiting for bytes to be free"


def _findings(report: Report) -> Iterator[str]:
    program = report.program
    if not report.findings:
        checked = program.options.checks != "off"
        yield "findings: none" if checked else "findings: not looked for (checks are off)"
    for finding in report.findings:
        yield from _wrapped(f"finding: {finding}")
    for site, note in program.notes.items():
        yield from _wrapped(f"note: {site}: {note}")


def _wrapped(text: str) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(text, _WIDTH, subsequent_indent="    ", break_long_words=True)
