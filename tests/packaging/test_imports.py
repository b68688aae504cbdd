"""Who may import whom (docs/design.md), read from the source; and what `import tkg` loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
MODULES = sorted(SRC.rglob("*.py"))

STANDARD = sys.stdlib_module_names
ARRAYS = {"numpy", "ml_dtypes"}
RUN = {"gguf", "tokenizers", "safetensors", "jinja2"}
COMMAND_LINE = RUN | {"rich", "typer"}

OURS = {
    "tkg.contract": {"tkg.contract"},
    "tkg.backends.registry": {"tkg.contract"},
    "tkg.backends.reference": {"tkg.contract", "tkg.backends.reference"},
    "tkg.backends.cpu": {"tkg.contract", "tkg.backends.cpu"},
    "tkg.backends.cuda": {"tkg.contract", "tkg.backends.cuda"},
    "tkg.backends.neuron": {"tkg.contract", "tkg.backends.neuron", "nkisim"},
    "tkg.testing": {"tkg", "tkg.contract", "tkg.backends.reference", "tkg.backends.registry"}
    | {"tkg.testing"},
    "tkg.runner": {"tkg", "tkg.runner"},
    "tkg.integrations": {"tkg", "tkg.integrations"},
    "tkg.parallel": {"tkg", "tkg.parallel"},
    "tkg.bench": {"tkg", "tkg.contract", "tkg.machine", "tkg.runner", "tkg.testing", "tkg.bench"},
    "tkg.bench.cuda": {"tkg.backends.registry", "tkg.bench", "tkg.machine", "tkg.testing"},
    "tkg.cli": {"tkg", "tkg.backends", "tkg.contract", "tkg.machine", "tkg.runner", "tkg.testing"}
    | {"tkg.bench", "tkg.cli", "nkisim"},
    "tkg": {
        "tkg",
        "tkg.api",
        "tkg.layer",
        "tkg.repeats",
        "tkg.explain",
        "tkg.machine",
        "tkg.contract",
    }
    | {"tkg.backends.registry", "tkg.backends.cpu"},
    "nkisim": {"nkisim"},
}
"""Each part of the package to what it may import of ours; the longest matching name counts."""

OTHERS = {
    "tkg.runner": ARRAYS | RUN,
    "tkg.bench.peers": ARRAYS | {"torch", "onnx", "onnxruntime", "openvino"},
    "tkg.bench.cuda": ARRAYS | {"torch", "triton"},
    "tkg.bench.engines": ARRAYS | RUN | {"accelerate", "torch", "transformers", "xllamacpp"},
    "tkg.bench.growth": ARRAYS | {"matplotlib"},
    "tkg.bench.roofline": ARRAYS | {"matplotlib"},
    "tkg.cli": ARRAYS | COMMAND_LINE,
    "tkg.testing.placed": ARRAYS | {"torch"},
    "tkg.integrations": ARRAYS | {"torch", "transformers"},
    "tkg.parallel": ARRAYS | {"torch"},
    "tkg.backends.cuda": ARRAYS | {"torch", "triton"},
    "tkg.backends.neuron": ARRAYS | {"nki"},
    "nkisim.arguments": ARRAYS | {"torch"},
    "nkisim.pictures": ARRAYS | {"matplotlib"},
    "nkisim.pytest_plugin": ARRAYS | {"pytest"},
}
"""Packages of others; NumPy and ml_dtypes for all parts that are not named."""


def name_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, those inside functions included.

    `from package import name` counts as `package.name` where that is a module of ours.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(path, node)
            for alias in node.names:
                inner = SRC.joinpath(*module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                yield f"{module}.{alias.name}" if is_module else module


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module that a `from` names; relative ones are the habit of nkisim only."""
    if node.level == 0:
        assert node.module
        return node.module
    package = path.relative_to(SRC).parts[: -node.level]
    assert package and package[0] == "nkisim", f"{path}: relative import"
    return ".".join((*package, *(node.module or "").split("."))).rstrip(".")


def part_of(module: str, parts: dict[str, set[str]]) -> str | None:
    """The longest name in `parts` that is the module or a package around it."""
    around = [part for part in parts if module == part or module.startswith(part + ".")]
    return max(around, key=len, default=None)


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 30
    assert {name_of(path) for path in MODULES} >= {"tkg", "tkg.api", "tkg.contract.errors"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_rules(path: Path) -> None:
    module = name_of(path)
    part = part_of(module, OURS)
    assert part is not None, f"{module} belongs to no part of the design"
    for name in imported(path):
        top = name.partition(".")[0]
        if top in STANDARD:
            continue
        if top in ("tkg", "nkisim"):
            allowed = OURS[part]
            ok = name in allowed or any(name.startswith(f"{a}.") for a in allowed - {"tkg"})
            assert ok, f"{module} may not import {name}"
        else:
            others = part_of(module, OTHERS)
            assert top in (OTHERS[others] if others else ARRAYS), f"{module} imports {top}"


def test_the_rules_can_fail(tmp_path: Path) -> None:
    """`imported` sees every way of writing an import."""
    file = tmp_path / "module.py"
    file.write_text(
        "import torch.nn\n"
        "from tkg.backends import cpu\n"
        "def f():\n"
        "    from tkg.api import run_block\n"
    )
    assert list(imported(file)) == ["torch.nn", "tkg.backends.cpu", "tkg.api"]


def test_relative_imports_are_resolved() -> None:
    isa = SRC / "nkisim" / "isa" / "dma.py"
    node = ast.parse("from ..enums import engine").body[0]
    assert isinstance(node, ast.ImportFrom)
    assert absolute(isa, node) == "nkisim.enums"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint(*set(sys.modules) - before)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_import_tkg_loads_numpy_and_ml_dtypes_only() -> None:
    loaded = loaded_by("import numpy, ml_dtypes\nbefore |= set(sys.modules)\nimport tkg")
    others = {name.partition(".")[0] for name in loaded} - STANDARD
    assert others == {"tkg"}


def test_import_tkg_loads_no_backend_core_runner_or_command_line() -> None:
    loaded = loaded_by("import tkg")
    for name in ("runner", "cli", "testing", "backends.reference", "backends.cpu._core"):
        assert f"tkg.{name}" not in loaded


def test_the_default_call_needs_no_torch() -> None:
    statement = (
        "import numpy as np, tkg\n"
        "tkg.output_projection_tkg(np.ones((2, 1, 1, 1), np.float32), np.ones((2, 3), np.float32),"
        " backend='reference')"
    )
    assert not {"torch", "triton", "transformers"} & loaded_by(statement)
