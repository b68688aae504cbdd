"""Triton's interpreter, in bearable time: it runs the cuda backend's kernels where there is no GPU.

It takes about 50 microseconds an operation of a kernel, so some tests do less under it: what they
leave out is listed in docs/cuda.md and runs on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


SWEEP_STEP = int(os.environ.get("TKG_SWEEP", "59" if INTERPRETED else "1"))


def swept(values: Iterable[Any]) -> list[Any]:
    """The values of a sweep to try: every `SWEEP_STEP`th, and the last."""
    every = list(values)
    return [*every[:-1:SWEEP_STEP], every[-1]]


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
