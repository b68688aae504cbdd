"""Every Python block of README.md and docs/ runs, and prints what the text says it prints.

The blocks of one page are one program, run from the top in a process of its own. A block in
```` ```text ```` right after a Python block is that block's output.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n\n```text\n(?P<output>.*?)^```$)?", re.M | re.S
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = "\N{BLACK SQUARE} end of block"


def blocks(text: str) -> list[tuple[str, str | None]]:
    """Code of each Python block, padded so that tracebacks show the page's lines, and its output.

    The output is `None` where the page says nothing about it.
    """
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        found.append(("\n" * line + match["code"], match["output"]))
    return found


PROGRAMS = {page.relative_to(ROOT).as_posix(): blocks(page.read_text()) for page in PAGES}


def run(name: str, programs: list[str], folder: Path) -> list[str]:
    """Run the blocks one after another in one namespace; returns what each has printed."""
    driver = "\n".join(
        [
            "space = {'__name__': '__main__'}",
            f"for code in {programs!r}:",
            f"    exec(compile(code, {name!r}, 'exec'), space)",
            f"    print({MARK!r})",
        ]
    )
    command = [sys.executable, "-X", "utf8", "-W", "error", "-c", driver]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout.split(MARK + "\n")[:-1]


@pytest.mark.parametrize("page", [name for name, found in PROGRAMS.items() if found])
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path) -> None:
    programs = PROGRAMS[page]
    printed = run(page, [code for code, _ in programs], tmp_path)
    for text, (_, expected) in zip(printed, programs, strict=True):
        if expected is not None:
            assert text == expected


def test_no_python_block_is_overlooked() -> None:
    """Fences that the pattern does not match (indented, or with options) would never be run."""
    for page in PAGES:
        fences = re.findall(r"^\s*(?:`{3,}|~{3,})\s*py", page.read_text(), re.M | re.I)
        assert len(fences) == len(PROGRAMS[page.relative_to(ROOT).as_posix()]), page.name


@pytest.mark.parametrize("page", ["README.md", "docs/contract.md", "docs/fp8.md"])
def test_the_pages_that_teach_have_examples(page: str) -> None:
    assert PROGRAMS[page]


def test_a_failing_block_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="(?s)page.md.*line 2.*ZeroDivisionError"):
        run("page.md", ["\n1 / 0"], tmp_path)
