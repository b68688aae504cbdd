"""A plain checkout, where nothing was built or installed: `PYTHONPATH=src python`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python sources alone."""
    folder = tmp_path_factory.mktemp("checkout") / "src"
    shutil.copytree(SRC, folder, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    return folder


def said(checkout: Path, code: str) -> str:
    """What code prints there. Without `site`, as an editable installation would take over."""
    packages = Path(np.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": f"{checkout}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_it_is_the_checkout_that_is_imported(checkout: Path) -> None:
    assert said(checkout, "import tkg; print(tkg.__file__)").startswith(str(checkout))


def test_the_cpu_backend_says_why_it_is_unavailable(checkout: Path) -> None:
    code = "from tkg.backends import registry; print(dict(registry.status())['cpu'])"
    assert "the C++ core is not built in this installation" in said(checkout, code)


CALL = """
import numpy as np, tkg
call = np.ones((2, 1, 1, 1), np.float32), np.ones((2, 3), np.float32)
"""


def test_a_call_runs_on_a_backend_that_needs_no_core(checkout: Path) -> None:
    code = CALL + "print(tkg.output_projection_tkg(*call, backend='reference').tolist())"
    assert said(checkout, code).strip() == "[[2.0, 2.0, 2.0]]"


def test_a_call_on_the_cpu_backend_is_refused_with_the_reason(checkout: Path) -> None:
    code = CALL + (
        "try:\n    tkg.output_projection_tkg(*call)\nexcept tkg.Unsupported as e:\n    print(e)\n"
    )
    text = said(checkout, code)
    assert "the C++ core is not built" in text
    assert "pip install ." in text
    assert "reference" in text


def test_the_cuda_backend_answers_without_torch_and_triton_being_loaded(checkout: Path) -> None:
    code = (
        "import sys, tkg\nfrom tkg.backends import registry\n"
        "assert {'cuda', 'reference'} <= set(registry.names())\n"
        "print([name for name in ('torch', 'triton') if name in sys.modules])"
    )
    assert said(checkout, code).strip() == "[]"
