"""Kernels out of a documentation repository: Python files, excerpts of pages and docstrings."""

from __future__ import annotations

import ast
import math
import re
import runpy
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import nkisim

_OPENS = re.compile(r"^(\s*)(\.\. code-block::.*|.*\S::)\s*$")
_OPTION = re.compile(r"^\s*:[\w-]+:")


@dataclass
class Case:
    """One published kernel: where it is, what it is given, what it must return.

    `run` gets the kernel and the arguments; without it the kernel is called with them. `want`
    computes the results from copies of the arguments. `refusal`: the kernel is wrong as printed,
    and this text must be in the error that says so. `options` are those of `nkisim.set_options`.
    """

    name: str
    excerpt: Excerpt
    arguments: Callable[[], tuple[Any, ...]] = tuple
    want: Callable[..., Any] | None = None
    run: Callable[..., Any] | None = None
    tolerance: float = 1e-5
    refusal: str = ""
    options: dict[str, Any] = field(default_factory=dict)


class Folder:
    """The folder nki of a clone."""

    def __init__(self, clone: Path):
        self.root = clone / "nki"
        if not self.root.is_dir():
            raise SystemExit(f"{clone} has no folder nki: it is not a clone of aws-neuron-sdk")

    def text(self, file: str) -> str:
        return (self.root / file).read_text(encoding="utf-8")


def names() -> dict[str, Any]:
    """What the pages' excerpts take for granted."""
    import dataclasses
    import enum

    import nki  # pyright: ignore[reportMissingImports]
    import nki.isa as nisa  # pyright: ignore[reportMissingImports]
    import nki.language as nl  # pyright: ignore[reportMissingImports]

    return {
        "nki": nki,
        "nisa": nisa,
        "nl": nl,
        "np": np,
        "math": math,
        "Enum": enum.Enum,
        "dataclass": dataclasses.dataclass,
        "NKIObject": nl.NKIObject,
        "sendrecv": nisa.sendrecv,
        "core_barrier": nisa.core_barrier,
        "dynamic_range": nl.dynamic_range,
    }


@dataclass
class Excerpt:
    """A piece of a file.

    Python file: imported as a module; `name` is the kernel. Page: the literal block that contains
    `marks` (several: the blocks one after another), the `ordinal`-th that does. With `name`, the
    block is a module that defines it (`alone`: nothing else of it is run, it needs a framework);
    without, it is the body of a kernel with the parameters `given`, between the statements `before`
    and `after`. `script`: the whole file, run as a program.
    """

    file: str
    marks: tuple[str, ...] = ()
    name: str = ""
    ordinal: int = 0
    given: str = ""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    script: bool = False
    alone: bool = False
    extra: dict[str, Any] | None = None

    def place(self, folder: Folder) -> str:
        """file:line of where it begins."""
        if self.script:
            return self.file
        if self.file.endswith(".py") and not self.marks:
            return f"{self.file}:{_definition(ast.parse(folder.text(self.file)), self.name).lineno}"
        return f"{self.file}:{blocks(folder.text(self.file), self.marks[0])[self.ordinal][0]}"

    def load(self, folder: Folder) -> Any:
        """The kernel; running the script, if it is one."""
        path = str(folder.root / self.file)
        if self.script:
            return _script(path)
        text = folder.text(self.file)
        space = sys.modules.setdefault("published", ModuleType("published")).__dict__
        space.clear()
        space |= names() | (self.extra or {}) | {"__name__": "published", "__file__": path}
        if not self.marks:
            exec(compile(text, path, "exec"), space)
            return kernel_of(space[self.name])
        found = [blocks(text, mark)[self.ordinal] for mark in self.marks]
        line = found[0][0]
        body = "\n".join(block for _, block in found)
        if self.name:
            tree = ast.parse("\n" * (line - 1) + body, path)
            if self.alone:
                tree.body = [_definition(tree, self.name)]
            exec(compile(tree, path, "exec"), space)
            return kernel_of(space[self.name])
        body = "\n".join((*self.before, body, *self.after))
        source = f"def excerpt({self.given}):\n" + textwrap.indent(body, "    ")
        exec(compile("\n" * (line - 2 - len(self.before)) + source, path, "exec"), space)
        return kernel_of(space["excerpt"])


def kernel_of(value: Any) -> Any:
    """Functions that a page leaves undecorated are decorated here, as their callers must."""
    return nkisim.jit(value) if callable(value) and not isinstance(value, type) else value


def blocks(text: str, mark: str) -> list[tuple[int, str]]:
    """The literal blocks that contain `mark`: first line's number, text without its indentation."""
    lines = text.split("\n")
    found = []
    for at, line in enumerate(lines):
        opened = _OPENS.match(line)
        if opened is None or line.lstrip().startswith(("#", ":")):
            continue
        indent = len(opened[1])
        end = at + 1
        while end < len(lines) and (not lines[end].strip() or _depth(lines[end]) > indent):
            end += 1
        start = at + 1
        while start < end and (not lines[start].strip() or _OPTION.match(lines[start])):
            start += 1
        block = textwrap.dedent("\n".join(lines[start:end])).rstrip().removesuffix('"""')
        if mark in block:
            found.append((start + 1, block))
    if not found:
        raise LookupError(f"no literal block contains {mark!r}")
    return found


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _definition(tree: ast.Module, name: str) -> ast.FunctionDef:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    raise LookupError(f"no function {name}")


def _script(path: str) -> None:
    before = sys.argv
    sys.argv = [path]
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before
