"""Triton's interpreter, in bearable time: it runs the cuda backend's kernels without a GPU."""

from __future__ import annotations

import os
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


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
