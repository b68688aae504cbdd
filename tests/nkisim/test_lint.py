"""The lint: a violating and a clean snippet for each rule, and how it finds what to read."""

from __future__ import annotations

from pathlib import Path

import pytest

import nkisim
from nkisim.lint import lint
from nkisim.lint_rules import RULES

HEAD = """\
import nki
import nki.language as nl
import nki.isa as nisa
import numpy as np
import math
"""
KERNEL = "@nki.jit\ndef kernel(x):\n"

# rule: (line of the violation in the snippet, violating, clean)
CASES = {
    "identity": (
        3,
        KERNEL + "    y = x if x is None else 1\n",
        KERNEL + "    y = x if x == None else 1\n",
    ),
    "identity (not)": (
        3,
        KERNEL + "    assert x is not None\n",
        KERNEL + "    assert x != None\n",
    ),
    "generator": (
        3,
        KERNEL + "    n = sum(i for i in range(3))\n",
        KERNEL + "    n = 0\n    for i in range(3):\n        n += i\n",
    ),
    "generator (yield)": (
        2,
        "def tiles(n):\n    yield n\n" + KERNEL + "    for i in tiles(3):\n        pass\n",
        "def tiles(n):\n    return [n]\n" + KERNEL + "    for i in tiles(3):\n        pass\n",
    ),
    "class-base": (
        1,
        "class Plan:\n    size: int = 1\n" + KERNEL + "    plan = Plan()\n",
        "from dataclasses import dataclass\n@dataclass\nclass Plan(nl.NKIObject):\n    n: int = 1\n"
        + KERNEL
        + "    plan = Plan()\n",
    ),
    "class-base (two)": (
        1,
        "class Plan(nl.NKIObject, dict): pass\n" + KERNEL + "    Plan()\n",
        "from enum import Enum\nclass Plan(Enum):\n    A = 1\n" + KERNEL + "    p = Plan.A\n",
    ),
    "keyword-only": (
        2,
        "@nki.jit\ndef kernel(x, *, flag=True):\n    pass\n",
        "def helper(x, *, flag=True):\n    pass\n@nki.jit\ndef kernel(x, f=True):\n    helper(x)\n",
    ),
    "list-argument": (
        3,
        "@nki.jit\ndef kernel(x,\n           stride=[1, 1]):\n    pass\n",
        "@nki.jit\ndef kernel(x, stride=(1, 1)):\n    pass\n",
    ),
    "list-argument (call)": (
        4,
        KERNEL + "    pass\nkernel[2](np.ones(3), order=[0, 1])\n",
        KERNEL + "    pass\nkernel[2](np.ones(3), order=(0, 1))\n",
    ),
    "sub-kernel": (
        6,
        "@nki.jit()\ndef inner(x):\n    pass\n" + KERNEL + "    inner(x)\n",
        "def inner(x):\n    pass\n" + KERNEL + "    inner(x)\ninner_kernel = nki.jit(inner)\n",
    ),
    "removed-name": (
        3,
        KERNEL + "    i = nl.arange(128)[:, None]\n",
        KERNEL + "    i = slice(0, 128)\n",
    ),
    "removed-name (mgrid)": (
        3,
        KERNEL + "    i, j = nl.mgrid[0:128, 0:512]\n",
        KERNEL + "    t = x[0:128, 0:512]\n",
    ),
    "removed-name (par_dim)": (
        3,
        KERNEL + "    t = nl.ndarray((4, nl.par_dim(128), 8), nl.float32)\n",
        KERNEL + "    t = [nl.ndarray((128, 8), nl.float32) for _ in range(4)]\n",
    ),
    "removed-name (neuronxcc)": (
        4,
        "import neuronxcc.nki.isa as old\n" + KERNEL + "    old.reciprocal(x)\n",
        "import neuronxcc.nki.isa as old\n" + KERNEL + "    nisa.reciprocal(x, x)\n",
    ),
    "mask": (
        3,
        KERNEL + "    nisa.tensor_copy(x, x, mask=(x < 3))\n",
        KERNEL + "    nisa.tensor_copy(x[0 : min(3, 4)], x[0:3])\n",
    ),
    "destination": (
        3,
        KERNEL + "    x[...] = nisa.reciprocal(x)\n",
        KERNEL + "    step = nisa.reciprocal(x[...], x)\n    x[...] = nl.add(x, x)\n",
    ),
    "register-arithmetic": (
        4,
        KERNEL + "    for i in nl.dynamic_range(4):\n        t = x[i * 128]\n",
        KERNEL + "    for i in nl.static_range(4):\n        t = x[i * 128]\n"
        "    for i in nl.dynamic_range(4):\n        t = x.ap([[1, 1]], scalar_offset=i)\n",
    ),
    "register-arithmetic (body)": (
        4,
        KERNEL + "    def body(i):\n        t = x[0] if i == 0 else x[1]\n"
        "    nl.fori_loop(0, 4, body)\n",
        KERNEL + "    def body(i):\n        t = x[i]\n    nl.fori_loop(0, 4, body)\n",
    ),
    "register-arithmetic (register)": (
        4,
        KERNEL + "    r = nisa.register_alloc(3)\n    s = r + 1\n",
        KERNEL + "    r = nisa.register_alloc(3)\n    while r:\n        nisa.register_load(r, x)\n",
    ),
    "loop-counter": (
        4,
        KERNEL + "    for i in nl.dynamic_range(4):\n        nisa.register_move(i, 3)\n",
        KERNEL + "    for i in nl.dynamic_range(4):\n        nisa.register_move(r, i)\n",
    ),
    "loop-in-no-reorder": (
        4,
        KERNEL
        + "    with nl.no_reorder():\n        for i in nl.dynamic_range(4):\n            pass\n",
        KERNEL
        + "    for i in nl.dynamic_range(4):\n        with nl.no_reorder():\n            pass\n",
    ),
    "loop-in-no-reorder (callee)": (
        4,
        "def inner():\n    pass\ndef outer():\n    for i in nl.dynamic_range(4):\n        inner()\n"
        + KERNEL
        + "    with nl.no_reorder():\n        outer()\n",
        "def inner():\n    for i in range(4):\n        pass\n"
        + KERNEL
        + "    with nl.no_reorder():\n        inner()\n    nl.dynamic_range(4)\n",
    ),
    "loop-body-result": (
        3,
        KERNEL + "    def body(i):\n        return i\n    nl.fori_loop(0, 4, body)\n",
        KERNEL + "    def body(i):\n        return None\n    nl.fori_loop(0, 4, body)\n",
    ),
    "loop-body-result (while)": (
        3,
        KERNEL + "    def body(r):\n        nisa.register_load(r, x)\n    nl.while_loop(x, body)\n",
        KERNEL + "    def body(r):\n        return r\n    nl.while_loop(x, body)\n",
    ),
    "loop-step": (
        3,
        KERNEL + "    for i in nl.dynamic_range(4, 0, -1):\n        pass\n",
        KERNEL + "    for i in nl.dynamic_range(0, 4, 2):\n        pass\n",
    ),
    "loop-step (register)": (
        6,
        KERNEL + "    r = nisa.register_alloc(2)\n    def body(i):\n        pass\n"
        "    nl.fori_loop(0, 4, body, step=r)\n",
        KERNEL + "    r = nisa.register_alloc(2)\n    def body(i):\n        pass\n"
        "    nl.fori_loop(0, r, body, step=2)\n",
    ),
    "loop-local": (
        5,
        KERNEL + "    for i in nl.dynamic_range(4):\n        t = nl.ndarray((1, 1), nl.int32)\n"
        "    nisa.dma_copy(x, t)\n",
        KERNEL + "    t = nl.ndarray((1, 1), nl.int32)\n    for i in nl.dynamic_range(4):\n"
        "        nisa.memset(t, 0)\n    nisa.dma_copy(x, t)\n",
    ),
    "dict-key": (
        3,
        KERNEL + "    d = {1: x}\n",
        KERNEL + "    d = {'one': x}\n",
    ),
    "library": (
        3,
        KERNEL + "    n = int(np.ceil(3.5))\n",
        KERNEL + "    n = math.ceil(3.5)\n    t = nl.ndarray((1, 1), np.float32)\n",
    ),
    "global-state": (
        3,
        KERNEL + "    global seen\n    seen = 1\n",
        KERNEL + "    seen = 1\n",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_violation_is_found_at_its_line(case: str) -> None:
    line, violating, _ = CASES[case]
    found = lint(HEAD + violating, "kernels.py")
    assert {violation.rule for violation in found} == {case.partition(" ")[0]}
    assert found[0].site == ("kernels.py", line + HEAD.count("\n"))
    assert str(found[0]).startswith(f"kernels.py:{found[0].site.line}: {found[0].rule}: ")


@pytest.mark.parametrize("case", CASES)
def test_the_clean_twin_passes(case: str) -> None:
    assert lint(HEAD + CASES[case][2]) == []


def test_every_rule_has_a_case() -> None:
    rules = {rule.__name__ for registered in RULES.values() for rule in registered}
    names = {case.partition(" ")[0].replace("-", "_") for case in CASES}
    assert rules - names == {"list_default"}  # reported as list-argument
    assert names - rules == {"list_argument"}  # a rule of call sites


def test_python_outside_kernels_is_free() -> None:
    text = (
        HEAD
        + "def main(x):\n    if x is None:\n        return sum(i for i in x)\n"
        + KERNEL
        + "    pass\n"
    )
    assert lint(text) == []


def test_a_file_without_kernels_is_read_as_helpers() -> None:
    host = "def main(x):\n    return x is None\n"
    (violation,) = lint(host + "def load_tiles(x):\n    return nl.load(x) if x is None else x\n")
    assert (violation.rule, violation.site.line) == ("identity", 4)


def test_other_import_names_are_followed() -> None:
    text = (
        "from nki import jit as compiled\nfrom nki.language import arange as counting\n"
        "@compiled(mode='trace')\ndef kernel(x):\n    return counting(3)\n"
    )
    assert [violation.rule for violation in lint(text)] == ["removed-name"]


def kernel_with_a_violation(x):
    return _reached(x)


def _reached(x):
    return x is None


def _not_reached(x):
    return x is None


def test_a_function_brings_what_it_reaches_in_its_file() -> None:
    (violation,) = lint(kernel_with_a_violation)
    assert nkisim.lint(nkisim.jit(kernel_with_a_violation)) == [violation]
    assert violation.site.file == __file__
    line = Path(__file__).read_text().splitlines()[violation.site.line - 1]
    assert line == "    return x is None"
    assert violation.site.line == _reached.__code__.co_firstlineno + 1


def test_a_function_without_source_is_refused() -> None:
    made: dict = {}
    exec("def kernel(x): pass", made)
    with pytest.raises(ValueError, match="its source is not at hand"):
        lint(made["kernel"])
    with pytest.raises(ValueError, match="its source is not at hand"):
        lint(len)
