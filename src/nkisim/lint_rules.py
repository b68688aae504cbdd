"""The rules of `lint`: one small generator each, over the syntax nodes it is about.

Sources, all under the folder nki of AWS's documentation (SDK 2.32): get-started/
nki-language-guide.rst (LG), migration/index.rst (MIG), deep-dives/nki-dynamic-loops.rst (DYN), and
release-notes/components/nki.rst (RN).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .lint_scope import DYNAMIC_LOOPS, Scope, argument


class Broken(NamedTuple):
    """A rule that a syntax node breaks; `fix` completes "use ..."."""

    node: Any
    rule: str
    text: str
    fix: str


Rule = Callable[[Any, Scope], Iterator[Broken]]
RULES: dict[type[ast.AST], list[Rule]] = {}

REMOVED = {
    "nki.language.arange": "slices or ap",
    "nki.language.mgrid": "slices or ap",
    "nki.language.par_dim": "the partition dimension first, and lists of tiles for blocks",
    "nki.isa.tensor_copy_dynamic_src": "tensor_copy with ap(scalar_offset=)",
    "nki.isa.tensor_copy_dynamic_dst": "tensor_copy with ap(scalar_offset=)",
}  # MIG, "features ... not available" and "tensor_copy_dynamic"
# LG lists NKI's values; Python modules are none of them. These hold what the compiler knows.
_KNOWN = frozenset(("math", "dataclasses", "enum", "typing", "builtins", "__future__"))
_LIBRARIES = (sys.stdlib_module_names - _KNOWN) | {"numpy", "torch", "jax", "scipy", "ml_dtypes"}


def about(*nodes: type[ast.AST]) -> Callable[[Rule], Rule]:
    """Register a rule for these kinds of node."""

    def register(rule: Rule) -> Rule:
        for node in nodes:
            RULES.setdefault(node, []).append(rule)
        return rule

    return register


@about(ast.Compare)
def identity(node: ast.Compare, scope: Scope) -> Iterator[Broken]:
    """MIG, "Replace is / is not"."""
    for operator in node.ops:
        if isinstance(operator, (ast.Is, ast.IsNot)):
            word, fix = ("is", "==") if isinstance(operator, ast.Is) else ("is not", "!=")
            yield Broken(node, "identity", f"the compiler has no `{word}`", f"`{fix}`")


@about(ast.Yield, ast.YieldFrom, ast.GeneratorExp)
def generator(node: ast.AST, scope: Scope) -> Iterator[Broken]:
    """LG, "NKI Values": a generator is none of them."""
    yield Broken(node, "generator", "a generator is no NKI value", "a list or a loop")


@about(ast.ClassDef)
def class_base(node: ast.ClassDef, scope: Scope) -> Iterator[Broken]:
    """LG, "Class Support" and "Enumerations"."""
    bases = [scope.path(base).rpartition(".")[2] for base in node.bases]
    if bases not in (["NKIObject"], ["Enum"]) or node.keywords:
        listed = ", ".join(bases) or "nothing"
        yield Broken(
            node, "class-base", f"class {node.name} inherits from {listed}; NKI takes classes of"
            " NKIObject (or Enum) and of nothing else", "nl.NKIObject as the only base",
        )  # fmt: skip


@about(ast.FunctionDef)
def keyword_only(node: ast.FunctionDef, scope: Scope) -> Iterator[Broken]:
    """MIG, "Remove keyword-only argument separator"."""
    if scope.kernel and node is scope.root and node.args.kwonlyargs:
        name = node.args.kwonlyargs[0].arg
        yield Broken(
            node, "keyword-only", f"kernel {node.name}: parameter {name} after `*`",
            "parameters with defaults at the end, without `*`",
        )  # fmt: skip


@about(ast.FunctionDef)
def list_default(node: ast.FunctionDef, scope: Scope) -> Iterator[Broken]:
    """MIG, "Replace list kernel arguments with tuples"."""
    if scope.kernel and node is scope.root:
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if isinstance(default, (ast.List, ast.ListComp)):
                text = f"kernel {node.name}: a list as default of a parameter"
                yield Broken(default, "list-argument", text, "a tuple")


def list_argument(node: ast.Call, kernels: Iterable[str]) -> Iterator[Broken]:
    """MIG, as above, where a kernel is launched."""
    target = node.func.value if isinstance(node.func, ast.Subscript) else node.func
    if isinstance(target, ast.Name) and target.id in kernels:
        for given in [*node.args, *[keyword.value for keyword in node.keywords]]:
            if isinstance(given, (ast.List, ast.ListComp)):
                yield Broken(
                    given, "list-argument", f"kernel {target.id} is given a list", "a tuple"
                )


CALL_SITE_RULES = (list_argument,)


@about(ast.Call)
def sub_kernel(node: ast.Call, scope: Scope) -> Iterator[Broken]:
    """MIG, "Remove nki.jit decorator on sub-kernels"."""
    target = scope.function(node.func)
    if target is not None and scope.module.is_kernel(target):
        yield Broken(
            node, "sub-kernel", f"{target.name} is called from a kernel but decorated with nki.jit",
            "it undecorated, and nki.jit(...) where it is launched on its own",
        )  # fmt: skip


@about(ast.Attribute, ast.Name)
def removed_name(node: ast.Attribute | ast.Name, scope: Scope) -> Iterator[Broken]:
    """Names of earlier NKI versions."""
    path = scope.path(node)
    if path in REMOVED:
        yield Broken(node, "removed-name", f"{path} was removed", REMOVED[path])
    elif path.startswith("neuronxcc.") and isinstance(node, ast.Attribute):
        yield Broken(node, "removed-name", f"{path}: neuronxcc is an error in kernels", "nki")


@about(ast.Call)
def mask(node: ast.Call, scope: Scope) -> Iterator[Broken]:
    """MIG, "Deprecation of masking"."""
    if scope.called(node).startswith("nki."):
        for keyword in node.keywords:
            if keyword.arg == "mask":
                yield Broken(
                    node, "mask", "instructions take no mask", "bounds by min() and slices"
                )


@about(ast.Assign)
def destination(node: ast.Assign, scope: Scope) -> Iterator[Broken]:
    """MIG, "All ISA functions require a destination parameter"."""
    path = scope.called(node.value)
    if path.startswith("nki.isa.") and any(isinstance(t, ast.Subscript) for t in node.targets):
        text = f"{path} returns no tile to store"
        yield Broken(node, "destination", text, "the destination as its first argument")


@about(ast.FunctionDef, ast.ClassDef)
def register_arithmetic(node: ast.AST, scope: Scope) -> Iterator[Broken]:
    """MIG, "Rules for migrated loops"; DYN, "Hardware Lowering"."""
    if node is not scope.root:
        return
    for body, names in [*_counters(node, scope), (node, _registers(node, scope))]:
        for inner in ast.walk(body):
            for operand in _operands(inner):
                if isinstance(operand, ast.Name) and operand.id in names:
                    yield Broken(
                        inner, "register-arithmetic", f"{operand.id} is a register; Python"
                        " does not know its value", "it as scalar_offset or compute in SBUF",
                    )  # fmt: skip


def _operands(node: ast.AST) -> list[ast.expr]:
    """What an expression or a branch needs the value of."""
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    if isinstance(node, ast.AugAssign):
        return [node.target, node.value]
    return [node.test] if isinstance(node, (ast.If, ast.IfExp)) else []


def _counters(root: ast.AST, scope: Scope) -> Iterator[tuple[ast.AST, set[str]]]:
    """The bodies of device loops with the name of their counter."""
    for node in ast.walk(root):
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            if scope.called(node.iter) == "nki.language.dynamic_range":
                for statement in node.body:
                    yield statement, {node.target.id}
        body = _loop_body(node, scope, "fori_loop", 2)
        if body is not None and body.args.args:
            yield body, {body.args.args[0].arg}


def _loop_body(node: ast.AST, scope: Scope, loop: str, position: int) -> ast.FunctionDef | None:
    """The function given as body to `nl.fori_loop` or `nl.while_loop`."""
    if isinstance(node, ast.Call) and scope.called(node) == f"nki.language.{loop}":
        return scope.function(argument(node, position, "body_fun"))
    return None


def _registers(root: ast.AST, scope: Scope) -> set[str]:
    """Names that hold what register_alloc returned."""
    return {
        target.id
        for node in ast.walk(root)
        if isinstance(node, ast.Assign) and scope.called(node.value) == "nki.isa.register_alloc"
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@about(ast.FunctionDef)
def loop_counter(node: ast.FunctionDef, scope: Scope) -> Iterator[Broken]:
    """MIG, "The loop variable is read-only"."""
    if node is not scope.root:
        return
    for body, names in _counters(node, scope):
        for inner in ast.walk(body):
            if scope.called(inner) in ("nki.isa.register_move", "nki.isa.register_load"):
                assert isinstance(inner, ast.Call)
                written = argument(inner, 0, "dst")
                if isinstance(written, ast.Name) and written.id in names:
                    text = f"loop counter {written.id} is read-only"
                    yield Broken(inner, "loop-counter", text, "a register of its own")


@about(ast.Call)
def loop_in_no_reorder(node: ast.Call, scope: Scope) -> Iterator[Broken]:
    """DYN, "Interaction with no_reorder"; the block also covers what it calls."""
    if scope.called(node) not in DYNAMIC_LOOPS:
        return
    blocks = [block for block in ast.walk(scope.root) if scope.is_no_reorder(block)]
    if scope.ordered or any(node in ast.walk(block) for block in blocks):
        yield Broken(
            node, "loop-in-no-reorder", "a device loop inside a no_reorder block",
            "no_reorder inside the loop's body",
        )  # fmt: skip


@about(ast.Call)
def loop_body_result(node: ast.Call, scope: Scope) -> Iterator[Broken]:
    """MIG, "Rules for migrated loops"."""
    counted = _loop_body(node, scope, "fori_loop", 2)
    if counted is not None and any(_returned(counted)):
        text = f"{counted.name}: the body of a fori_loop returns a value"
        yield Broken(counted, "loop-body-result", text, "SBUF or HBM for what the loop carries")
    conditional = _loop_body(node, scope, "while_loop", 1)
    if conditional is not None and not any(_returned(conditional)):
        text = f"{conditional.name}: the body of a while_loop returns no condition"
        yield Broken(conditional, "loop-body-result", text, "return of the condition's register")


def _returned(function: ast.FunctionDef) -> Iterator[bool]:
    """For each return statement, whether it returns something but None."""
    for node in ast.walk(function):
        if isinstance(node, ast.Return):
            constant = isinstance(node.value, ast.Constant) and node.value.value is None
            yield node.value is not None and not constant


@about(ast.Call)
def loop_step(node: ast.Call, scope: Scope) -> Iterator[Broken]:
    """DYN, "Parameter Constraints"."""
    path = scope.called(node)
    if path not in DYNAMIC_LOOPS[:2]:
        return
    step = argument(node, 3 if path == DYNAMIC_LOOPS[1] else 2, "step")
    negative = isinstance(step, ast.UnaryOp) and isinstance(step.op, ast.USub)
    zero = isinstance(step, ast.Constant) and step.value == 0
    register = isinstance(step, ast.Name) and step.id in _registers(scope.root, scope)
    if negative or zero or register:
        assert step is not None
        text = f"step {ast.unparse(step)} of a device loop"
        yield Broken(node, "loop-step", text, "a positive int that is known to Python")


@about(ast.FunctionDef)
def loop_local(node: ast.FunctionDef, scope: Scope) -> Iterator[Broken]:
    """MIG, "Tensors declared inside a body ... cannot be referenced outside of the loop"."""
    for loop in ast.walk(node):
        if not isinstance(loop, ast.For) or scope.called(loop.iter) != DYNAMIC_LOOPS[0]:
            continue
        inside = set(ast.walk(loop))
        made = {
            target.id
            for inner in inside
            if isinstance(inner, ast.Assign) and scope.called(inner.value) in _CREATION
            for target in inner.targets
            if isinstance(target, ast.Name)
        }
        for use in ast.walk(node):
            if isinstance(use, ast.Name) and use.id in made and isinstance(use.ctx, ast.Load):
                if use not in inside and use.lineno > (loop.end_lineno or 0):
                    text = f"{use.id} is declared inside the device loop of line {loop.lineno}"
                    yield Broken(use, "loop-local", text, "a declaration before the loop")


_CREATION = frozenset(
    f"nki.language.{name}" for name in ("ndarray", "zeros", "ones", "full", "load")
)


@about(ast.Dict)
def dict_key(node: ast.Dict, scope: Scope) -> Iterator[Broken]:
    """LG, "NKI Values": the keys must be strings."""
    for key in node.keys:
        if isinstance(key, ast.Constant) and not isinstance(key.value, str):
            yield Broken(key, "dict-key", f"key {key.value!r} of a dictionary", "strings as keys")


@about(ast.Call)
def library(node: ast.Call, scope: Scope) -> Iterator[Broken]:
    """LG: not all Python libraries are supported within a kernel; NKI's values have no place for
    other libraries' objects."""
    path = scope.called(node)
    package = path.partition(".")[0]
    if "." in path and package in _LIBRARIES and package in _imported(scope):
        text = f"{path} is a function of a Python library"
        yield Broken(node, "library", text, "its value, computed outside, as an argument")


def _imported(scope: Scope) -> set[str]:
    return {path.partition(".")[0] for path in scope.module.aliases.values()}


@about(ast.Global)
def global_state(node: ast.Global, scope: Scope) -> Iterator[Broken]:
    """LG, "Kernel Caching": kernels are pure functions of their arguments."""
    text = f"global {', '.join(node.names)}: compiled kernels are cached by their arguments"
    yield Broken(node, "global-state", text, "arguments")
