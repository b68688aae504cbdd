"""`tkg generate`: a language model writes; every attention layer is one call of the block."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

import tkg
from tkg.backends import registry
from tkg.runner.chat import chat_prompt
from tkg.runner.download import default_model
from tkg.runner.engine import Engine, Statistics
from tkg.runner.errors import ModelError
from tkg.runner.sampler import Sampler
from tkg.runner.vocabulary import TextStream, Vocabulary

Dtype = Literal["float32", "float16", "bfloat16", "float8"]
Layout = Literal["flat", "block"]
Backend = Literal["reference", "cpu", "cuda", "neuron"]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to say to the model.", show_default=False)],
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it stands; no chat template.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(help="A GGUF file or safetensors folder; default: SmolLM2-135M-Instruct."),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Of the weights; float8 is made at load.")
    ] = "bfloat16",
    calibrate: Annotated[
        bool,
        typer.Option(
            help="float8: let a short text decide the rounding; otherwise to the nearest, at once."
        ),
    ] = True,
    kv: Annotated[Layout, typer.Option(help="Layout of the KV cache.")] = "flat",
    kv_dtype: Annotated[Dtype, typer.Option(help="Of the KV cache.")] = "bfloat16",
    max_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many new tokens.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Randomness; 0 always takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw only from the likeliest tokens with this much probability.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes random draws repeatable.")] = None,
    backend: Annotated[Backend, typer.Option(help="What runs the attention block.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the cpu backend.")] = None,
) -> None:
    """Generate text. Only the text goes to stdout; progress and statistics go to stderr."""
    console = Console(stderr=True)
    sampler = _sampler(temperature, top_p, seed)
    try:
        _use(backend, threads)
        path = _default_model(console) if model is None else model
        start = time.perf_counter()
        with console.status(f"loading {path.name}"):
            engine = Engine(
                path, dtype=dtype, calibrate=calibrate, kv=kv, kv_dtype=kv_dtype, backend=backend
            )
        loaded = time.perf_counter() - start
        ids = _prompt_ids(engine.vocabulary, prompt, raw)
        tokens = engine.generate(ids, max_tokens=max_tokens, sampler=sampler)
        finished = _stream(tokens, TextStream(engine.vocabulary, ids))
    except (ModelError, tkg.Unsupported) as error:
        console.print(f"tkg generate: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    place = f"cpu backend, {tkg.get_num_threads()} threads" if backend == "cpu" else backend
    parts = (path.name, f"{dtype} weights", f"{kv} {kv_dtype} cache", place)
    console.print(f"\n{', '.join(parts)}, loaded in {loaded:.1f} s", soft_wrap=True)
    _report(console, engine.statistics)
    if not finished:
        raise typer.Exit(130)  # as a shell reports SIGINT


def _sampler(temperature: float, top_p: float, seed: int | None) -> Sampler:
    try:
        return Sampler(temperature, top_p, seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _use(backend: str, threads: int | None) -> None:
    """Refuse a backend that cannot run here before anything is downloaded or loaded."""
    registry.choose_for(backend, "cpu")
    if threads is not None:
        if backend != "cpu":
            raise typer.BadParameter(f"--threads is for --backend cpu; got {backend}")
        tkg.set_num_threads(threads)


def _default_model(console: Console) -> Path:
    """SmolLM2-135M-Instruct's file, with a progress bar while it is downloaded."""
    columns = (TextColumn("downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", visible=False)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        return default_model(show)


def _prompt_ids(vocabulary: Vocabulary, prompt: str, raw: bool) -> list[int]:
    if raw:
        return vocabulary.encode(prompt)
    # A chat template writes the tokens that start a text itself.
    return vocabulary.encode(chat_prompt(vocabulary, prompt), whole=False)


def _stream(tokens: Iterable[int], stream: TextStream) -> bool:
    """Print text as it comes. Returns whether it came to its end: False after Ctrl-C."""
    try:
        for token in tokens:
            typer.echo(stream.push(token), nl=False)
    except KeyboardInterrupt:
        return False
    return True


def _report(console: Console, stats: Statistics) -> None:
    """Tokens a second, and where the time went."""
    decoded = stats.new_tokens - 1  # the first one belongs to the prompt's time
    console.print(_rate("prompt", stats.prompt_tokens, stats.prompt_seconds))
    console.print(_rate("decode", max(decoded, 0), stats.decode_seconds))
    total = sum(stats.stages.values())
    table = Table("stage", "seconds", "share", box=None)
    for stage, seconds in sorted(stats.stages.items(), key=lambda item: -item[1]):
        table.add_row(stage, f"{seconds:.3f}", f"{seconds / total:.0%}")
    console.print(table)


def _rate(what: str, tokens: int, seconds: float) -> str:
    rate = f"{tokens / seconds:.1f}" if seconds > 0 else "-"
    return f"{what}: {tokens} tokens in {seconds:.2f} s, {rate} tokens/s"
