"""A model's files, whatever their format."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from tkg.runner.config import ModelConfig
from tkg.runner.errors import ModelError
from tkg.runner.gguf_file import GGUFFile
from tkg.runner.safetensors_folder import SafetensorsFolder
from tkg.runner.vocabulary import Vocabulary


class Checkpoint(Protocol):
    """Tensors by Hugging Face's names, such as `model.layers.0.self_attn.q_proj.weight`.

    Attributes:
        path: the file or folder.
        config: the model's sizes.
    """

    path: Path
    config: ModelConfig

    def has(self, name: str) -> bool:
        """Whether there is a tensor `name`."""
        ...

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as float32, float16 or bfloat16; matrices are `[out, in]`."""
        ...

    def vocabulary(self) -> Vocabulary:
        """The tokenizer, the tokens that end a text, and the chat template."""
        ...


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`: a GGUF file, or a folder with safetensors files.

    Raises:
        ModelError: it is neither, or it is damaged, or the model is of an unknown kind.
    """
    if path.is_dir():
        return SafetensorsFolder(path)
    if path.is_file():
        return GGUFFile(path)
    raise ModelError(
        f"{path}: no such file or folder. Give a .gguf file, or a folder with config.json, "
        "tokenizer.json and *.safetensors"
    )
