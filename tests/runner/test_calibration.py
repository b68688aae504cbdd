"""Calibration: what the projections take in, against transformers; and what it is good for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runner import tiny_models
from tkg.runner.calibration import Calibration
from tkg.runner.calibration_text import TEXT
from tkg.runner.checkpoint import open_checkpoint
from tkg.runner.engine import Engine
from tkg.runner.errors import ModelError
from tkg.runner.kv_cache import make_caches
from tkg.runner.model import Model

TOKENS = np.random.default_rng(1).integers(3, tiny_models.VOCABULARY, 301).tolist()
ROWS = [TOKENS[:100], TOKENS[100:200], TOKENS[200:300]]
"""As 301 tokens are read: in three rows of at most 128, without the last one."""

INPUTS = {
    "qkv": "self_attn.q_proj",
    "out": "self_attn.o_proj",
    "gate_up": "mlp.gate_proj",
    "down": "mlp.down_proj",
}


def taken_in(family: str) -> dict[str, np.ndarray]:
    """What transformers' linear modules take in, `[300, in]` float64, by name."""
    model = tiny_models.make(family).to(torch.float64)
    seen: dict[str, np.ndarray] = {}

    def note(name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name] = inputs[0].reshape(-1, inputs[0].shape[-1]).numpy()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(note(name))
    with torch.no_grad():
        model(torch.tensor(ROWS), use_cache=False)
    return seen


@pytest.mark.parametrize("family", ["llama", "llama-biases", "mistral-window", "qwen3"])
def test_moments_are_those_of_transformers_inputs(
    folder_of: Callable[[str], Path], family: str
) -> None:
    checkpoint = open_checkpoint(folder_of(family))
    table = checkpoint.tensor("model.embed_tokens.weight")
    calibration = Calibration(checkpoint, table, TOKENS)
    seen = taken_in(family)

    def compare(moments: np.ndarray | None, name: str) -> None:
        assert moments is not None and moments.dtype == np.float32
        want = seen[name].T @ seen[name]
        np.testing.assert_allclose(moments, want, rtol=0, atol=1e-4 * np.diag(want).max())

    for i in range(checkpoint.config.layers):
        found = calibration.layer(i)
        for field, module in INPUTS.items():
            compare(getattr(found, field), f"model.layers.{i}.{module}")
    norm = checkpoint.tensor("model.norm.weight")[None]
    compare(calibration.head(norm), "lm_head")


def logits(model: Model, tokens: list[int]) -> np.ndarray:
    caches = make_caches(model.config, capacity=len(tokens), layout="flat", dtype="float32")
    hidden = model.forward(np.array([tokens]), np.arange(len(tokens))[None], caches)
    return model.logits(hidden)[0]


@pytest.mark.parametrize("family", ["llama", "llama-tied", "llama-biases", "qwen3"])
def test_logits_are_nearer_to_those_of_the_whole_weights(
    folder_of: Callable[[str], Path], family: str
) -> None:
    """On tokens that calibration has not seen, and the same bits every time."""
    checkpoint = open_checkpoint(folder_of(family))
    unseen = np.random.default_rng(2).integers(3, tiny_models.VOCABULARY, 120).tolist()
    exact = tiny_models.logits(tiny_models.make(family), unseen, torch.float64)
    nearest, calibrated, again = (
        logits(Model(checkpoint, dtype="float8", calibration=text), unseen)
        for text in (None, TOKENS * 5, TOKENS * 5)
    )
    np.testing.assert_array_equal(calibrated, again)
    # Random weights have little to calibrate: their inputs are hardly related.
    assert np.std(calibrated - exact) < 0.98 * np.std(nearest - exact)


def test_float8_is_calibrated_unless_told(folder_of: Callable[[str], Path]) -> None:
    path = folder_of("llama")
    checkpoint = open_checkpoint(path)
    ids = checkpoint.vocabulary().encode(TEXT)
    prompt = TOKENS[:20]
    calibrated, nearest = (
        logits(Model(checkpoint, dtype="float8", calibration=text), prompt) for text in (ids, None)
    )
    found = logits(Engine(path, dtype="float8").model, prompt)
    np.testing.assert_array_equal(found, calibrated)
    found = logits(Engine(path, dtype="float8", calibrate=False).model, prompt)
    np.testing.assert_array_equal(found, nearest)
    assert np.abs(calibrated - nearest).max() > 0.01


def test_a_context_shorter_than_a_row(folder_of: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(folder_of("llama"))
    table = checkpoint.tensor("model.embed_tokens.weight")
    want = Calibration(checkpoint, table, TOKENS[:3]).layer(0)
    checkpoint.config = replace(checkpoint.config, context=3)
    found = Calibration(checkpoint, table, TOKENS[:3]).layer(0)
    np.testing.assert_array_equal(found.down, want.down)
    rows = Calibration(checkpoint, table, [*TOKENS[:3], *TOKENS[:3]]).layer(0)
    assert rows.down is not None and want.down is not None
    np.testing.assert_allclose(rows.down, 2 * want.down, rtol=1e-5, atol=1e-5)


def test_activations_that_overflow_are_refused(folder_of: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(folder_of("llama"))
    read = checkpoint.tensor
    name = "model.layers.1.post_attention_layernorm.weight"

    def tensor(wanted: str) -> np.ndarray:
        return read(wanted) * np.float32(1e20 if wanted == name else 1)

    checkpoint.tensor = tensor  # pyright: ignore
    with pytest.raises(ModelError, match="llama.*layer 1 takes in are not finite.*--no-calibrate"):
        Model(checkpoint, dtype="float8", calibration=TOKENS)
    Model(checkpoint, dtype="float8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "the calibration text has no tokens"),
        ([5, 288], "token 288 of the calibration text is outside the model's vocabulary of 288"),
    ],
)
def test_texts_that_do_not_fit_are_refused(
    folder_of: Callable[[str], Path], text: list[int], message: str
) -> None:
    checkpoint = open_checkpoint(folder_of("llama"))
    table = checkpoint.tensor("model.embed_tokens.weight")
    with pytest.raises(ModelError, match=message):
        Calibration(checkpoint, table, text)


def test_the_text_is_not_the_one_that_judges() -> None:
    from tkg.bench.passage import TEXT as JUDGE

    def phrases(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    assert len(phrases(TEXT)) > 1000
    assert not phrases(TEXT) & phrases(JUDGE)
