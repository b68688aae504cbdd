"""The table of a GPU's rows, in microseconds."""

from __future__ import annotations

from collections.abc import Sequence

from tkg.bench.report import Record, row_title

HEADINGS = (
    *("", "in", "us", "quartiles", "GB/s", "of copy", "of specified", "roofline us"),
    "time / tkg's",
)


def machine_line(facts: Record) -> str:
    """The GPU in a sentence."""
    specified = facts["specified_gb_per_s"]
    told = "not told by torch" if specified is None else f"{specified:.0f} GB/s"
    return (
        f"{facts['gpu']} ({facts['capability']}), L2 {facts['l2_bytes'] / 2**20:.0f} MiB; memory "
        f"specified {told}, copy measured {facts['copy_gb_per_s']:.0f} GB/s; bfloat16 product "
        f"{facts['matmul_tflop_per_s']:.0f} TFLOP/s; torch {facts['torch']}, "
        f"triton {facts['triton']}, CUDA {facts['cuda']}"
    )


def cells(line: Record, specified: float | None) -> list[str]:
    """A record under `HEADINGS`; `specified`: memory bandwidth in GB/s, or `None`.

    The roofline's time is `bytes / specified`, as decoding is bound by memory.
    """
    start = [line["contestant"], line["computes_in"]]
    if line["ms"] is None:
        return [*start, f"{line['state']}: {line['note']}", *[""] * (len(HEADINGS) - 3)]
    rate, times = line["gb_per_s"], line["times_tkg"]
    return [
        *start,
        f"{line['ms'] * 1e3:.1f}",
        f"{line['ms_q1'] * 1e3:.1f} to {line['ms_q3'] * 1e3:.1f}",
        f"{rate:.0f}",
        f"{line['bandwidth_share']:.0%}",
        "" if specified is None else f"{rate / specified:.0%}",
        "" if specified is None else f"{line['bytes'] / specified / 1e3:.1f}",
        "" if times is None else f"{times:.2f}",
    ]


def as_markdown(lines: Sequence[Record], facts: Record) -> str:
    """The GPU, and one table a row of the benchmark."""
    parts = [machine_line(facts)]
    previous = None
    for line in lines:
        if row_title(line) != previous:
            previous = row_title(line)
            parts.append(f"\n**{previous}**\n\n| {' | '.join(HEADINGS)} |")
            parts.append("|---|---|" + "--:|" * (len(HEADINGS) - 2))
        parts.append(f"| {' | '.join(cells(line, facts['specified_gb_per_s']))} |")
    return "\n".join(parts) + "\n"
