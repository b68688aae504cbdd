"""The model's logits against transformers', which nobody here wrote."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tkg
from tests.runner import tiny_models
from tkg.runner.checkpoint import Checkpoint, open_checkpoint
from tkg.runner.kv_cache import make_caches
from tkg.runner.layer import rms_norm, silu
from tkg.runner.model import Model

TOKENS = np.random.default_rng(0).integers(0, tiny_models.VOCABULARY, 150).tolist()
STEPS = {
    "one token": [1],
    "token by token": [1] * 12,
    "prompt, then decode": [37, 1, 1, 1],
    "chunks of 128": [128, 20, 1, 1],
    "speculative": [60, 5, 5, 1, 5],
}


def logits_of(
    checkpoint: Checkpoint, steps: Sequence[int], *, backend: str | None = None, kv: str = "flat"
) -> np.ndarray:
    """Logits of the first `sum(steps)` of `TOKENS`, taken in steps of these lengths."""
    model = Model(checkpoint, dtype="float32", backend=backend)
    caches = make_caches(model.config, capacity=160, layout=kv, dtype="float32")
    parts, first = [], 0
    for length in steps:
        tokens = np.array([TOKENS[first : first + length]])
        positions = np.arange(first, first + length)[None]
        parts.append(model.logits(model.forward(tokens, positions, caches))[0])
        first += length
    return np.concatenate(parts)


@functools.cache
def truth_and_budget(family: str) -> tuple[np.ndarray, float]:
    """transformers' logits of `TOKENS` in float64, and how far from them float32 may be.

    The yardstick is transformers' own float32 error; ours is independent of it, and the truth
    shares with it the rounding of RoPE's angles to float32, which costs as much again: hence 8.
    """
    model = tiny_models.make(family)
    truth = tiny_models.logits(model, TOKENS, torch.float64)
    own = tiny_models.logits(model, TOKENS, torch.float32)
    return truth, 8 * float(np.abs(own - truth).max())


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_logits_are_those_of_transformers(
    folder_of: Callable[[str], Path], backend: str, family: str
) -> None:
    checkpoint = open_checkpoint(folder_of(family))
    truth, budget = truth_and_budget(family)
    logits = logits_of(checkpoint, STEPS["prompt, then decode"], backend=backend)
    assert np.abs(logits - truth[:40]).max() <= budget


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_the_steps_do_not_matter(folder_of: Callable[[str], Path], steps: list[int]) -> None:
    checkpoint = open_checkpoint(folder_of("llama"))
    truth, budget = truth_and_budget("llama")
    assert np.abs(logits_of(checkpoint, steps) - truth[: sum(steps)]).max() <= budget


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_flat_and_block_caches_give_the_same_bits(
    folder_of: Callable[[str], Path], family: str
) -> None:
    checkpoint = open_checkpoint(folder_of(family))
    flat, block = (logits_of(checkpoint, [128, 5, 1, 1], kv=kv) for kv in ("flat", "block"))
    np.testing.assert_array_equal(flat, block)


CONTROLS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "rope style": ("llama", lambda config: {"rope": "interleaved"}),
    "rope frequencies": ("llama", lambda config: {"inv_freq": config.inv_freq * 1.001}),
    "unscaled rope": ("llama-3", lambda config: {"inv_freq": 500.0 ** (-np.arange(8) / 8)}),
    "norm eps": ("llama", lambda config: {"norm_eps": 0.051}),
    "no window": ("mistral-window", lambda config: {"windows": (None, None)}),
    "window off by one": ("mistral-window", lambda config: {"windows": (5, 6)}),
    "window in every layer": ("qwen2-window", lambda config: {"windows": (7, 7)}),
    "no QK norm": ("qwen3", lambda config: {"architecture": "qwen2"}),
}
"""A family, and a wrong config for it."""


@pytest.mark.parametrize("control", CONTROLS)
def test_a_wrong_model_is_noticed(folder_of: Callable[[str], Path], control: str) -> None:
    family, wrong = CONTROLS[control]
    checkpoint = open_checkpoint(folder_of(family))
    checkpoint.config = replace(checkpoint.config, **wrong(checkpoint.config))
    truth, budget = truth_and_budget(family)
    assert np.abs(logits_of(checkpoint, [37, 1, 1, 1]) - truth[:40]).max() > 4 * budget


def test_rows_of_a_batch_are_independent(folder_of: Callable[[str], Path]) -> None:
    model = Model(open_checkpoint(folder_of("qwen2")), dtype="float32")
    heads = model.config.heads

    def run(rows: list[list[int]]) -> np.ndarray:
        caches = [
            tkg.KVCache.flat(
                batch=len(rows), capacity=9, kv_heads=heads.kv, d_head=heads.d_head, dtype="float32"
            )
            for _ in range(model.config.layers)
        ]
        positions = np.tile(np.arange(9), (len(rows), 1))
        return model.forward(np.array(rows), positions, caches)

    rows = [TOKENS[:9], TOKENS[20:29], TOKENS[40:49]]
    together = run(rows)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(run([row])[0], together[i])


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8"])
def test_narrow_weights_are_the_rounded_ones(
    folder_of: Callable[[str], Path], family: str, dtype: str
) -> None:
    narrow = Model(open_checkpoint(folder_of(family)), dtype=dtype)
    caches = make_caches(narrow.config, capacity=40, layout="flat", dtype="float32")
    hidden = narrow.forward(np.array([TOKENS[:40]]), np.arange(40)[None], caches)
    logits = narrow.logits(hidden)[0]
    exact, budget = truth_and_budget(family)
    model = tiny_models.make(family)
    head = tiny_models.round_weights(model, dtype)
    truth = tiny_models.hidden(model, TOKENS[:40]) @ head.T
    assert np.abs(logits - truth).max() <= budget
    assert np.abs(logits - exact[:40]).max() > 4 * budget


def test_norm_and_silu_are_their_formulas() -> None:
    x = np.array([[-200.0, -1.0, 0.0, 3.0]], np.float32)
    np.testing.assert_allclose(silu(x), [[0.0, -0.26894143, 0.0, 2.8577225]], rtol=1e-6)
    weight = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    mean = (40000.0 + 1.0 + 9.0) / 4
    want = x * weight / np.sqrt(mean + 0.5)
    np.testing.assert_allclose(rms_norm(x, weight, 0.5), want, rtol=1e-6)
