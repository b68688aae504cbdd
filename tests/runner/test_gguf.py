"""GGUF files that the gguf package writes from the tiny models, whole and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tests.runner import tiny_models
from tests.runner.test_model import TOKENS, logits_of, truth_and_budget
from tkg.runner.checkpoint import open_checkpoint
from tkg.runner.errors import ModelError
from tkg.runner.gguf_file import GGUFFile, gguf_name
from tkg.runner.model import Model

GGUF_FAMILIES = [name for name in tiny_models.FAMILIES if name != "qwen2-window"]
"""GGUF has no place for a window in some layers only."""


def written(path: Path, family: str = "llama", **changes: Any) -> Path:
    """A GGUF file of a family; `changes` as of its metadata."""
    return tiny_models.write_gguf(tiny_models.make(family), path / "m.gguf", changes=changes)


@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_logits_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    truth, budget = truth_and_budget(family)
    logits = logits_of(open_checkpoint(written(tmp_path, family)), [37, 1, 1, 1])
    assert np.abs(logits - truth[:40]).max() <= budget


def test_llama_rows_are_permuted_and_others_are_not(tmp_path: Path) -> None:
    checkpoint = GGUFFile(written(tmp_path, "llama"))
    model = tiny_models.make("llama")
    q = model.state_dict()["model.layers.0.self_attn.q_proj.weight"].numpy()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not np.array_equal(checkpoint.tensor(name), q)
    assert checkpoint.config.rope == "interleaved"


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
def test_quantised_weights_are_dequantised(tmp_path: Path, kind: str) -> None:
    quantisation = gguf.GGMLQuantizationType[kind]
    model = tiny_models.make("qwen2")
    path = tiny_models.write_gguf(model, tmp_path / "m.gguf", kind=quantisation)
    for value in model.parameters():
        if value.ndim == 2:
            raw = gguf.quants.quantize(value.detach().numpy(), quantisation)
            value.data = torch.from_numpy(gguf.quants.dequantize(raw, quantisation).copy())
    truth = tiny_models.logits(model, TOKENS[:40], torch.float64)
    _, budget = truth_and_budget("qwen2")
    assert np.abs(logits_of(open_checkpoint(path), [37, 1, 1, 1]) - truth).max() <= budget


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.expert_count": 8}, "expert_count must be 0; got 8"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type must be none or linear; .*'yarn'"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count must be 16; got 8"),
        ({"llama.rope.scale_linear": 2.0}, "rope.scale_linear must be 1.0; got 2.0"),
        ({"llama.attention.value_length": 8}, "attention.value_length must be 16; got 8"),
        ({"llama.attention.head_count_kv": [2, 1]}, r"head_count_kv must be .* got \[2, 1\]"),
        ({"llama.attention.head_count": "4"}, "head_count must be a positive integer.* got '4'"),
        ({"llama.attention.head_count": 0}, "head_count must be a positive integer.* got 0"),
        ({"llama.block_count": None}, "metadata llama.block_count is missing"),
        ({"llama.attention.head_count_kv": 3}, "query heads must be a multiple of KV heads"),
    ],
)
def test_unknown_kinds_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, "llama", **changes)
    with pytest.raises(ModelError, match=f"m.gguf: .*{message}"):
        GGUFFile(path)


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = "general.architecture must be llama or qwen2 or qwen3; got 'mamba'"
    with pytest.raises(ModelError, match=message):
        GGUFFile(path)


def test_layers_may_repeat_a_value(tmp_path: Path) -> None:
    path = written(tmp_path, "llama", **{"llama.attention.head_count_kv": [2, 2]})
    assert GGUFFile(path).config.heads.kv == 2


def test_wrong_sizes_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "llama", **{"llama.feed_forward_length": 128})
    message = r"mlp.gate_proj.weight must have shape \(128, 96\); got \(160, 96\)"
    with pytest.raises(ModelError, match=message):
        Model(open_checkpoint(path))


def test_missing_layers_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "llama", **{"llama.block_count": 3})
    with pytest.raises(ModelError, match="tensor blk.2.attn_norm.weight is missing"):
        GGUFFile(path)


def test_a_quantisation_that_gguf_cannot_undo_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "llama")
    checkpoint = GGUFFile(path)
    name = gguf_name("model.layers.0.mlp.up_proj.weight")
    tensor = checkpoint._tensors[name]
    checkpoint._tensors[name] = tensor._replace(tensor_type=gguf.GGMLQuantizationType.Q8_K)
    with pytest.raises(ModelError, match="ffn_up.weight is quantised as Q8_K.*another quant"):
        checkpoint.tensor("model.layers.0.mlp.up_proj.weight")


def test_not_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for content in (b"", b"GG", b"GGUF", b"#!/bin/sh\n" * 50):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="m.gguf: not a GGUF file, or damaged or cut short"):
            GGUFFile(path)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    cuts = {1, 8, 24, len(whole) - 1, *rng.integers(1, len(whole), 40).tolist()}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(ModelError, match=f"cut short: it ends at byte {cut}, within"):
            GGUFFile(path)


def test_a_damaged_header_never_does_worse_than_an_error(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    header = whole.index(b"tokenizer.ggml.tokens")
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(250):
        damaged = bytearray(whole)
        for at in rng.integers(0, header, 3):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            checkpoint = open_checkpoint(path)
            checkpoint.vocabulary()
            Model(checkpoint)  # some bytes do not matter, such as a name's
        except ModelError:
            refused += 1
    assert refused > 100
