"""Steps, projections and drop-in calls that can be made again without Python's checks.

A decode loop calls a layer with arrays of the same form at every step. What the contract's checks
say of one such step, they say of the next, but for what depends on values. A backend's
`repeat(call, slots, shape)` is asked after a step has been checked and run, `slots` being those
that its caller gave. It returns `None`, or a `Repeat`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from tkg.contract.arrays import AnyArray
from tkg.contract.cache import KVCache

Repeat = Callable[..., Any]
"""A function of `(x, k, v, block_table, pos_ids, cos, sin, slots)`, the caller's own arrays. It
takes a step that is legal beyond doubt and returns its output in `shape`. For any other it does
nothing and returns `None`: that one is to be checked like a first step."""

RepeatProjection = Callable[[Any], Any]
"""A function of `x`, likewise; a backend's `repeat_projection(call, x, shape)` returns it."""

RepeatCall = Callable[[dict[str, Any]], Any]
"""A function of the keyword arguments of `attention_block_tkg`, likewise; a backend's
`repeat_call(call, arguments)` returns it. It knows forms of arrays, and keeps no array alive."""


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


def no_repeat(arguments: dict[str, Any]) -> Any:
    """The `RepeatCall` of calls that have to be checked."""


@dataclass
class Alike:
    """Drop-in calls of the same shapes.

    Attributes:
        repeat: makes one again.
        checked: how many were checked and run.
    """

    repeat: RepeatCall = no_repeat
    checked: int = 0

    def count(self) -> bool:
        """Count a call that was checked and run; returns whether to ask for a `repeat` of it.

        Of the second such call, the fourth, the eighth and so on to every 64th. Not of the first:
        with a cache that is a longer slice at each call, none would ever be used. Not of all:
        there may be none, or calls may differ in what the shapes do not tell.
        """
        self.checked += 1
        return self.checked % 64 == 0 or self.checked in (2, 4, 8, 16, 32)


class Calls:
    """The drop-in calls of a program, told apart by their shapes. Keeps no array alive."""

    LIMIT = 64
    """Shapes remembered; when there are more, all are forgotten."""

    def __init__(self) -> None:
        self._alike: dict[Hashable, Alike] = {}

    def like(self, x: AnyArray, weight: AnyArray, cache: AnyArray, window: int | None) -> Alike:
        """The calls so far with an X, `W_qkv` and `K_cache` of these shapes."""
        try:
            shapes = x.shape, x.dtype, weight.shape, cache.shape, window
            found = self._alike.get(shapes)
        except (AttributeError, TypeError):  # these are no arrays
            return Alike()
        if found is None:
            if len(self._alike) >= self.LIMIT:
                self._alike.clear()
            found = self._alike[shapes] = Alike()
        return found
