"""Programs written as records, without data: for tests of time, placement and traffic.

    script = Script("trn2")
    a = script.sbuf((128, 512), "bfloat16")
    script.dma(a, script.hbm((128, 512), "bfloat16"))
    script.matmul(c, a, b)
    report = script.report()

Tensors are NkiTensor views with no bytes behind them; a script issues instructions with the `work`
that the instructions of `nkisim.isa` give.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from nkisim.core import Core
from nkisim.enums import PRIVATE_HBM, PSUM, SBUF, MemoryRegion, dge_mode
from nkisim.enums import engine as Engine
from nkisim.program import Options, Program
from nkisim.record import NkiInstruction
from nkisim.report import Report
from nkisim.tensor import NkiTensor, dense


class Script:
    """One program; `core` chooses which of its cores gets the next instruction."""

    def __init__(self, target: str = "trn2", cores: int = 1, checks: Any = "raise"):
        self.program = Program(Options(target=target, checks=checks), name="script")
        self.program.cores = [Core(self.program, i, i, cores, 0) for i in range(cores)]
        self.core = self.program.cores[0]

    # -- tensors --------------------------------------------------------------------------------

    def tensor(
        self,
        shape: tuple[int, ...],
        dtype: str,
        buffer: MemoryRegion,
        name: str = "",
        address: tuple[int, int] | None = None,
    ) -> NkiTensor:
        allocation = self.core.describe(shape, dtype, buffer, name, address)
        return dense(SimpleNamespace(allocation=allocation))  # type: ignore[arg-type]

    def sbuf(self, shape: tuple[int, ...], dtype: str = "float32", **more: Any) -> NkiTensor:
        return self.tensor(shape, dtype, SBUF, **more)

    def psum(self, shape: tuple[int, ...], dtype: str = "float32", **more: Any) -> NkiTensor:
        return self.tensor(shape, dtype, PSUM, **more)

    def hbm(
        self, shape: tuple[int, ...], dtype: str = "float32", kind: str = "input", **more: Any
    ) -> NkiTensor:
        tensor = self.tensor(shape, dtype, PRIVATE_HBM, **more)
        tensor.storage.allocation.kind = kind
        return tensor

    # -- instructions ---------------------------------------------------------------------------

    def dma(self, dst: NkiTensor, src: NkiTensor, **work: Any) -> NkiInstruction:
        given = {"mode": dge_mode.unknown, "trigger": Engine.unknown, "indirect": "none", **work}
        return self.core.issue("dma_copy", Engine.dma, (src,), (dst,), **given)

    def matmul(self, dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor) -> NkiInstruction:
        return self.core.issue(
            "nc_matmul", Engine.tensor, (stationary, moving), (dst,), None,
            k=stationary.shape[0], m=stationary.shape[1], n=moving.shape[1],
            dtype=stationary.dtype, onezero=False, transpose=False, double_row=False,
            tile=(0, 0, 128, 128),
        )  # fmt: skip

    def copy(
        self, dst: NkiTensor, src: NkiTensor, engine: Engine = Engine.vector
    ) -> NkiInstruction:
        return self.core.issue("tensor_copy", engine, (src,), (dst,))

    def memset(self, dst: NkiTensor) -> NkiInstruction:
        return self.core.issue("memset", Engine.vector, (), (dst,), None, value=0.0)

    def tensor_tensor(self, dst: NkiTensor, a: NkiTensor, b: NkiTensor) -> NkiInstruction:
        return self.core.issue("tensor_tensor", Engine.vector, (a, b), (dst,), None, op="add")

    def activation(self, dst: NkiTensor, *sources: NkiTensor, op: str = "exp") -> NkiInstruction:
        return self.core.issue("activation", Engine.scalar, sources, (dst,), None, op=op)

    def report(self, schedule: Any = ()) -> Report:
        return Report.of(self.program, schedule)
