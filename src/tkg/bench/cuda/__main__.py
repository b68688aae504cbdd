"""The command: arguments, rows, files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tkg.backends import registry
from tkg.bench import report as records
from tkg.bench import workloads
from tkg.bench.cuda import device
from tkg.bench.cuda.report import as_markdown
from tkg.bench.peers import CUDA_PEERS, Peer, find
from tkg.bench.run import Plan, Result, measure
from tkg.bench.workloads import Row


def words(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [word.strip() for word in text.split(",")]


def numbers(text: str) -> list[int]:
    """The same, whole numbers."""
    return [int(word) for word in words(text)]


def parser() -> argparse.ArgumentParser:
    """Of the options of `tkg bench` that a GPU has."""
    made = argparse.ArgumentParser("tkg bench --backend cuda", description=__doc__)
    made.add_argument("--workload", type=words, help="names; without it the rows of docs/cuda.md")
    made.add_argument("--dtype", type=words, default=["bf16"])
    made.add_argument("--batch", type=numbers, default=[1, 16])
    made.add_argument("--context", type=numbers, default=[4096, 16384])
    made.add_argument("--s-tkg", type=numbers, default=[1])
    made.add_argument("--cache", type=words, default=["flat"])
    made.add_argument("--peer", default="all", help="names, none or all")
    made.add_argument("--out", type=Path, help="folder for CSV, JSON and Markdown")
    made.add_argument("--seconds", type=float, default=0.7, help="timed for each contestant")
    made.add_argument("--rounds", type=int, default=7)
    return made


def rows_of(options: argparse.Namespace) -> list[Row]:
    """What to measure.

    Raises:
        ValueError: a name is unknown or a number makes no sense.
    """
    if options.workload is None:
        return list(workloads.H100)
    sizes = (options.s_tkg, options.cache)
    return workloads.rows(options.workload, options.dtype, options.batch, options.context, sizes)


def peers_of(names: str) -> list[Peer]:
    """Who takes part; tkg always does.

    Raises:
        ValueError: a name is unknown.
    """
    if names == "all":
        return list(CUDA_PEERS)
    asked = [] if names == "none" else [find(name, CUDA_PEERS) for name in words(names)]
    return [peer for peer in CUDA_PEERS if peer.ours or peer in asked]


def refusal() -> str | None:
    """Why nothing can be timed here, or `None`."""
    cuda = registry.find("cuda", "tkg bench")
    reason = registry.unavailable(cuda)
    if reason is None and registry.device_of(cuda) != "cuda":
        return "TRITON_INTERPRET is set: an interpreter's times say nothing about a GPU"
    return reason


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, write the files. 1 if an answer was wrong, 2 if refused."""
    options = parser().parse_args(arguments)
    try:
        rows, peers = rows_of(options), peers_of(options.peer)
    except ValueError as error:
        return _refused(str(error))
    reason = refusal()
    if reason is not None:
        return _refused(f"the cuda backend cannot be timed here: {reason}")
    plan = Plan(1, options.rounds, options.seconds, device.place())
    results: list[Result] = []
    best = device.ceilings()
    for row in rows:
        results += measure(row, peers, plan, lambda text: print(text, file=sys.stderr, flush=True))
        best = best.better(device.ceilings())
    facts = device.facts(best)
    lines = records.records(results, best)
    text = as_markdown(lines, facts)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        command = ["tkg", "bench", "--backend", "cuda", *arguments]
        (options.out / "bench.csv").write_text(records.as_csv(lines))
        (options.out / "bench.json").write_text(records.as_json(lines, facts, command))
        (options.out / "bench.md").write_text(text)
    return 1 if any(result.failed for result in results) else 0


def _refused(reason: str) -> int:
    print(f"tkg bench: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
