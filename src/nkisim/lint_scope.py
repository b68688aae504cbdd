"""The names in a kernel's source: what is imported, what is defined, who calls whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

Function = ast.FunctionDef
Definition = ast.FunctionDef | ast.ClassDef

# What a snippet without imports means by these names.
_CUSTOMARY = {"nki": "nki", "nl": "nki.language", "nisa": "nki.isa"}
DYNAMIC_LOOPS = ("nki.language.dynamic_range", "nki.language.fori_loop", "nki.language.while_loop")


class Module:
    """One source file."""

    def __init__(self, text: str, file: str):
        self.file = file
        self.tree = ast.parse(text, file)
        self.aliases = dict(_CUSTOMARY)
        self.definitions: dict[str, Definition] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for name in node.names:
                    self.aliases[name.asname or name.name.partition(".")[0]] = (
                        name.name if name.asname else name.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for name in node.names:
                    self.aliases[name.asname or name.name] = f"{node.module}.{name.name}"
            elif isinstance(node, Definition):
                self.definitions.setdefault(node.name, node)
        for node in self.tree.body:  # a name's definition at the top level wins
            if isinstance(node, Definition):
                self.definitions[node.name] = node

    def helpers(self) -> list[Function]:
        """The functions at the top level that use a name of NKI."""
        return [
            node
            for node in self.tree.body
            if isinstance(node, Function)
            and any(self.path(inner).startswith("nki.") for inner in ast.walk(node))
        ]

    def path(self, node: ast.AST | None) -> str:
        """The dotted name that an expression stands for, imports resolved; "" if it is no name."""
        if isinstance(node, ast.Name):
            dotted = self.aliases.get(node.id, node.id)
        elif isinstance(node, ast.Attribute):
            base = self.path(node.value)
            dotted = base and f"{base}.{node.attr}"
        else:
            return ""
        return "nki." + dotted.removeprefix("nkisim.") if dotted.startswith("nkisim.") else dotted

    def called(self, node: ast.AST | None) -> str:
        """The dotted name of what a call calls; "" if it is no call of a name."""
        return self.path(node.func) if isinstance(node, ast.Call) else ""

    def is_kernel(self, node: Definition) -> bool:
        """Decorated with nki.jit, with or without arguments."""
        return any(
            "nki.jit" in (self.path(decorator), self.called(decorator))
            for decorator in node.decorator_list
        )

    def kernels(self) -> list[tuple[Function, bool]]:
        """Functions decorated with nki.jit or given to nki.jit or nki.simulate; all with True."""
        found = {}
        for node in ast.walk(self.tree):
            if isinstance(node, Function) and self.is_kernel(node):
                found[node] = True
            elif self.called(node) in ("nki.jit", "nki.simulate"):
                assert isinstance(node, ast.Call)
                given = node.args[0] if node.args else None
                target = self.definitions.get(given.id) if isinstance(given, ast.Name) else None
                if isinstance(target, Function):
                    found[target] = True
        return list(found.items())


class Scope(NamedTuple):
    """A definition whose body is read. `kernel`: a launch calls it. `ordered`: it is called from
    within a `no_reorder` block, which also holds for what it calls."""

    module: Module
    root: Definition
    kernel: bool
    ordered: bool

    def path(self, node: ast.AST | None) -> str:
        return self.module.path(node)

    def called(self, node: ast.AST | None) -> str:
        return self.module.called(node)

    def is_no_reorder(self, node: ast.AST) -> bool:
        return isinstance(node, ast.With) and any(
            self.called(item.context_expr) == "nki.language.no_reorder" for item in node.items
        )

    def reached(self) -> Iterator[Scope]:
        """The definitions of this file that the body names."""
        inner: set[ast.AST] = set()
        for node in ast.walk(self.root):
            if self.is_no_reorder(node):
                inner.update(ast.walk(node))
        for node in ast.walk(self.root):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                target = self.module.definitions.get(node.id)
                if target is not None and target is not self.root:
                    yield Scope(self.module, target, False, self.ordered or node in inner)

    def function(self, node: ast.AST | None) -> Function | None:
        """The function of this file that an expression names; one defined inside comes first."""
        if not isinstance(node, ast.Name):
            return None
        for inner in ast.walk(self.root):
            if isinstance(inner, Function) and inner.name == node.id:
                return inner
        target = self.module.definitions.get(node.id)
        return target if isinstance(target, Function) else None


def argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    """An argument of a call, by position or keyword."""
    if position < len(call.args):
        return call.args[position]
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
