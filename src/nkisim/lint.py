"""What the NKI 0.6 compiler would not take, found in a kernel's source without running it.

The simulator runs kernels as plain Python; the compiler takes a subset. `lint` reads the source of
the kernels of one file, and of the functions and classes of that file that they reach, and applies
the rules of `lint_rules`.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .lint_rules import CALL_SITE_RULES, RULES, Broken
from .lint_scope import Function, Module, Scope
from .memory import Site


class Violation(NamedTuple):
    """One construct that the compiler refuses. `fix` completes "use ..."."""

    site: Site
    rule: str
    text: str
    fix: str

    def __str__(self) -> str:
        return f"{self.site}: {self.rule}: {self.text}; use {self.fix}"


def lint(target: Callable[..., Any] | str, file: str = "<source>") -> list[Violation]:
    """Violations in a kernel (or helper) function, or in all kernels of a source text, by line.

    `file` names a source text in the result. A text without kernels is read as a file of helpers:
    the functions at its top level that use NKI count. Raises ValueError if a function's source is
    not at hand, SyntaxError if the text is not Python.
    """
    if isinstance(target, str):
        module = Module(target, file)
        roots = module.kernels() or [(node, False) for node in module.helpers()]
    else:
        module, root = _locate(target)
        roots = [(root, True)]
    found = {_violation(module, broken) for broken in _broken(module, roots)}
    return sorted(found)


def _locate(target: Any) -> tuple[Module, Function]:
    """The file and the syntax node of a function (also of a kernel object)."""
    function = inspect.unwrap(getattr(target, "function", target))
    try:
        file = function.__code__.co_filename
        text = Path(file).read_text(encoding="utf-8")
    except (AttributeError, OSError) as error:
        raise ValueError(f"lint: {target!r}: its source is not at hand: {error}") from None
    module = Module(text, file)
    line = function.__code__.co_firstlineno
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__:
            if min([node.lineno, *[d.lineno for d in node.decorator_list]]) == line:
                return module, node
    raise ValueError(f"lint: {target!r}: {file}:{line} holds no def of {function.__name__}")


def _broken(module: Module, roots: list[tuple[Function, bool]]) -> Iterator[Broken]:
    """Apply the rules to the roots and to all that they reach, once inside and once outside of
    `no_reorder` where both happen."""
    work = [Scope(module, node, kernel, False) for node, kernel in roots]
    seen = set()
    while work:
        scope = work.pop()
        if (scope.root, scope.ordered) in seen:
            continue
        seen.add((scope.root, scope.ordered))
        for node in ast.walk(scope.root):
            for rule in RULES.get(type(node), ()):
                yield from rule(node, scope)
        work += scope.reached()
    kernels = {node.name for node, kernel in roots if kernel}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            for rule in CALL_SITE_RULES:
                yield from rule(node, kernels)


def _violation(module: Module, broken: Broken) -> Violation:
    return Violation(Site(module.file, broken.node.lineno), *broken[1:])
