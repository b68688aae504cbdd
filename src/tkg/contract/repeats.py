"""Steps and projections that can be made again without Python's checks.

A decode loop calls a layer with arrays of the same form at every step. What the contract's checks
say of one such step, they say of the next, but for what depends on values. A backend's
`repeat(call, slots, shape)` is asked after a step has been checked and run, `slots` being those
that its caller gave. It returns `None`, or a `Repeat`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from tkg.contract.cache import KVCache

Repeat = Callable[..., Any]
"""A function of `(x, k, v, block_table, pos_ids, cos, sin, slots)`, the caller's own arrays. It
takes a step that is legal beyond doubt and returns its output in `shape`. For any other it does
nothing and returns `None`: that one is to be checked like a first step."""

RepeatProjection = Callable[[Any], Any]
"""A function of `x`, likewise; a backend's `repeat_projection(call, x, shape)` returns it."""


class Repeats:
    """A layer's steps to be taken again, one a cache; a cache that is gone is forgotten."""

    def __init__(self) -> None:
        self._steps: dict[int, tuple[weakref.ref[KVCache], Repeat]] = {}

    def of(self, cache: KVCache) -> Repeat | None:
        """The function for steps over this cache."""
        found = self._steps.get(id(cache))
        return found[1] if found is not None and found[0]() is cache else None

    def keep(self, cache: KVCache, repeat: Repeat | None) -> None:
        """From now on this is the function for steps over this cache; `None`: there is none."""
        key, steps = id(cache), self._steps
        if repeat is None:
            steps.pop(key, None)
            return
        gone = weakref.ref(cache, lambda _: steps.pop(key, None))
        steps[key] = gone, repeat
