"""What an executed instruction leaves for the observers: time, traffic, hazards, pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .enums import engine as Engine
from .errors import NkiValidationError
from .memory import Site
from .tensor import Access, NKIObject


@dataclass(eq=False, slots=True)
class Record:
    """One instruction.

    `work` holds what its cost depends on beyond its operands, in the instruction's own words (each
    function of `isa` lists them in its docstring). `after` are indices of records that it waits
    for by the kernel's own wish (`depends_on`). `loop` identifies the device loop that contains it.
    """

    index: int
    op: str
    engine: Engine
    core: int
    site: Site
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    work: dict[str, Any]
    name: str | None
    loop: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


class NkiInstruction(NKIObject):
    """Handle of an issued instruction."""

    __slots__ = ("record",)

    def __init__(self, record: Record | None):
        self.record = record

    def depends_on(self, *producers: NkiInstruction) -> NkiInstruction:
        """This instruction waits for each producer; both must be in the same device loop."""
        for producer in producers:
            mine, theirs = self.record, producer.record
            if mine is None or theirs is None:
                continue
            if mine.loop[: len(theirs.loop)] != theirs.loop:
                raise NkiValidationError(
                    f"{mine.site}: depends_on: {theirs.op} at {theirs.site} is inside a device loop"
                    " that this instruction is not in; its semaphore would not fire as often as it"
                    " is waited for; move both into the same loop"
                )
            mine.after += (theirs.index,)
        return self
