"""Tokens a second of a whole model, by engines that take turns; and what narrow weights cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tkg.bench.engines import EngineKind, Writer
from tkg.bench.passage import TEXT

PROMPT = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday,"
TOKENS = 64
PAUSE_SECONDS = 0.1
"""Between turns, so that nobody's waiting threads disturb the next."""

LEAST_AGREEMENT = 64
"""Leading characters of the float32 text that every engine must write: the days of one week. Greedy
text forks where two tokens are nearly as likely, so narrower weights may leave it later; wrong
weights or a wrong position never get through a week."""

FIELDS = (
    *("engine", "weights", "state", "note", "tokens_per_s", "tokens_per_s_q1", "tokens_per_s_q3"),
    *("runs", "agreement", "rate_of_tkg_bf16", "perplexity", "perplexity_more"),
    "perplexity_more_error",
)


@dataclass(frozen=True)
class Speed:
    """How an engine did.

    Attributes:
        engine: which.
        state, note: as in `tkg.bench.run.Result`.
        agreement: leading characters that it shares with the float32 text.
        losses: of the tokens of `passage.TEXT`, or `None` where the engine does not tell.
        rates: tokens a second of each turn; empty if it was not timed.
    """

    engine: EngineKind
    state: str
    note: str = ""
    agreement: int | None = None
    losses: np.ndarray | None = None
    rates: tuple[float, ...] = ()


def measure(
    model: Path,
    engines: Sequence[EngineKind],
    plan: tuple[int, int],
    expected: Callable[[], str],
    say: Callable[[str], None] = lambda text: None,
) -> list[Speed]:
    """Load, check and time the engines.

    Args:
        model: the GGUF file.
        engines: who takes part.
        plan: threads of each, and rounds in which all take their turn.
        expected: gives the greedy text in float32.
        say: is told what is going on.
    """
    threads, rounds = plan
    speeds: dict[EngineKind, Speed] = {}
    writers: dict[EngineKind, Writer] = {}
    say("the float32 text")
    right = expected()
    for engine in engines:
        reason = engine.absent()
        if reason is not None:
            speeds[engine] = Speed(engine, "absent", reason)
            continue
        say(f"loading {engine}")
        writer = engine.load(model, threads)
        agreement = agreeing(writer.write(PROMPT, TOKENS).text, right)
        if agreement < min(LEAST_AGREEMENT, len(right)):
            note = f"the text leaves the float32 text after {agreement} characters"
            speeds[engine] = Speed(engine, "wrong", note, agreement)
        else:
            writers[engine] = writer
            speeds[engine] = Speed(engine, "ok", "", agreement, writer.losses(TEXT))
    rates: dict[EngineKind, list[float]] = {engine: [] for engine in writers}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for engine, writer in writers.items():
            time.sleep(PAUSE_SECONDS)
            done = writer.write(PROMPT, TOKENS)
            rates[engine].append(done.tokens / done.seconds)
    return [replace(speed, rates=tuple(rates.get(engine, ()))) for engine, speed in speeds.items()]


def agreeing(text: str, right: str) -> int:
    """Leading characters that two texts share."""
    pairs = enumerate(zip(text, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(right)))


def more_perplexity(losses: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """By which share the perplexity of the same text is larger than `base`'s, and the standard
    error of that share: it is the mean of as many differences as the text has tokens."""
    more = losses - base
    return float(np.expm1(more.mean())), float(more.std(ddof=1) / len(more) ** 0.5)


def records(speeds: Sequence[Speed]) -> list[dict[str, Any]]:
    """One record an engine, with `FIELDS`."""
    own = next(
        (s for s in speeds if (s.engine.name, s.engine.weights) == ("tkg", "bfloat16")), None
    )
    lines = []
    for speed in speeds:
        line: dict[str, Any] = dict.fromkeys(FIELDS)
        line |= {"engine": speed.engine.name, "weights": speed.engine.weights}
        line |= {"state": speed.state, "note": speed.note, "agreement": speed.agreement}
        if speed.losses is not None:
            line["perplexity"] = float(np.exp(speed.losses.mean()))
            if own and own.losses is not None and speed is not own:
                line["perplexity_more"], line["perplexity_more_error"] = more_perplexity(
                    speed.losses, own.losses
                )
        if speed.rates:
            low, middle, high = np.percentile(speed.rates, (25, 50, 75))
            line |= {"tokens_per_s": float(middle), "runs": len(speed.rates)}
            line |= {"tokens_per_s_q1": float(low), "tokens_per_s_q3": float(high)}
            if own and own.rates:
                line["rate_of_tkg_bf16"] = float(middle / np.median(own.rates))
        lines.append(line)
    return lines
