"""Tokens a second: agreement of the texts, turns, figures, and the bfloat16 file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.runner import tiny_models
from tkg.bench import end_to_end, engines
from tkg.bench.end_to_end import PROMPT, Speed, agreeing, records
from tkg.bench.engines import ENGINES, EngineKind, Generation
from tkg.bench.engines.bf16_file import write_bf16
from tkg.bench.passage import TEXT
from tkg.cli import bench_end_to_end as command
from tkg.cli.commands import commands
from tkg.runner.download import default_model
from tkg.runner.engine import Engine

RIGHT = "x" * 100


class FakeWriter:
    def __init__(self, text: str, seconds: float) -> None:
        self.text, self.seconds = text, seconds

    def write(self, prompt: str, tokens: int) -> Generation:
        assert prompt == PROMPT
        return Generation(self.text, 30, self.seconds)

    def losses(self, text: str) -> np.ndarray | None:
        assert text == TEXT
        return LOSSES[self.seconds]


FAST = EngineKind("tkg", "bfloat16", "fast")
SLOW = EngineKind("other", "bfloat16", "slow")
ABSENT = EngineKind("gone", "int4", "gone", "no_such_package", "pip install gone")
LOSSES = {0.5: np.array([1.0, 3.0, 2.0]), 2.0: np.array([1.1, 3.4, 2.1]), 1.0: None}
TEXTS = {"fast": (RIGHT, 0.5), "slow": (RIGHT[:70] + "y", 2.0)}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(
        engines.EngineKind, "load", lambda self, *rest: FakeWriter(*TEXTS[self.module])
    )


def measured(*kinds: EngineKind) -> list[Speed]:
    return end_to_end.measure(Path("model"), kinds, (1, 3), lambda: RIGHT)


def test_rates_and_agreement(fakes: None) -> None:
    fast, slow, absent = records(measured(FAST, SLOW, ABSENT))
    assert fast["tokens_per_s"] == pytest.approx(60.0) and fast["rate_of_tkg_bf16"] == 1.0
    assert slow["tokens_per_s"] == pytest.approx(15.0)
    assert slow["rate_of_tkg_bf16"] == pytest.approx(0.25)
    assert (fast["agreement"], slow["agreement"]) == (100, 70)
    assert fast["runs"] == slow["runs"] == 3
    assert absent["state"] == "absent" and absent["tokens_per_s"] is None
    assert absent["note"] == "install no_such_package: pip install gone"


def test_perplexity(fakes: None) -> None:
    fast, slow, absent = records(measured(FAST, SLOW, ABSENT))
    assert fast["perplexity"] == pytest.approx(np.exp(2.0)) and fast["perplexity_more"] is None
    assert slow["perplexity"] == pytest.approx(np.exp(2.2))
    assert slow["perplexity_more"] == pytest.approx(np.exp(0.2) - 1)
    # of 0.1, 0.4 and 0.1: variance 0.06 / 2, standard error of the mean sqrt(0.03 / 3)
    assert slow["perplexity_more_error"] == pytest.approx(0.1)
    assert absent["perplexity"] is None and absent["perplexity_more"] is None


def test_another_text_is_wrong_and_not_timed(fakes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEXTS, "slow", (RIGHT[:63] + "y", 1.0))
    fast, slow = measured(FAST, SLOW)
    assert fast.state == "ok" and slow.state == "wrong"
    assert not slow.rates and "after 63 characters" in slow.note


@pytest.mark.parametrize(
    ("text", "right", "shared"), [("ab", "abc", 2), ("abd", "abc", 2), ("", "a", 0), ("a", "a", 1)]
)
def test_agreement_counts_leading_characters(text: str, right: str, shared: int) -> None:
    assert agreeing(text, right) == shared


@pytest.mark.parametrize("wrong", [False, True])
def test_the_command(
    fakes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: bool
) -> None:
    if wrong:
        monkeypatch.setitem(TEXTS, "slow", ("nonsense", 1.0))
    monkeypatch.setattr(command, "ENGINES", (FAST, SLOW, ABSENT))
    monkeypatch.setattr(command, "TEXT", FAST)
    monkeypatch.setattr(command, "default_model", lambda progress: Path("model.gguf"))
    arguments = ["bench", "--end-to-end", "--rounds", "2", "--out", str(tmp_path)]
    done = CliRunner(env={"COLUMNS": "120"}).invoke(commands, arguments)
    assert done.exit_code == int(wrong), done.output
    assert "gone int4: absent: install no_such_package: pip install gone" in done.output
    assert ("other bfloat16: wrong" in done.output) == wrong
    rows = json.loads((tmp_path / "end_to_end.json").read_text())["rows"]
    assert [tuple(row) for row in rows] == [end_to_end.FIELDS] * 3
    header = (tmp_path / "end_to_end.csv").read_text().splitlines()[0]
    assert header == ",".join(end_to_end.FIELDS)


def test_engines_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for engine in ENGINES:
        assert (engine.absent() is None) == (engine.name == "tkg")


def test_ours_writes(tmp_path: Path) -> None:
    from tkg.bench.engines import ours

    model = tiny_models.save(tiny_models.make("llama"), tmp_path)
    done = ours.load(model, "float32", 1).write("hello", 6)
    assert 0 <= done.tokens <= 5
    assert (done.seconds > 0) == (done.tokens > 0)
    losses = ours.load(model, "float32", 1).losses("hello hello")
    assert len(losses) > 0 and (losses > 0).all()


def test_the_bfloat16_file_has_the_same_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix, vector = rng.standard_normal((4, 64), np.float32), rng.standard_normal(5, np.float32)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "b"])
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q4_1))
    q4_1 = gguf.GGMLQuantizationType.Q4_1
    packed = gguf.quantize(matrix, q4_1)
    writer.add_tensor("matrix", packed, raw_dtype=q4_1)
    writer.add_tensor("vector", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_bf16(tmp_path / "a.gguf", tmp_path / "b.gguf")
    reader = gguf.GGUFReader(tmp_path / "b.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    got = tensors["matrix"].data.view(np.uint16).view(ml_dtypes.bfloat16).reshape(4, 64)
    true = gguf.dequantize(packed, q4_1).reshape(4, 64).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got, true)
    np.testing.assert_array_equal(tensors["vector"].data, vector)
    assert reader.fields["llama.block_count"].contents() == 3
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]


@pytest.mark.model
@pytest.mark.slow  # transformers takes half a minute to load the file
@pytest.mark.parametrize(
    "engine", [e for e in ENGINES if e.weights in ("bfloat16", "Q4_1")], ids=str
)
def test_every_engine_knows_the_week(engine: EngineKind) -> None:
    model = default_model(lambda done, total: None)
    done = engine.load(model, 2).write(PROMPT, 20)
    week = " Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday,"
    assert done.text.startswith(week)
    assert done.tokens == 19 and done.seconds > 0


def losses(engine: EngineKind, model: Path) -> np.ndarray:
    found = engine.load(model, 2).losses(TEXT)
    assert found is not None
    return found


@pytest.mark.model
@pytest.mark.slow
def test_perplexity_is_that_of_transformers() -> None:
    """Of the same values, in float32; and what narrower weights cost is small."""
    model = default_model(lambda done, total: None)
    theirs = losses(EngineKind("transformers", "float32", "hugging_face"), model)
    found = {engine.weights: losses(engine, model) for engine in ENGINES if engine.name == "tkg"}
    assert len(theirs) > 400
    np.testing.assert_allclose(found["float32"], theirs, atol=0.01)
    perplexity = {weights: np.exp(mine.mean()) for weights, mine in found.items()}
    assert perplexity["float32"] == pytest.approx(np.exp(theirs.mean()), rel=2e-4)
    assert perplexity["bfloat16"] == pytest.approx(perplexity["float32"], rel=0.01)
    assert perplexity["float8"] == pytest.approx(perplexity["bfloat16"], rel=0.015)
    # Calibration leaves less than half of what rounding to the nearest does to each token's loss.
    engine = Engine(model, dtype="float8", calibrate=False)
    nearest = engine.losses(engine.vocabulary.encode(TEXT))
    whole = found["bfloat16"]
    assert np.var(found["float8"] - whole) < 0.5 * np.var(nearest - whole)
