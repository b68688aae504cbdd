"""The default model itself, downloaded as a user's would be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from tests.runner import tiny_models
from tests.runner.texts import many
from tests.runner.tiny_models import permuted
from tkg.runner.checkpoint import open_checkpoint
from tkg.runner.download import default_model
from tkg.runner.engine import Engine
from tkg.runner.gguf_file import gguf_name
from tkg.runner.sampler import Sampler
from tkg.runner.vocabulary import TextStream

pytestmark = pytest.mark.model

PROMPT = "The capital of France is"
TOKENS = np.random.default_rng(0).integers(17, 49152, 40).tolist()
BEGINNING = " Paris.\n\nThe answer is: 2018-01-22 12:12:53."
"""Greedy float32 text of transformers 5 on the same dequantised weights."""


@pytest.fixture(scope="module")
def path() -> Path:
    return default_model(lambda done, total: None)


def text_of(engine: Engine, prompt: str, max_tokens: int) -> str:
    ids = engine.vocabulary.encode(prompt)
    stream = TextStream(engine.vocabulary, ids)
    tokens = engine.generate(ids, max_tokens=max_tokens, sampler=Sampler())
    return "".join(stream.push(token) for token in tokens)


@pytest.fixture(scope="module", params=["flat", "block"])
def engine(request: pytest.FixtureRequest, path: Path) -> Engine:
    return Engine(path, dtype="float32", kv=request.param, kv_dtype="float32")


def test_greedy_float32_text(engine: Engine) -> None:
    assert text_of(engine, PROMPT, 40).startswith(BEGINNING)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_narrow_weights_still_know_it(path: Path, dtype: str) -> None:
    engine = Engine(path, dtype=dtype, kv_dtype=dtype, calibrate=False)  # which takes its time
    assert text_of(engine, PROMPT, 2) == " Paris."


def transformers_model(path: Path) -> Any:
    """transformers' Llama with the file's dequantised weights."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config).eval()
    weights = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }
    state = model.state_dict()
    for name in state:
        values = weights[gguf_name(name.replace("lm_head", "model.embed_tokens"))]
        heads = {"q_proj": 9, "k_proj": 3}.get(name.split(".")[-2])
        rows = values.copy() if heads is None else unpermuted(values, heads)
        state[name] = torch.from_numpy(rows)
    model.load_state_dict(state)
    return model


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `permuted`: neighbours become halves again."""
    order = permuted(np.arange(len(rows)), heads)
    back = np.empty_like(rows)
    back[order] = rows
    return back


@pytest.fixture(scope="module")
def single_and_truth(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """transformers' logits of `TOKENS` in float32 and in float64."""
    model = transformers_model(path)
    single = tiny_models.logits(model, TOKENS, torch.float32)
    return single, tiny_models.logits(model, TOKENS, torch.float64)


def test_logits_are_those_of_transformers(
    engine: Engine, single_and_truth: tuple[np.ndarray, np.ndarray]
) -> None:
    single, truth = single_and_truth
    caches = engine._caches(len(TOKENS))
    hidden = engine.model.forward(np.array([TOKENS]), np.arange(len(TOKENS))[None], caches)
    logits = engine.model.logits(hidden)[0]
    # transformers' own float32 error, twice for two roundings, and RoPE's angles: float32 there.
    assert np.abs(logits - truth).max() <= 8 * np.abs(single - truth).max()


def test_tokens_are_those_of_transformers(path: Path) -> None:
    ours = open_checkpoint(path).vocabulary()
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers ignores tokenizer.ggml.pre, by which digits stand alone. The merges hide that,
    # but not for digits that are not ASCII, nor for two spaces before a digit.
    texts = [text for text in many(400, seed=5) if not re.search(r"\s\s\d|[½²٣]", text)]
    assert len(texts) > 350
    for text in texts:
        assert ours.encode(text) == theirs(text)["input_ids"], repr(text)
        assert ours.decode(ours.encode(text)) == text


def test_the_file_is_what_it_says(path: Path) -> None:
    config = open_checkpoint(path).config
    heads = config.heads
    assert (heads.q, heads.kv, heads.d_head, config.hidden) == (9, 3, 64, 576)
    assert config.tied and config.rope == "interleaved"
    assert config.norm_eps == pytest.approx(1e-5)
    np.testing.assert_allclose(config.inv_freq, 1e5 ** (-np.arange(32) / 32), rtol=1e-12)
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds == {"F32", "Q4_1", "Q8_0"}


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from tkg.cli.main import app; app()"
    command = [sys.executable, "-c", program, "generate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_the_command_line_says_it(path: Path) -> None:
    done = command_line(PROMPT, "--raw", "--dtype", "float32", "--max-tokens", "40")
    assert done.stdout.startswith(BEGINNING)
    assert "tokens/s" in done.stderr and path.name in done.stderr


def test_the_command_line_with_no_other_argument_chats(path: Path) -> None:
    done = command_line("What is the capital of France?")
    assert done.stdout == "The capital of France is Paris."
    assert f"{path.name}, bfloat16 weights, flat bfloat16 cache, cpu backend" in done.stderr
