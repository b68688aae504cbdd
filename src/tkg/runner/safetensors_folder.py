"""A model in a folder as Hugging Face lays it out: config.json, tokenizer.json, *.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from tkg.runner.errors import ModelError
from tkg.runner.huggingface_config import model_config
from tkg.runner.vocabulary import Vocabulary, end_ids

INDEX = "model.safetensors.index.json"
DTYPES = ("F32", "F16", "BF16")


class SafetensorsFolder:
    """A checkpoint in a folder.

    Raises:
        ModelError: a file is missing or damaged, or the runner does not know the model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        settings = self._json("config.json")
        try:
            self.config = model_config(settings)
        except ModelError as error:
            raise ModelError(f"{path / 'config.json'}: {error}") from error
        self._settings = settings
        self._files = {name: file for file in self._open_files() for name in file.keys()}

    def has(self, name: str) -> bool:
        """Whether there is a tensor `name`."""
        return name in self._files

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as float32, float16 or bfloat16; matrices are `[out, in]`."""
        if name not in self._files:
            raise ModelError(f"{self.path}: tensor {name} is missing")
        file = self._files[name]
        dtype = file.get_slice(name).get_dtype()
        if dtype not in DTYPES:
            accepted = ", ".join(DTYPES)
            raise ModelError(f"{self.path}: {name} must be {accepted}; got {dtype}")
        return file.get_tensor(name)

    def vocabulary(self) -> Vocabulary:
        """The tokenizer of tokenizer.json, and what the folder's other files say of chats."""
        path = self._existing("tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ModelError(f"{path}: not a tokenizer: {error}") from error
        settings = self._json("tokenizer_config.json", optional=True)
        generation = self._json("generation_config.json", optional=True)
        bos, eos = (_token_text(settings.get(f"{name}_token")) for name in ("bos", "eos"))
        declared = [*_ids(self._settings), *_ids(generation), tokenizer.token_to_id(eos)]
        return Vocabulary(
            tokenizer, end_ids(tokenizer, declared), bos, eos, self._chat_template(settings)
        )

    def _chat_template(self, settings: dict[str, Any]) -> str | None:
        file = self.path / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        template = settings.get("chat_template")
        if isinstance(template, list):  # named templates; the one called default is for chats
            named = {entry["name"]: entry["template"] for entry in template}
            return named.get("default")
        return template

    def _open_files(self) -> list[Any]:
        """A handle of each safetensors file; the index, if there is one, says which."""
        if (self.path / INDEX).is_file():
            names = sorted(set(self._json(INDEX).get("weight_map", {}).values()))
        else:
            names = sorted(path.name for path in self.path.glob("*.safetensors"))
        if not names:
            raise ModelError(f"{self.path}: no *.safetensors file in this folder")
        return [self._open(self._existing(name)) for name in names]

    def _open(self, path: Path) -> Any:
        try:
            return safe_open(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: damaged or cut short: {error}") from error

    def _existing(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise ModelError(f"{path}: missing")
        return path

    def _json(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        if optional and not (self.path / name).is_file():
            return {}
        path = self._existing(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path}: not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ModelError(f"{path}: must be a JSON object; got {type(content).__name__}")
        return content


def _ids(settings: dict[str, Any]) -> list[int]:
    """`eos_token_id`: a number, a list of them, or nothing."""
    value = settings.get("eos_token_id")
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _token_text(token: Any) -> str:
    """A special token of tokenizer_config.json: its text, or an object that holds it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token or ""
