"""One launch of a kernel: its cores, its tensors, what was found, and how the programs take
turns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from . import running
from .chips import CHIPS, Chip
from .core import Core
from .enums import SHARED_HBM
from .errors import NkiHazardError, NkiValidationError
from .memory import Allocation, Site, Storage
from .tensor import NkiTensor, dense
from .turns import Turns


@dataclass(frozen=True)
class Options:
    """How a kernel is run.

    `checks`: "raise" stops at the first hazard, "report" collects them in the report, "off" checks
    neither rules nor hazards. `observe`: keep records, from which time, traffic and races are
    worked out. `target`: "trn1", "trn2" (also "gen2", "gen3", "inf2").
    """

    target: str = "trn2"
    checks: Literal["raise", "report", "off"] = "raise"
    observe: bool = True


@dataclass(frozen=True)
class Finding:
    """One hazard: its kind, the kernel's line, the whole story."""

    kind: str
    site: Site
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(eq=False)
class Program:
    """What the cores of one launch share."""

    options: Options
    name: str = "kernel"
    allocations: list[Allocation] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: dict[Site, str] = field(default_factory=dict)
    cores: list[Core] = field(default_factory=list)
    shared: dict[tuple[int, int], Storage] = field(default_factory=dict)
    constants: dict[Any, Storage] = field(default_factory=dict)
    turns: Turns = field(default_factory=Turns)

    @property
    def chip(self) -> Chip:
        return CHIPS[self.options.target]

    def find(self, kind: str, site: Site, text: str) -> None:
        """Note a hazard, once a line and kind; raises at once where the options say so."""
        if self.options.checks == "raise":
            raise NkiHazardError(text)
        self.doubt(kind, site, text)

    def doubt(self, kind: str, site: Site, text: str) -> None:
        """Note what may be a hazard, once a line and kind: AWS documents neither way."""
        if self.options.checks != "off" and not any(
            f.kind == kind and f.site == site for f in self.findings
        ):
            self.findings.append(Finding(kind, site, text))

    def note(self, text: str) -> None:
        """Something worth knowing that is no hazard; kept once a kernel line."""
        self.notes.setdefault(running.site(), text)

    def shared_tensor(self, core: Core, shape: tuple[int, ...], dtype: str, name: str) -> NkiTensor:
        """The core's next shared HBM tensor; the programs of one device must ask for the same."""
        key = (core.rank, core.shared_seen)
        core.shared_seen += 1
        storage = self.shared.get(key)
        if storage is None:
            allocation = core.describe(shape, dtype, SHARED_HBM, name)
            data = np.full(allocation.nbytes, 0xFF, np.uint8)
            storage = Storage(allocation, data, allocation.row_bytes, 0, core.checks)
            self.shared[key] = storage
        allocation = storage.allocation
        if (allocation.shape, allocation.dtype) != (shape, dtype):
            raise NkiValidationError(
                f"{running.site()}: ndarray: shared HBM tensor {key[1]} is {dtype}{list(shape)} on"
                f" program {core.program_id}, but {allocation} on another ({allocation.site}); all"
                " programs must allocate the same shared tensors in the same order"
            )
        return dense(storage)
