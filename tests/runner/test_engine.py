"""Generation: the same tokens as transformers, the stops, the limits, the numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tkg
from tests.runner import tiny_models
from tkg.runner.engine import Engine
from tkg.runner.errors import ModelError
from tkg.runner.sampler import Sampler

PROMPT = list(range(5, 25))


def generated(engine: Engine, prompt: list[int], max_tokens: int = 12, **options: Any) -> list[int]:
    return list(engine.generate(prompt, max_tokens=max_tokens, sampler=Sampler(**options)))


@pytest.fixture
def engine(folder_of: Callable[[str], Path]) -> Engine:
    return Engine(folder_of("llama"), dtype="float32", kv_dtype="float32")


@pytest.mark.parametrize("length", [1, 20, 128, 129, 200])
def test_greedy_tokens_are_those_of_transformers(engine: Engine, length: int) -> None:
    prompt = np.random.default_rng(length).integers(3, tiny_models.VOCABULARY, length).tolist()
    model = tiny_models.make("llama")
    theirs = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=[0, 1],
        pad_token_id=0,
    )[0, length:]
    new = [token for token in theirs.tolist() if token not in (0, 1)]
    assert generated(engine, prompt) == new
    stats = engine.statistics
    assert (stats.prompt_tokens, stats.new_tokens) == (length, len(theirs))


@pytest.mark.parametrize("length", [2, 128, 129, 130, 200])
def test_losses_are_those_of_transformers(engine: Engine, length: int) -> None:
    text = np.random.default_rng(length).integers(3, tiny_models.VOCABULARY, length)
    logits = torch.from_numpy(
        tiny_models.logits(tiny_models.make("llama"), text.tolist(), torch.float64)
    )
    following = torch.from_numpy(text[1:])
    theirs = torch.nn.functional.cross_entropy(logits[:-1], following, reduction="none").numpy()
    ours = engine.losses(text.tolist())
    assert ours.shape == (length - 1,)
    # float32 logits of size 30 through two layers; what is wrong is off by tenths
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    assert np.abs(ours - np.roll(theirs, 1)).max() > 0.1 or length == 2


def test_losses_need_a_text(engine: Engine) -> None:
    with pytest.raises(ModelError, match="at least two tokens"):
        engine.losses([5])


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "float8"])
def test_flat_and_block_caches_give_the_same_tokens(
    folder_of: Callable[[str], Path], kv_dtype: str
) -> None:
    flat, block = (
        generated(Engine(folder_of("llama"), kv=kv, kv_dtype=kv_dtype), PROMPT, 30)
        for kv in ("flat", "block")
    )
    assert flat == block and len(flat) > 5


def test_an_end_token_ends_and_is_not_yielded(engine: Engine) -> None:
    whole = generated(engine, PROMPT)
    ids = engine.vocabulary.end_ids | {whole[4]}
    object.__setattr__(engine.vocabulary, "end_ids", ids)
    assert generated(engine, PROMPT) == whole[: whole.index(whole[4])]


def test_generations_do_not_see_each_other(engine: Engine) -> None:
    first = generated(engine, PROMPT)
    generated(engine, PROMPT[::-1])
    assert generated(engine, PROMPT) == first


def test_seeds_repeat(engine: Engine) -> None:
    one, same, other = (generated(engine, PROMPT, temperature=2.0, seed=s) for s in (1, 1, 2))
    assert one == same != other


def test_the_context_ends_the_text(engine: Engine) -> None:
    object.__setattr__(engine.vocabulary, "end_ids", frozenset())
    prompt = (PROMPT * 20)[: tiny_models.CONTEXT - 3]
    assert len(generated(engine, prompt, 50)) == 3


def test_statistics_are_there_while_it_runs(engine: Engine) -> None:
    tokens = engine.generate(PROMPT, max_tokens=9, sampler=Sampler())
    next(tokens)
    assert engine.statistics.new_tokens == 1
    assert engine.statistics.decode_seconds == 0
    next(tokens)
    stats = engine.statistics
    assert (stats.prompt_tokens, stats.new_tokens) == (20, 2)
    assert stats.prompt_seconds > 0 and stats.decode_seconds > 0
    names = {"embedding, RoPE tables", "attention block", "MLP", "lm_head", "sampling"}
    assert set(stats.stages) == names
    assert sum(stats.stages.values()) <= stats.prompt_seconds + stats.decode_seconds


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt has no tokens"),
        ([5] * 256, "shorter than the model's context of 256 tokens; got 256"),
        ([5, 288], "token 288 of the prompt is outside the model's vocabulary of 288"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(
    engine: Engine, prompt: list[int], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        generated(engine, prompt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype must be one of float32, float16, bfloat16, float8; got 'int4'"),
        ({"backend": "gpu"}, "backend must be None or one of .*; got 'gpu'"),
        ({"kv": "ring"}, "layout must be one of flat, block; got 'ring'"),
        ({"kv_dtype": "int8"}, "dtype must be one of .*; got 'int8'"),
    ],
)
def test_wrong_options_are_refused(
    folder_of: Callable[[str], Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generated(Engine(folder_of("llama"), **options), PROMPT)


def test_a_backend_that_is_not_here_is_refused(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(tkg.Unsupported, match="cuda"):
        Engine(folder_of("llama"), backend="cuda")


def test_max_tokens_must_be_positive(engine: Engine) -> None:
    with pytest.raises(ValueError, match="max_tokens must be at least 1; got 0"):
        generated(engine, PROMPT, 0)
