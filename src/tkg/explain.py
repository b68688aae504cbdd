"""What a call would take, without running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tkg.api import attention_block_tkg, describe
from tkg.backends import registry
from tkg.contract.cost import Call, Cost, cost
from tkg.machine import Ceilings, ceilings


@dataclass(frozen=True)
class Explanation:
    """What is known of a call before it runs; printable.

    Attributes:
        call: the call object.
        backends: for each backend, every reason why it cannot run the call (empty: it can).
        cost: the least bytes and FLOPs.
        machine: this machine's measured ceilings, or the reason why they are not known.
    """

    call: Call
    backends: dict[str, list[str]]
    cost: Cost
    machine: Ceilings | str

    @property
    def roofline_seconds(self) -> float | None:
        """The least time on this machine's CPU: the larger of bytes and FLOPs over its ceilings."""
        if isinstance(self.machine, str):
            return None
        return self.cost.seconds(self.machine.bytes_per_second, self.machine.flops_per_second)

    def __str__(self) -> str:
        lines = [str(self.call), "backends:"]
        for name, reasons in self.backends.items():
            lines += [f"  {name}: {reason}" for reason in reasons or ["can run it"]]
        lines.append("bytes that must move:")
        moved = [("read", self.cost.read_bytes), ("write", self.cost.written_bytes)]
        for verb, parts in moved:
            lines += [f"  {verb:5} {name:20} {size:>15,}" for name, size in parts.items() if size]
        lines.append(f"  total {'':20} {self.cost.bytes:>15,}")
        lines.append(f"FLOPs: {self.cost.flops:,}")
        lines.append(f"roofline: {self._roofline()}")
        return "\n".join(lines)

    def _roofline(self) -> str:
        if isinstance(self.machine, str):
            return f"not known: {self.machine}"
        seconds = self.roofline_seconds
        assert seconds is not None
        return (
            f"{seconds * 1e6:,.1f} us on this machine's CPU (measured: "
            f"{self.machine.bytes_per_second / 1e9:.1f} GB/s, "
            f"{self.machine.flops_per_second / 1e9:.0f} GFLOP/s float32)"
        )


def explain(
    operation: Callable[..., Any] = attention_block_tkg, /, *args: Any, **arguments: Any
) -> Explanation:
    """Explain a call without running it: who could run it, what it must move, how long at least.

    Args:
        operation: `tkg.attention_block_tkg` (default) or `tkg.output_projection_tkg`.
        args, arguments: its arguments, without `backend`. `ArraySpec(shape, dtype)` may stand for
            any array; positions that are only described count as all valid.

    Raises:
        ValueError, TypeError: the call is illegal.
    """
    call = describe(operation, *args, **arguments)
    backends = {row.name: registry.unsupported(row, call) for row in registry.BACKENDS}
    return Explanation(call, backends, cost(call), ceilings())
