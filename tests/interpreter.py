"""Triton's interpreter, in bearable time: it runs the cuda backend's kernels without a GPU."""

from __future__ import annotations

import os
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def each_row_alone() -> None:
    """Multiply the rows of a tile one by one, so that the others do not change a row's bits.

    In NumPy's product of a whole tile they do on some processors. How a GPU sums, only a GPU shows.
    """
    from triton.runtime import interpreter

    module: Any = interpreter
    create_dot = module.InterpreterBuilder.create_dot

    def dot(self: Any, a: Any, b: Any, total: Any, *options: Any) -> Any:
        a, total = (module.TensorHandle(x.data[:, None], x.dtype) for x in (a, total))
        product = create_dot(self, a, b, total, *options)
        return module.TensorHandle(product.data[:, 0], product.dtype)

    module.InterpreterBuilder.create_dot = dot


def patch_once() -> None:
    """Spare a third of the time: do not prepare `triton.language` again for every inner function.

    The interpreter replaces the functions of `triton.language` when a kernel starts, and searches
    it for functions that are left to replace whenever the kernel calls another `triton.jit`
    function: there are none.
    """
    from triton.runtime import interpreter

    module: Any = interpreter
    patch = module._patch_lang
    patched: set[int] = set()

    def patch_if_new(function: Any) -> Any:
        globals_ = function.__globals__.values()
        mine = {id(m) for m in globals_ if m is module.tl or m is module.tl.core}
        if mine <= patched:
            return module._LangPatchScope()
        scope = patch(function)
        restore = scope.restore

        def restored() -> None:
            patched.clear()
            restore()

        patched.update(mine)
        scope.restore = restored
        return scope

    module._patch_lang = patch_if_new
