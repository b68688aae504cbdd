"""What `tkg profile` runs: a call, its run on simulated cores, and the check of its answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

import tkg
from nkisim.kernel import on_report
from nkisim.report import Report
from tkg.bench import workloads
from tkg.bench.check import Expected, answer_of
from tkg.bench.inputs import repeated
from tkg.contract.cost import Call
from tkg.testing import model_cases
from tkg.testing.budgets import Check, check_block, check_projection
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.placed import own_caches
from tkg.testing.verify import COMPUTES, block_truth, projection_truth

Arguments = dict[str, Any]

QWEN3_235B_RANK = replace(
    model_cases.QWEN3,  # Qwen/Qwen3-235B-A22B: 64 q, 4 kv heads
    hidden=4096,
    q_heads=16,
    kv_heads=1,
)

LAYERS: dict[str, Case] = workloads.WORKLOADS | {
    "llama3-70b-tp8": model_cases.LLAMA3_70B_RANK,
    "llama3-70b-tp64": replace(model_cases.LLAMA3_70B_RANK, q_heads=1),
    "qwen3-235b-tp4": QWEN3_235B_RANK,
    # A layer that sees the whole context; the hidden states are padded to a multiple of 128.
    "gpt-oss-tp8-padded": replace(model_cases.GPT_OSS_RANK, window=None),
}
"""Name on the command line to the layer: `tkg bench`'s, and some of tensor-parallel ranks."""

FORMATS: dict[str, Arguments] = workloads.DTYPES | {
    "fp8": workloads.DTYPES["fp8-row-kv8"],
    "bf16-kv8": {"dtype": "bfloat16", "cache_dtype": "float8_e4m3"},
}
"""`tkg bench`'s number formats, a short name for FP8 weights and caches, and FP8 caches alone."""

CHECKED_SCORES = 2**18
"""Attention scores of the distinct rows that are checked in float64: a few seconds, 2.5 GB."""

DRAWN_ELEMENTS = 2**22
"""Elements of a cache that are drawn; the rows of a larger batch repeat."""


@dataclass(frozen=True)
class Shape:
    """A layer and the size of a step. Every slot of the context but the new ones is valid.

    Attributes:
        layer: hidden size, heads, norms, RoPE, bias, sink.
        dtype: a name in `FORMATS`.
        batch, context, tokens: B, S_ctx (new tokens included) and S_tkg.
        cache: its layout; `block_len`: slots a page of a block cache.
    """

    layer: Case
    dtype: str = "bf16"
    batch: int = 1
    context: int = 8192
    tokens: int = 1
    cache: Literal["flat", "transposed", "block"] = "flat"
    block_len: int = 32

    def __post_init__(self) -> None:
        if self.dtype not in FORMATS:
            raise ValueError(f"dtype must be one of {', '.join(FORMATS)}; got {self.dtype!r}")
        if self.context <= self.tokens:
            raise ValueError(f"context must be above s-tkg = {self.tokens}; got {self.context}")
        if self.cache == "block" and self.context % self.block_len:
            rule = f"context must be a multiple of block-len = {self.block_len}"
            raise ValueError(f"{rule}; got {self.context}")

    def case(self, rows: int) -> Case:
        """The layer with `rows` rows of the batch."""
        return replace(
            self.layer,
            name=str(self),
            lengths=(self.context - self.tokens,) * rows,
            capacity=self.context,
            block_len=self.block_len,
            tokens=self.tokens,
            cache=self.cache,
            **FORMATS[self.dtype],
        )

    def distinct(self, scores: int = CHECKED_SCORES) -> int:
        """How many rows of the batch differ: a divisor of it, at most 4."""
        elements = self.layer.kv_heads * self.layer.d_head * self.context
        fit = min(DRAWN_ELEMENTS // elements, scores // self._scores())
        return max(n for n in (1, 2, 3, 4) if self.batch % n == 0 and (n <= fit or n == 1))

    def checkable(self, scores: int = CHECKED_SCORES) -> Shape:
        """The same with as much of the context as float64 judges in good time."""
        shape = self
        step = 2 * self.block_len if self.cache == "block" else 2
        while shape._scores() > scores and shape.context % step == 0:
            shape = replace(shape, context=shape.context // 2)
        return shape

    def _scores(self) -> int:
        """Attention scores of one row."""
        return self.layer.q_heads * self.tokens * self.context

    def __str__(self) -> str:
        pages = f" of {self.block_len}" if self.cache == "block" else ""
        sizes = f"B={self.batch} S_tkg={self.tokens} S_ctx={self.context}"
        return f"{self.layer.name} {self.dtype} {sizes} {self.cache}{pages} cache"


@dataclass(frozen=True)
class Profiled:
    """A run of the neuron backend on the simulator.

    Attributes:
        call: what was run; its caches may have changed.
        report: the simulator's.
        checks: of the answer, against float64; empty where it was not compared.
    """

    call: Call
    report: Report
    checks: tuple[Check, ...] = ()

    @property
    def right(self) -> bool:
        return all(check.ok for check in self.checks)


def run_case(case: Case | ProjectionCase, lnc: int | None = None) -> Profiled:
    """Run and check a named case on `lnc` cores; `None`: on one, or as its output layout says.

    Raises:
        ValueError: its output layout is that of another number of cores.
        Unsupported: the kernels cannot run it.
    """
    call = case.inputs()
    laid_out = case.projection == "transposed" if isinstance(case, Case) else case.transposed
    if laid_out and lnc not in (None, case.lnc):
        raise ValueError(f"lnc must be {case.lnc} for {case}, whose output is laid out so")
    if lnc is not None:
        call["lnc"] = lnc
    computes = COMPUTES["neuron"]
    if isinstance(case, ProjectionCase):
        described, out, report = _observed(tkg.output_projection_tkg, call)
        checks = [check_projection(call, out, projection_truth(call), computes)]
    else:
        described, out, report = _observed(tkg.attention_block_tkg, own_caches(call))
        checks = check_block(call, out, block_truth(call), computes)
    return Profiled(described, report, tuple(checks))


def run_shape(shape: Shape, lnc: int = 1, check: bool = True) -> Profiled:
    """Run a shape, and check each row of the batch.

    Raises:
        Unsupported: the kernels cannot run it.
    """
    rows = shape.distinct()
    some = shape.case(rows).inputs() | {"lnc": lnc}
    call = repeated(some, shape.batch // rows)
    own = own_caches(call) if check else call
    described, (out, K, V), report = _observed(tkg.attention_block_tkg, own)
    if not check:
        return Profiled(described, report)
    if shape.cache == "transposed":
        call["K_cache"], K = np.swapaxes(call["K_cache"], -1, -2), np.swapaxes(K, -1, -2)
    expected = Expected(some, COMPUTES["neuron"])
    return Profiled(described, report, tuple(expected.judge(answer_of(call, out, K, V))))


def _observed(operation: Any, call: Arguments) -> tuple[Call, Any, Report]:
    """Run a call on the simulator as its caller would: (the call, what it returns, the report)."""
    reports: list[Report] = []
    on_report.append(reports.append)
    try:
        result = operation(**call, backend="neuron")
    finally:
        on_report.remove(reports.append)
    return tkg.describe(operation, **call), result, reports[-1]
