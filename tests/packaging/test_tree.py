"""The shape of the source: sizes, names, includes, documentation."""

from __future__ import annotations

import ast
import inspect
import re
import statistics
from pathlib import Path

import pytest

import tkg

ROOT = Path(__file__).parents[2]
PYTHON = sorted((ROOT / "src").rglob("*.py"))
CPP = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp"))
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("src", "csrc", "tests", "docs", "examples", "benchmarks", ".ci")
TEXT = (".py", ".h", ".cpp", ".md", ".toml", ".txt", ".svg", ".cmake", ".yaml", "")


def tree() -> list[Path]:
    """Every text file of the project."""
    # In a git worktree .git is a file.
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [p for p in files if p.suffix in TEXT and "__pycache__" not in p.parts]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def functions() -> list[tuple[Path, ast.FunctionDef]]:
    return [
        (path, node)
        for path in PYTHON
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]


def statements(node: ast.FunctionDef) -> int:
    """Lines of a function's body, its docstring left out."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_files_are_small() -> None:
    """Median under 150 lines, cap 400; kernels may have 600."""
    for path in [*PYTHON, *CPP]:
        assert lines(path) <= (600 if "kernels" in path.parts else 400), shown(path)
    assert statistics.median(map(lines, [*PYTHON, *CPP])) < 150


def test_functions_are_short() -> None:
    sizes = {f"{shown(path)}: {node.name}": statements(node) for path, node in functions()}
    assert len(sizes) > 100
    long = {name: size for name, size in sizes.items() if size > 40}
    assert len(long) <= len(sizes) * 0.02, long
    # The block's kernel names its stages one after another; that is its text.
    sizes.pop("src/tkg/backends/neuron/attention_block_tkg.py: attention_block_tkg")
    assert max(sizes.values()) <= 60, long


def test_functions_have_few_positional_parameters() -> None:
    for path, node in functions():
        count = len(node.args.posonlyargs) + len(node.args.args)
        drop_in = node.name in ("attention_block_tkg", "output_projection_tkg")  # their originals'
        command = path.parent.name == "cli"  # a command's parameters are its options
        nki = shown(path).startswith(("src/nkisim/isa/", "src/nkisim/collectives"))  # NKI's own
        triton = "cuda/kernels" in shown(path)  # Triton knows no keyword-only parameters
        ok = count <= 7 or drop_in or command or nki or triton
        assert ok, f"{shown(path)}: {node.name} (self is one)"


def test_no_drawer_modules() -> None:
    names = {"utils", "util", "helpers", "misc", "common"}
    assert not [shown(p) for p in [*PYTHON, *CPP] if p.stem in names or p.parent.name in names]


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b")
    assert not [shown(path) for path in tree() if later.search(path.read_text())]


def test_no_path_of_somebodys_machine() -> None:
    roots = "home|Users|root|work|mnt|media|scratch|workspace"
    home = re.compile(rf"(?<![\w.])/({roots})/(?!someone)[\w.]")
    assert not [shown(path) for path in tree() if home.search(path.read_text())]


def test_python_and_nanobind_stay_in_the_bindings() -> None:
    include = re.compile(r"#\s*include\s*[<\"](Python\.h|nanobind/)")
    users = {p for p in CPP if include.search(p.read_text())}
    assert users
    assert all(path.parent.name == "bindings" for path in users), users


def test_vector_instructions_stay_in_simd() -> None:
    """`_mm_pause`, a hint to a waiting core, is none."""
    vector = re.compile(r"\b(__m(128|256|512)|_mm\d*_(?!pause\b)\w+\(|float32x4_t)")
    users = {p for p in CPP if vector.search(p.read_text())}
    assert users
    assert all("simd" in path.parts for path in users), users


def test_nothing_is_compiled_for_the_building_machine() -> None:
    for name in ("CMakeLists.txt", "pyproject.toml", "Makefile"):
        assert "march=native" not in (ROOT / name).read_text()


def test_every_module_says_what_it_is() -> None:
    for path in PYTHON:
        assert ast.get_docstring(ast.parse(path.read_text())), shown(path)


@pytest.mark.parametrize("name", tkg.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(tkg, name)
    assert inspect.getdoc(value), name
    if inspect.isclass(value):
        for member, function in vars(value).items():
            if not member.startswith("_") and callable(getattr(value, member)):
                assert inspect.getdoc(getattr(value, member)) or function is None, member


@pytest.mark.parametrize("operation", [tkg.attention_block_tkg, tkg.output_projection_tkg])
def test_every_argument_of_the_drop_in_calls_is_in_the_contract(operation) -> None:
    text = (ROOT / "docs" / "contract.md").read_text()
    missing = [name for name in inspect.signature(operation).parameters if f"`{name}`" not in text]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_links_and_paths_of_the_pages_exist(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    named = re.findall(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*\w/?)`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_package_is_typed() -> None:
    assert (ROOT / "src" / "tkg" / "py.typed").exists()
