"""Steps that a layer can take again.

A decode loop calls a layer with arrays of the same form at every step. What the contract's checks
say of one such step, they say of the next, but for what depends on values. A backend's
`repeat(call, shape)` is asked after a step has been checked and run. It returns `None`, or a
function of `(x, k, v, block_table, pos_ids, cos, sin)`, the caller's own arrays, that takes a step
which is legal beyond doubt, and returns its output in `shape`; for any other it does nothing and
returns `None`: that one is checked like a first step. New tokens go where they belong (`slots` is
not given).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from tkg.contract.cache import KVCache


class Repeats:
    """A layer's steps to be taken again, one a cache; a cache that is gone is forgotten."""

    def __init__(self) -> None:
        self._steps: dict[int, tuple[weakref.ref[KVCache], Callable[..., Any]]] = {}

    def of(self, cache: KVCache) -> Callable[..., Any] | None:
        """The function for steps over this cache."""
        found = self._steps.get(id(cache))
        return found[1] if found is not None and found[0]() is cache else None

    def keep(self, cache: KVCache, run: Callable[..., Any] | None) -> None:
        """From now on `run` is the function for steps over this cache; `None`: there is none."""
        key, steps = id(cache), self._steps
        if run is None:
            steps.pop(key, None)
            return
        gone = weakref.ref(cache, lambda _: steps.pop(key, None))
        steps[key] = gone, run
