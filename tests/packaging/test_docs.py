"""What README.md, CONTRIBUTING.md, CHANGELOG.md and docs/ name exists."""

from __future__ import annotations

import inspect
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import tkg
from tkg.cli.commands import commands

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += [page.relative_to(ROOT).as_posix() for page in sorted((ROOT / "docs").glob("*.md"))]
TOP = ("src", "csrc", "tests", "docs", "examples", ".ci")
BLOCK = re.compile(r"^\s*```(\w+)\n(.*?)^\s*```$", re.M | re.S)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """The page without its code blocks."""
    return BLOCK.sub("", text_of(page))


def links(page: str) -> list[str]:
    """Targets of the page's links that are not addresses on the web."""
    return [t for t in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in t]


def anchors(page: str) -> set[str]:
    """What a page's headings can be linked as, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def commands_in(page: str) -> list[list[str]]:
    """The lines of the page's console blocks, as words, without comments."""
    blocks = [body for kind, body in BLOCK.findall(text_of(page)) if kind == "console"]
    lines = [shlex.split(line, comments=True) for body in blocks for line in body.splitlines()]
    return [words for words in lines if words]


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.relative_to(ROOT).as_posix()), target


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_code_font_exists(page: str) -> None:
    for name in re.findall(r"`([\w./-]+)`", prose(page)):
        if name.split("/")[0] in TOP and "/" in name:
            assert (ROOT / name).exists(), name


def test_the_tree_of_the_design_exists() -> None:
    tree = re.search(r"## The tree\n\n```text\n(.*?)```", text_of("docs/design.md"), re.S)
    assert tree is not None
    folders: list[str] = []
    seen = 0
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], line.split()[0]]
        assert (ROOT / "".join(folders)).exists(), line
        seen += 1
    assert seen > 10


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = re.findall(r"`make ([\w-]+)`", text_of(page))
    named += [words[1] for words in commands_in(page) if words[0] == "make"]
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_exists(page: str) -> None:
    known = get_command(commands).commands  # pyright: ignore[reportAttributeAccessIssue]
    lines = [words for words in commands_in(page) if words[0] == "tkg"]
    lines += [shlex.split(line) for line in re.findall(r"`(tkg [^`]+)`", prose(page))]
    for _, name, *arguments in lines:
        if name == "COMMAND":
            continue
        options = {
            text
            for parameter in known[name].params
            for text in (*parameter.opts, *parameter.secondary_opts)
        }
        given = {word for word in arguments if word.startswith("--")}
        assert given <= options, name


@pytest.mark.parametrize("page", PAGES)
def test_every_public_name_exists(page: str) -> None:
    for name in re.findall(r"`tkg\.([A-Za-z]\w*(?:\.\w+)*)", prose(page)):
        thing: object = tkg
        for part in name.split("."):
            assert hasattr(thing, part), f"tkg.{name}"
            thing = getattr(thing, part)


@pytest.mark.parametrize("operation", [tkg.attention_block_tkg, tkg.output_projection_tkg])
def test_the_contract_has_a_table_row_for_every_argument(operation: Callable[..., Any]) -> None:
    section = re.search(
        rf"^## {operation.__name__}\n(.*?)^## ", prose("docs/contract.md"), re.M | re.S
    )
    assert section is not None
    cells = re.findall(r"^\| (.*?) \|", section[1], re.M)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(inspect.signature(operation).parameters)


def test_every_environment_variable_is_read_somewhere() -> None:
    folders = [ROOT / "src", ROOT / "tests"]
    code = "".join(p.read_text() for f in folders for p in f.rglob("*.py") if p != Path(__file__))
    for page in PAGES:
        for name in re.findall(r"\bTKG_\w+", text_of(page)):
            assert f'"{name}"' in code, f"{page}: {name}"


def test_the_changelog_has_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"## [{project['version']}]" in text_of("CHANGELOG.md")
    assert tkg.__version__ == project["version"]


def test_the_hooks_run_the_pinned_tools() -> None:
    """Nothing is fetched when a hook runs: it is a local one, and `make lint` installs its tool."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", hooks) == ["local"]
    assert set(re.findall(r"language: (\S+)", hooks)) == {"system"}
    tools = re.findall(r"entry: \.venv/bin/(\S+)", hooks)
    assert len(tools) == len(re.findall(r"entry:", hooks))
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    pinned = {p.partition("==")[0] for p in groups["lint"] if "==" in p}
    assert set(tools) == pinned
