"""`tkg bench --end-to-end`: tokens a second of SmolLM2 in tkg and in other engines."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import tkg
from tkg.bench import end_to_end as bench
from tkg.bench.engines import ENGINES, EngineKind
from tkg.runner.download import default_model
from tkg.runner.errors import ModelError

TEXT = EngineKind("tkg", "float32", "ours")
"""Whose text the others are compared with; the tests compare it with transformers'."""


def end_to_end(console: Console, out: Path | None, rounds: int) -> int:
    """Measure, print a table and write files; the exit code."""
    threads = tkg.get_num_threads()
    with console.status("the model") as status:
        try:
            model = default_model(lambda done, total: None)
        except ModelError as error:
            console.print(f"tkg bench: {error}", style="red", markup=False)
            return 1
        speeds = bench.measure(
            model,
            ENGINES,
            (threads, rounds),
            lambda: TEXT.load(model, threads).write(bench.PROMPT, bench.TOKENS).text,
            status.update,
        )
    lines = bench.records(speeds)
    title = f"{model.stem}, {threads} threads, greedy, {bench.TOKENS} tokens, {rounds} rounds"
    _show(console, title, lines)
    if out is not None:
        _write(out, lines)
        console.print(f"written: {out / 'end_to_end.json'}, {out / 'end_to_end.csv'}")
    return int(any(line["state"] == "wrong" for line in lines))


def _show(console: Console, title: str, lines: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for heading in ("engine", "weights"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "tokens/s",
        "quartiles",
        "of tkg bfloat16",
        "perplexity",
        "more",
        "same characters",
    ):
        table.add_column(heading, justify="right")
    timed = [line for line in lines if line["tokens_per_s"] is not None]
    for line in timed:
        ratio, perplexity = line["rate_of_tkg_bf16"], line["perplexity"]
        more, error = line["perplexity_more"], line["perplexity_more_error"]
        table.add_row(
            line["engine"],
            line["weights"],
            f"{line['tokens_per_s']:.1f}",
            f"{line['tokens_per_s_q1']:.1f} to {line['tokens_per_s_q3']:.1f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if perplexity is None else f"{perplexity:.3f}",
            "" if more is None else f"{more:+.2%} ± {error:.2%}",
            str(line["agreement"]),
        )
    console.print(table)
    for line in lines:
        if line not in timed:
            style = "red" if line["state"] == "wrong" else "dim"
            text = f" {line['engine']} {line['weights']}: {line['state']}: {line['note']}"
            console.print(text, style=style, markup=False, highlight=False)


def _write(out: Path, lines: list[dict[str, Any]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"prompt": bench.PROMPT, "rows": lines}, indent=1)
    (out / "end_to_end.json").write_text(text + "\n", encoding="utf-8")
    with (out / "end_to_end.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, bench.FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
