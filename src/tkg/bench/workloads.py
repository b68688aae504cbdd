"""What is measured: a named attention layer, its number formats, and the size of the step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tkg.testing import model_cases
from tkg.testing.case import Case

WORKLOADS: dict[str, Case] = {
    "smollm2": model_cases.SMOLLM2,
    "qwen3-0.6b": model_cases.QWEN3,
    "llama3-8b-tp8": model_cases.LLAMA3_8B_RANK,
    "llama3-8b": model_cases.LLAMA3_8B,
    # One of the layers that see the whole context; the hidden states are not padded on a CPU.
    "gpt-oss-tp8": replace(model_cases.GPT_OSS_RANK, hidden=2880, hidden_actual=None, window=None),
}
"""Name on the command line to the layer; "tp8" is one of eight tensor-parallel ranks."""

DTYPES: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "fp16": {"dtype": "float16"},
    "bf16": {"dtype": "bfloat16"},
    "fp8-row": {"dtype": "bfloat16", "qkv": "ROW", "out": "ROW"},
    "fp8-static": {"dtype": "bfloat16", "qkv": "STATIC", "out": "STATIC"},
    "fp8-row-kv8": {
        "dtype": "bfloat16",
        "qkv": "ROW",
        "out": "ROW",
        "cache_dtype": "float8_e4m3",
    },
    "fp8-static-kv8": {
        "dtype": "bfloat16",
        "qkv": "STATIC",
        "out": "STATIC",
        "cache_dtype": "float8_e4m3",
    },
}
"""Name on the command line to the fields of a case: FP8 rows have bfloat16 hidden states."""

BATCHES = (1, 4, 16, 64)
CONTEXTS = (1024, 8192, 32768)
TOKENS = (1, 4)
CACHES = ("flat", "block")
BLOCK_LEN = 16


@dataclass(frozen=True)
class Row:
    """One line of the benchmark.

    Attributes:
        workload: a name in `WORKLOADS`.
        dtype: a name in `DTYPES`.
        batch: B.
        context: S_ctx of every row of the batch, new tokens included.
        tokens: S_tkg.
        cache: "flat" or "block" (pages of 16 slots).
    """

    workload: str
    dtype: str = "bf16"
    batch: int = 1
    context: int = 4096
    tokens: int = 1
    cache: str = "flat"

    def case(self, rows: int) -> Case:
        """The row's layer with `rows` rows of the batch."""
        formats = DTYPES[self.dtype]
        return replace(
            WORKLOADS[self.workload],
            name=str(self),
            lengths=(self.context - self.tokens,) * rows,
            capacity=-(-self.context // BLOCK_LEN) * BLOCK_LEN,
            block_len=BLOCK_LEN,
            tokens=self.tokens,
            cache=self.cache,
            small_dtype="float32",
            **formats,
        )

    def __str__(self) -> str:
        layout = "" if self.cache == "flat" else f" {self.cache}"
        tokens = "" if self.tokens == 1 else f" S={self.tokens}"
        return f"{self.workload} {self.dtype} B={self.batch} context={self.context}{tokens}{layout}"


QUICK: tuple[Row, ...] = (
    Row("smollm2", context=1024),
    Row("qwen3-0.6b", context=1024),
    Row("llama3-8b-tp8"),
    Row("llama3-8b-tp8", dtype="fp8-row-kv8"),
    Row("llama3-8b-tp8", dtype="fp32"),
    Row("llama3-8b-tp8", batch=4),
    Row("gpt-oss-tp8", cache="block"),
)
"""`tkg bench --quick`."""

H100: tuple[Row, ...] = (
    Row("llama3-8b"),
    Row("llama3-8b", context=16384),
    Row("llama3-8b", batch=16),
    Row("llama3-8b", batch=16, context=16384),
    Row("llama3-8b", dtype="fp8-row-kv8"),
)
"""`tkg bench --backend cuda`: a whole Llama-3-8B layer, as targets for one H100 are stated."""


def rows(
    workloads: Sequence[str],
    dtypes: Sequence[str],
    batches: Sequence[int],
    contexts: Sequence[int],
    sizes: tuple[Sequence[int], Sequence[str]],
) -> list[Row]:
    """Every combination, in the order given; `sizes` is (numbers of new tokens, layouts).

    Raises:
        ValueError: a name is unknown or a number makes no sense.
    """
    tokens, caches = sizes
    for what, given, known in (
        ("workload", workloads, WORKLOADS),
        ("dtype", dtypes, DTYPES),
        ("cache", caches, CACHES),
    ):
        for name in given:
            if name not in known:
                raise ValueError(f"{what} must be one of {', '.join(known)}; got {name!r}")
    for what, numbers, least in (
        ("batch", batches, 1),
        ("s-tkg", tokens, 1),
        ("context", contexts, max(tokens, default=1) + 1),
    ):
        for number in numbers:
            if number < least:
                raise ValueError(f"{what} must be at least {least}; got {number}")
    return [
        Row(*combination)
        for combination in itertools.product(workloads, dtypes, batches, contexts, tokens, caches)
    ]
