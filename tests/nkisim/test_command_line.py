"""`python -m nkisim run` and `python -m nkisim lint`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nkisim
from nkisim import kernel
from nkisim.__main__ import TARGET, main

DOUBLE = """\
import sys

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np


@nki.jit
def double(x):
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.tensor_tensor(dst=tile, data1=tile, data2=tile, op=nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out


if __name__ == "__main__":
    x = np.ones((128, 4), np.float32)
    assert double(x).shape == double(x).shape
    print("given", sys.argv[1:], nisa.get_nc_version().name)
"""

UNINITIALISED = DOUBLE.replace("    nisa.dma_copy(dst=tile, src=x)\n", "")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path for the script; what a run changes in the process is put back."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(TARGET, "")
    monkeypatch.delenv(TARGET)
    former, observers, there = nkisim.options(), list(kernel.on_report), "nki" in sys.modules
    yield tmp_path / "script.py"
    if not there:
        nkisim.uninstall()
    kernel.on_report[:] = observers
    nkisim.set_options(checks=former.checks, target=former.target)


def run(script: Path, *options: str, text: str = DOUBLE, arguments: tuple[str, ...] = ()) -> int:
    script.write_text(text)
    return main(["run", *options, str(script), *arguments])


def test_as_a_process(tmp_path: Path) -> None:
    """The script is __main__, imports what lies beside it, and gets its own options."""
    (tmp_path / "beside.py").write_text("WORD = 'beside'\n")
    text = DOUBLE.replace("import sys\n", "import sys\nfrom beside import WORD\n", 1)
    (tmp_path / "script.py").write_text(text + "    print(WORD)\n    sys.exit(3)\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(nkisim.__file__).parents[1])}
    environment.pop(TARGET, None)
    command = [sys.executable, "-W", "error", "-m", "nkisim", "run", "script.py", "--trace", "7"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout.endswith("given ['--trace', '7'] gen3\nbeside\n")
    assert done.stdout.count("double on trn2") == 2
    assert done.stderr == ""


def test_the_target_is_chosen(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(script, "--target", "trn1") == 0
    out = capsys.readouterr().out
    assert "double on trn1" in out and "gen2" in out
    with pytest.raises(SystemExit) as ended:
        run(script, "--target", "trn9")
    assert ended.value.code == 2
    assert "trn9" in capsys.readouterr().err


def test_a_hazard_stops_the_script(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(nkisim.NkiHazardError, match=r"script\.py:13: tensor_tensor"):
        run(script, text=UNINITIALISED)
    assert "given" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--checks", "report"), 0),
        (("--checks", "report", "--strict"), 1),
        (("--checks", "off", "--strict"), 0),
    ],
)
def test_findings_fail_a_strict_run_only(
    script: Path, options: tuple[str, ...], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, *options, text=UNINITIALISED) == status
    out = capsys.readouterr().out
    assert ("uninitialised read" in out) == ("report" in options)
    assert "given" in out


def test_the_scripts_own_exit_status_comes_first(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, "--strict", text=DOUBLE + "    sys.exit(3)\n") == 3
    assert run(script, text=DOUBLE + "    sys.exit()\n") == 0
    assert run(script, text=DOUBLE + "    sys.exit('no more')\n") == 1
    assert capsys.readouterr().err == "no more\n"


def test_files_for_each_kernel_run(script: Path, tmp_path: Path) -> None:
    kinds = {"--trace": "out.json", "--plot": "time.png", "--memory-map": "sbuf.png"}
    options = [word for kind, name in kinds.items() for word in (kind, str(tmp_path / name))]
    assert run(script, *options) == 0
    for name in ("out.json", "out-2.json"):
        text = json.dumps(json.loads((tmp_path / name).read_text()))
        assert "tensor_tensor" in text and "script.py:14" in text
    for name in ("time.png", "time-2.png", "sbuf.png", "sbuf-2.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_lint_of_a_script_comes_first(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = DOUBLE.replace("    return out", "    return out if x is not None else 0")
    assert run(script, "--lint", text=text) == 0
    assert capsys.readouterr().out.startswith(f"{script}:16: identity: ")
    assert run(script, "--lint", "--strict", text=text) == 1


def test_lint_prints_the_violations_of_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean, other = tmp_path / "clean.py", tmp_path / "other.py"
    clean.write_text(DOUBLE)
    other.write_text(DOUBLE.replace("x.shape,", "x.shape if x is x else 0,"))
    assert main(["lint", str(clean)]) == 0
    assert main(["lint", str(clean), str(other)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{other}:11", f"{other}:13"]
