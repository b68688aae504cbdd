"""Safetensors folders: one file or many, every float dtype, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.runner import tiny_models
from tests.runner.test_model import TOKENS, logits_of
from tkg.runner.checkpoint import open_checkpoint
from tkg.runner.errors import ModelError
from tkg.runner.model import Model
from tkg.runner.safetensors_folder import SafetensorsFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A llama's folder that a test may damage."""
    return tiny_models.save(tiny_models.make("llama"), tmp_path / "model")


def test_many_files_are_as_good_as_one(folder: Path, tmp_path: Path) -> None:
    model = tiny_models.make("llama")
    model.save_pretrained(tmp_path / "parts", max_shard_size="200KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    one, many = (logits_of(open_checkpoint(p), [9, 1]) for p in (folder, tmp_path / "parts"))
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_files_are_read_exactly(tmp_path: Path, dtype: str) -> None:
    narrow = tiny_models.make("llama").to(getattr(torch, dtype))
    narrow.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    want = narrow.state_dict()[name].float().numpy()
    kind = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    assert checkpoint.tensor(name).dtype == kind
    np.testing.assert_array_equal(checkpoint.tensor(name).astype(np.float32), want)
    wide = tiny_models.make("llama")
    wide.load_state_dict(narrow.state_dict())  # keeps RoPE's frequencies, which .to() rounds
    truth = tiny_models.logits(wide, TOKENS[:10], torch.float64)
    own = tiny_models.logits(wide, TOKENS[:10], torch.float32)
    assert np.abs(logits_of(checkpoint, [9, 1]) - truth).max() <= 8 * np.abs(own - truth).max()


def test_a_dtype_that_is_no_float_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)
    save_file(tensors, file)
    with pytest.raises(ModelError, match="model.norm.weight must be F32, F16, BF16; got I32"):
        Model(open_checkpoint(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.down_proj.weight"][3, 4] = value
    save_file(tensors, file)
    with pytest.raises(ModelError, match="down_proj.weight holds values that are not finite"):
        Model(open_checkpoint(folder))


def test_missing_tensors_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    save_file(tensors, file)
    message = "tensor model.layers.1.self_attn.o_proj.weight is missing"
    with pytest.raises(ModelError, match=message):
        Model(open_checkpoint(folder))


def test_truncated_files_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    cuts = {0, 4, 8, 100, len(whole) - 1, *np.random.default_rng(0).integers(0, len(whole), 20)}
    for cut in cuts:
        file.write_bytes(whole[:cut])
        with pytest.raises(ModelError, match="model.safetensors: damaged or cut short"):
            SafetensorsFolder(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json: missing"),
        ("config.json", "{", "config.json: not JSON"),
        ("config.json", "[]", "config.json: must be a JSON object; got list"),
        ("model.safetensors", None, r"no \*.safetensors file in this folder"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}', "b.*: missing"),
    ],
)
def test_damaged_folders_are_refused(
    folder: Path, name: str, content: str | None, message: str
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        SafetensorsFolder(folder)


@pytest.mark.parametrize(("content", "message"), [(None, "missing"), ("{}", "not a tokenizer")])
def test_damaged_tokenizers_are_refused(folder: Path, content: str | None, message: str) -> None:
    path = folder / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelError, match=f"tokenizer.json: {message}"):
        SafetensorsFolder(folder).vocabulary()


def test_end_tokens_come_from_every_file(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    ids = SafetensorsFolder(folder).vocabulary().end_ids
    assert ids == {7, 9, 0, 1}  # and <|endoftext|>, and config.json's <|im_end|>


def test_chat_templates_may_be_in_three_places(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    content = {"chat_template": named, "eos_token": {"content": "<|im_end|>"}}
    settings.write_text(json.dumps(content))
    vocabulary = SafetensorsFolder(folder).vocabulary()
    assert (vocabulary.chat_template, vocabulary.eos) == ("d", "<|im_end|>")
    (folder / "chat_template.jinja").write_text("own file")
    assert SafetensorsFolder(folder).vocabulary().chat_template == "own file"
    settings.unlink()
    (folder / "chat_template.jinja").unlink()
    assert SafetensorsFolder(folder).vocabulary().chat_template is None


def test_neither_file_nor_folder(tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match="nothing: no such file or folder. Give a .gguf file"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(ModelError, match="config.json: not a GGUF file"):
        open_checkpoint(folder_of("llama") / "config.json")
