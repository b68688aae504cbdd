"""How an illegal call and an unsupported call are reported.

Illegal for everyone is a `ValueError` (or a `TypeError`, if every broken rule is about a type);
legal but not possible on the chosen backend is `Unsupported`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Unsupported(NotImplementedError):
    """A legal call that the chosen backend cannot run. Carries every reason, not only the first.

    Attributes:
        operation: name of the operation, such as `"attention_block_tkg"`.
        reasons: for each backend that was asked, all its reasons.
        alternatives: the backends that could run the same call.
    """

    def __init__(
        self,
        operation: str,
        reasons: Mapping[str, Sequence[str]],
        alternatives: Sequence[str] = (),
    ) -> None:
        self.operation = operation
        self.reasons = {name: tuple(texts) for name, texts in reasons.items()}
        self.alternatives = tuple(alternatives)
        lines = [f"{operation}: no backend can run this call as asked"]
        lines += [f"  {name}: {text}" for name, texts in self.reasons.items() for text in texts]
        if self.alternatives:
            lines.append(f"  could run it: {', '.join(self.alternatives)}")
        super().__init__("\n".join(lines))


class Rules:
    """Collects every broken rule of one call, to raise them together.

    Checks name fields of the call object (`"qkv.weight"`); `names` translates a field to the
    caller's own spelling (`"W_qkv"`), so that both surfaces share one set of checks.
    """

    def __init__(self, operation: str, names: Mapping[str, str] | None = None) -> None:
        self.operation = operation
        self._names = names or {}
        self._broken: list[tuple[bool, str]] = []

    def name(self, field: str) -> str:
        """The caller's spelling of `field`."""
        return self._names.get(field, field)

    def broken(
        self, field: str, rule: str, got: Any, fix: str = "", *, about_type: bool = False
    ) -> bool:
        """Record a broken rule; `rule` reads after the argument's name: "must be ...".

        Returns False: `ok or rules.broken(...)` is whether the rule holds, and makes the texts of
        a broken one only.
        """
        text = f"{self.name(field)} {rule}; got {got}"
        self._broken.append((about_type, f"{text}. {fix}" if fix else text))
        return False

    @property
    def unbroken(self) -> bool:
        """Whether no rule was broken so far."""
        return not self._broken

    def raise_broken(self) -> None:
        """Raise one error that lists all broken rules, if there are any."""
        if not self._broken:
            return
        texts = [text for _, text in self._broken]
        if len(texts) == 1:
            message = f"{self.operation}: {texts[0]}"
        else:
            message = f"{self.operation}: {len(texts)} rules are broken\n" + "\n".join(
                f"  {text}" for text in texts
            )
        only_types = all(about_type for about_type, _ in self._broken)
        raise TypeError(message) if only_types else ValueError(message)


def is_whole(number: object) -> bool:
    """Whether it is an integer, and no bool."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)
