"""Results as records, and records as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import tkg
from tkg.bench import rotation
from tkg.bench.peers import Peer
from tkg.bench.run import Result
from tkg.bench.timing import Times
from tkg.bench.workloads import DTYPES
from tkg.machine import Ceilings

_SHORT = {DTYPES[name]["dtype"]: name for name in ("fp32", "fp16", "bf16")}

Record = dict[str, Any]
"""One line of the report; numbers that are not known are `None`."""

FIELDS = (
    *("workload", "dtype", "batch", "context", "s_tkg", "cache"),
    *("contestant", "computes_in", "state", "note", "error_budget_used", "copies", "calls"),
    *("ms", "ms_q1", "ms_q3", "bytes", "flops", "gb_per_s", "read_gb_per_s", "bandwidth_share"),
    *("gflop_per_s", "fma_share", "roofline_ms", "roofline_share", "times_tkg"),
)
"""Names of a record, in the order of the CSV file's columns; docs/performance.md explains them."""

OF_MEMORY = ("read_gb_per_s", "bandwidth_share", "roofline_ms", "roofline_share")
"""Those that depend on what memory gave: medians of a contestant's turns."""


def records(results: Sequence[Result], ceilings: Ceilings) -> list[Record]:
    """One record a result.

    Args:
        results: of any number of rows.
        ceilings: what the machine gives at best; where memory was looked at in a turn, the turn's
            shares are of what it gave then.
    """
    ours = {r.row: r.times for r in results if r.peer.ours and r.times}
    return [_record(result, ceilings, ours.get(result.row)) for result in results]


def _record(result: Result, ceilings: Ceilings, ours: Times | None) -> Record:
    row = result.row
    record: Record = dict.fromkeys(FIELDS)
    record |= {
        "workload": row.workload,
        "dtype": row.dtype,
        "batch": row.batch,
        "context": row.context,
        "s_tkg": row.tokens,
        "cache": row.cache,
        "contestant": result.peer.name,
        "computes_in": row.dtype
        if result.peer.ours
        else _SHORT[result.peer.computes_in(row.dtype)],
        "state": result.state,
        "note": result.note,
        "error_budget_used": result.used,
        "copies": result.copies,
    }
    if result.times is None or result.cost is None:
        return record
    low, middle, high = result.times.quartiles
    record |= {"calls": result.times.calls, "ms": middle * 1e3}
    record |= {"ms_q1": low * 1e3, "ms_q3": high * 1e3}
    moved, flops, turns = result.cost.bytes, result.cost.flops, result.times.turns
    record |= rates(moved, flops, middle, ceilings)
    looked = [
        rates(moved, flops, turn.seconds, replace(ceilings, bytes_per_second=turn.read))
        for turn in turns
        if turn.read is not None
    ]
    if looked:
        record |= {name: median(turn[name] for turn in looked) for name in OF_MEMORY}
    if ours is not None:
        pairs = zip(turns, ours.turns, strict=True)
        record["times_tkg"] = median(theirs.seconds / mine.seconds for theirs, mine in pairs)
    return record


def rates(moved: int, flops: int, seconds: float, ceilings: Ceilings) -> Record:
    """Achieved rates and their shares of the machine's.

    Args:
        moved: bytes that must move at the least.
        flops: floating-point operations of the matrix products, 2 a multiply-add.
        seconds: that it took.
        ceilings: of the machine.

    Returns:
        `roofline_ms` is `max(bytes / bandwidth, flops / FMA rate)`, `roofline_share` that over
        the time taken (Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009).
    """
    least = max(moved / ceilings.bytes_per_second, flops / ceilings.flops_per_second)
    return {
        "bytes": moved,
        "flops": flops,
        "gb_per_s": moved / seconds / 1e9,
        "read_gb_per_s": ceilings.bytes_per_second / 1e9,
        "bandwidth_share": moved / seconds / ceilings.bytes_per_second,
        "gflop_per_s": flops / seconds / 1e9,
        "fma_share": flops / seconds / ceilings.flops_per_second,
        "roofline_ms": least * 1e3,
        "roofline_share": least / seconds,
    }


def machine(ceilings: Ceilings, threads: int, isa: str, peers: Sequence[Peer]) -> Record:
    """What the figures depend on: the processor, its ceilings, and the versions."""
    return {
        "processor": processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "logical_cpus": os.cpu_count(),
        "threads": threads,
        "isa": isa,
        "last_level_cache_bytes": rotation.last_level_cache(),
        "read_gb_per_s": ceilings.bytes_per_second / 1e9,
        "fma_gflop_per_s": ceilings.flops_per_second / 1e9,
        "python": platform.python_version(),
        "tkg": tkg.__version__,
        "peers": {p.name: p.version() for p in peers if not p.ours and p.absent() is None},
    }


def processor() -> str:
    """The processor's model name, family and model: virtual machines hide the first."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except FileNotFoundError:
        return platform.processor() or "unknown"
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    name = facts.get("model name", "unknown")
    family, model = facts.get("cpu family"), facts.get("model")
    return name if family is None else f"{name}, family {family}, model {model}"


def as_csv(lines: Sequence[Record]) -> str:
    """A header, and a line a record."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_json(lines: Sequence[Record], facts: Record, command: Sequence[str]) -> str:
    """An object with the command, the machine and the rows."""
    whole = {"command": shlex.join(command), "machine": facts, "rows": list(lines)}
    return json.dumps(whole, indent=1) + "\n"


def as_markdown(lines: Sequence[Record], facts: Record, command: Sequence[str]) -> str:
    """The command, the machine, and one table a row of the benchmark."""
    parts = [f"```console\n{shlex.join(command)}\n```\n", machine_line(facts)]
    previous = None
    for line in lines:
        title = row_title(line)
        if title != previous:
            timed = [other for other in lines if row_title(other) == title and other["ms"]]
            parts.append(f"\n**{heading((timed or [line])[0])}**\n\n| {' | '.join(HEADINGS)} |")
            parts.append("|---|---|" + "--:|" * (len(HEADINGS) - 2))
            previous = title
        parts.append(f"| {' | '.join(cells(line))} |")
    return "\n".join(parts) + "\n"


HEADINGS = (
    *("", "in", "ms", "quartiles", "GB/s", "of read", "GFLOP/s", "of FMA", "of roofline"),
    "time / tkg's",
)
"""Of the tables for people."""


def row_title(line: Record) -> str:
    """The row that a record belongs to."""
    return (
        f"{line['workload']}, {line['dtype']}, B {line['batch']}, context {line['context']}, "
        f"S_tkg {line['s_tkg']}, {line['cache']} cache"
    )


def heading(line: Record) -> str:
    """The same, and what memory gave meanwhile, for a record that was timed."""
    read = line["read_gb_per_s"]
    return row_title(line) + ("" if read is None else f"; read {read:.1f} GB/s")


def machine_line(facts: Record) -> str:
    """The machine in a sentence."""
    cache = facts["last_level_cache_bytes"]
    size = "unknown" if cache is None else f"{cache / 2**20:.0f} MiB"
    versions = ", ".join(f"{name} {number}" for name, number in facts["peers"].items())
    return (
        f"{facts['processor']}; {facts['threads']} threads, {facts['isa']}, "
        f"last-level cache {size}; ceilings {facts['read_gb_per_s']:.1f} GB/s read, "
        f"{facts['fma_gflop_per_s']:.0f} GFLOP/s float32; {_others(facts)}"
        f"tkg {facts['tkg']}" + (f", {versions}" if versions else "")
    )


def _others(facts: Record) -> str:
    share = facts.get("others_share")
    return "" if share is None else f"others used {share:.0%} of the processors; "


def cells(line: Record) -> list[str]:
    """A record's cells under `HEADINGS`."""
    start = [line["contestant"], line["computes_in"]]
    if line["ms"] is None:
        return [*start, f"{line['state']}: {line['note']}", *[""] * (len(HEADINGS) - 3)]
    times = line["times_tkg"]
    return [
        *start,
        f"{line['ms']:.3f}",
        f"{line['ms_q1']:.3f} to {line['ms_q3']:.3f}",
        f"{line['gb_per_s']:.1f}",
        f"{line['bandwidth_share']:.0%}",
        f"{line['gflop_per_s']:.1f}",
        f"{line['fma_share']:.0%}",
        f"{line['roofline_share']:.0%}",
        "" if times is None else f"{times:.2f}",
    ]
