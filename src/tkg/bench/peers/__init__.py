"""Who takes part: tkg, and what a user could take instead. One file each, loaded when asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from typing import Any, Protocol

from tkg.bench.check import Answer
from tkg.bench.inputs import Call
from tkg.bench.workloads import DTYPES


class Contestant(Protocol):
    """One way to run a row, with its weights and caches loaded.

    Attributes:
        calls_per_run: calls of the block that one `run` makes.
    """

    calls_per_run: int

    def settle(self) -> None:
        """Called, untimed, before every run: whatever must be put right between runs."""
        ...

    def run(self) -> None:
        """The next call, on the next copy of weights and caches."""
        ...

    def answer(self) -> Answer:
        """Run the first copy, on fresh caches, and return its answer."""
        ...


@dataclass(frozen=True)
class Setup:
    """What a contestant is built from.

    Attributes:
        call: keyword arguments for the whole batch; not to be written to.
        copies: of the weights and caches that it must rotate through.
        threads: that it may use.
    """

    call: Call
    copies: int
    threads: int


class CannotRun(Exception):
    """The peer has no way to express this row; the message says what is missing."""


@dataclass(frozen=True)
class Peer:
    """A line of the list of contestants.

    Attributes:
        name: on the command line and in the tables.
        module: in this package; its `build(setup)` returns the contestant or raises `CannotRun`.
        packages: that must be importable; the first one gives the version.
        install: how a user gets it.
        formats: the dtype it computes in for each of `DTYPES`; the row's own hidden states' dtype
            for those not named.
        memory: bytes it takes for each byte of weights and caches.
        what: one line for `--list`.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    install: str
    what: str
    formats: tuple[tuple[str, str], ...] = ()
    memory: float = 1.0

    @property
    def ours(self) -> bool:
        """Whether it runs the row's own call, FP8 and pages included."""
        return self.name == "tkg"

    def computes_in(self, dtype: str) -> str:
        """NumPy's name of the dtype that it computes a row in."""
        own = dict(self.formats)
        return own[dtype] if dtype in own else DTYPES[dtype]["dtype"]

    def absent(self) -> str | None:
        """Why it cannot take part, or `None`."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f"install {' and '.join(missing)}: {self.install}" if missing else None

    def builder(self) -> Callable[[Setup], Any]:
        """The module's `build`; importing it loads the peer."""
        return importlib.import_module(f"tkg.bench.peers.{self.module}").build

    def version(self) -> str:
        """Of its first package; "" for tkg itself."""
        if not self.packages:
            return ""
        return version(packages_distributions()[self.packages[0]][0])


_WIDER = tuple((name, "float32") for name in DTYPES if name != "fp16")
"""For libraries without bfloat16 arithmetic on a CPU."""

PEERS: tuple[Peer, ...] = (
    Peer("tkg", "ours", (), "", "tkg.AttentionBlock on the cpu backend"),
    Peer(
        "torch",
        "torch_eager",
        ("torch",),
        "pip install torch",
        "eager: linear, RoPE by hand, scaled_dot_product_attention over grouped heads",
    ),
    Peer(
        "torch.compile",
        "torch_compile",
        ("torch",),
        "pip install torch",
        "the same function through torch.compile; needs a C++ compiler",
    ),
    Peer(
        "onnxruntime",
        "onnx_runtime",
        ("onnxruntime", "onnx"),
        "pip install onnxruntime onnx",
        "MatMul and GroupQueryAttention nodes, caches shared through an I/O binding",
        _WIDER,
        memory=2.0,  # MatMul keeps its weights a second time, in its own layout
    ),
    Peer(
        "openvino",
        "open_vino",
        ("openvino",),
        "pip install openvino",
        "MatMul and ScaledDotProductAttention nodes over a stateful cache",
        memory=2.0,
    ),
)


CUDA_PEERS: tuple[Peer, ...] = (
    Peer("tkg", "cuda_ours", ("torch", "triton"), "pip install torch", "the cuda backend"),
    Peer(
        "torch",
        "cuda_torch",
        ("torch",),
        "pip install torch",
        "eager operations: linear, RoPE by hand, scaled_dot_product_attention over grouped heads",
    ),
    Peer(
        "torch.compile",
        "cuda_compile",
        ("torch", "triton"),
        "pip install torch",
        "the same function through torch.compile in mode max-autotune",
    ),
    Peer(
        "flash-attn",
        "cuda_flash_attn",
        ("flash_attn", "torch"),
        "pip install flash-attn",
        "the same function with flash_attn_with_kvcache as its attention",
    ),
    Peer(
        "flashinfer",
        "cuda_flashinfer",
        ("flashinfer", "torch"),
        "pip install flashinfer-python",
        "the same function with FlashInfer's batched decode as its attention",
    ),
)
"""Those of `tkg bench --backend cuda`; each one's calls are captured in a CUDA graph."""


def find(name: str, known: tuple[Peer, ...] = PEERS) -> Peer:
    """The contestant of that name among those known.

    Raises:
        ValueError: there is none.
    """
    for peer in known:
        if peer.name == name:
            return peer
    raise ValueError(f"peer must be one of {', '.join(p.name for p in known)}; got {name!r}")
