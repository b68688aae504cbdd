"""Attention alone: queries and new tokens in SBUF, the cache in HBM, the output in SBUF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.language as nl
from tests.neuron.on_chip import close, on_cores, put, rng, values_of
from tkg.backends.neuron import attention_tkg as module
from tkg.backends.neuron import merging, passes
from tkg.backends.neuron.attention_block_tkg import (
    context_length,
    parity_picks,
    prepare_queries,
    share_work,
    swap_rows,
)
from tkg.backends.neuron.attention_tkg import attention_tkg
from tkg.backends.neuron.cache_reads import CacheReader, block_rows
from tkg.backends.neuron.cache_update_tkg import NewTokens
from tkg.backends.neuron.context import (
    plan_context,
    visible_from_mask,
    visible_from_positions,
)
from tkg.backends.neuron.new_tokens import load_sink

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3


@dataclass
class Problem:
    """Float32 queries over a cache of any dtype, so that the answer is known to float32's digits.

    `lengths`: valid slots of each row; `masked`: visibility by a random mask instead.
    """

    lengths: tuple[int, ...] = (37, 5)
    capacity: int = 64
    tokens: int = 1
    q: int = 4
    kv: int = 2
    d: int = 16
    layout: str = "flat"
    block_len: int = 16
    dtype: Any = np.float32
    window: int = 0
    masked: bool = False
    context: int | None = None  # of the mask
    sink: bool = False
    scale: float = 0.3

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def prior(self) -> int:
        return (self.context or self.capacity) - self.tokens

    def draw(self, seed: int, *shape: int) -> np.ndarray:
        return rng(seed).standard_normal(shape).astype(np.float32)

    def inputs(self) -> dict[str, np.ndarray]:
        """q [d, N, B, S]; k, v [d, kv, B, S]; K, V [B, kv, capacity, d]; seen
        [B, N, S, prior + S]."""
        tokens = (self.batch, self.tokens)
        result = {"q": self.draw(0, self.d, self.q, *tokens)}
        for seed, name in ((1, "k"), (2, "v")):
            result[name] = self.draw(seed, self.d, self.kv, *tokens).astype(self.dtype)
        for seed, name in ((3, "K"), (4, "V")):
            shape = (self.batch, self.kv, self.capacity, self.d)
            result[name] = self.draw(seed, *shape).astype(self.dtype)
        result["sink"] = 1 + self.draw(5, self.q, 1)
        result["seen"] = self.seen()
        return result

    def seen(self) -> np.ndarray:
        shape = (self.batch, self.q, self.tokens, self.prior + self.tokens)
        if self.masked:
            seen = rng(6).random(shape) < 0.4
            seen[-1, -1] = False  # a head with nothing to attend to
            return seen
        seen = np.zeros(shape, bool)
        for b, s in np.ndindex(self.batch, self.tokens):
            here = self.lengths[b] + s
            first = max(0, here - self.window + 1) if self.window else 0
            seen[b, :, s, first : self.lengths[b]] = True
            seen[b, :, s, self.prior + max(0, first - self.lengths[b]) : self.prior + s + 1] = True
        return seen

    def expected(self, x: dict[str, np.ndarray]) -> np.ndarray:
        """[d, B, N, S] in float64, zero where nothing is seen."""
        group = self.q // self.kv
        wide = {name: value.astype(np.float64) for name, value in x.items()}
        keys, values = (
            np.concatenate(
                [wide[name.upper()][:, :, : self.prior], wide[name].transpose(2, 1, 3, 0)], 2
            ).repeat(group, axis=1)
            for name in "kv"
        )
        query = wide["q"].transpose(2, 1, 3, 0)  # [B, N, S, d]
        scores = np.where(x["seen"], query @ keys.swapaxes(2, 3) * self.scale, -np.inf)
        sink = wide["sink"] if self.sink else np.full((self.q, 1), -np.inf)
        top = np.maximum(scores.max(3), sink)
        top = np.where(np.isfinite(top), top, 0)
        p = np.exp(scores - top[..., None])
        total = p.sum(3) + np.exp(sink - top)
        out = p @ values / np.where(total > 0, total, 1)[..., None]
        return out.transpose(3, 0, 1, 2)

    def in_hbm(self, x: dict[str, np.ndarray]) -> list[np.ndarray]:
        """K, V, block table (or a dummy), mask or pos_ids, sink; NaN where nothing may be read."""
        K, V = x["K"].copy(), x["V"].copy()
        group = (self.batch, self.kv, self.q // self.kv, self.tokens)
        used = np.zeros(K.shape[:3], bool)
        seen = x["seen"][..., : self.prior].reshape(*group, self.prior).any((2, 3))
        used[:, :, : self.prior] = seen
        K[~used], V[~used] = np.nan, np.nan
        table = np.zeros((1, 1), np.int32)
        if self.layout == "transposed":
            K = np.ascontiguousarray(K.swapaxes(2, 3))
        elif self.layout == "block":
            table, K, V = self.paged(K, V, np.any(used, axis=1))
        mask = np.ascontiguousarray(x["seen"].transpose(3, 0, 1, 2)).astype(np.uint8)
        mask[mask > 0] = rng(8).integers(1, 256, int(mask.sum()), np.uint8)
        positions = np.array(self.lengths, np.int32)[:, None] + np.arange(self.tokens)
        return [K, V, table, mask if self.masked else positions.astype(np.int32), x["sink"]]

    def paged(self, K: np.ndarray, V: np.ndarray, used: np.ndarray) -> list[np.ndarray]:
        """Blocks in random order; table entries that nobody needs are out of range."""
        n = self.block_len
        columns = self.capacity // n
        table = rng(7).permutation(self.batch * columns).reshape(self.batch, columns)
        pages = []
        for cache in (K, V):
            page = cache.reshape(self.batch, self.kv, columns, n, self.d).transpose(0, 2, 3, 1, 4)
            pages.append(np.empty((table.size, n, self.kv, self.d), cache.dtype))
            pages[-1][table] = page
        needed = used.reshape(self.batch, columns, n).any(2)
        table[~needed] = rng(9).choice([-1, 2**31 - 1, -(2**31), table.size], (~needed).sum())
        return [table.astype(np.int32), *pages]

    def run(self, lnc: int) -> list[np.ndarray]:
        """The output on each core."""
        x = self.inputs()

        def body(sbm, K, V, table, visible, sink):
            return self.attend(sbm, x, K, V, (table, visible, sink))

        return on_cores(body, *self.in_hbm(x), lnc=lnc)

    def attend(self, sbm: Any, x: dict[str, Any], K: Any, V: Any, rest: Any) -> np.ndarray:
        """As the block does it, on one core."""
        table, visible, sink = rest
        block = self.layout == "block"
        out = sbm.stack((self.d, self.batch, self.q, self.tokens), nl.float32, "out")
        given = (table if block else None, visible if self.masked else None)
        length, prior = context_length(V, *given, self.tokens)
        context = plan_context(length, prior, self.block_len if block else 0, self.batch)
        rows, here = share_work(self.batch, context)
        runs = block_rows(sbm, table, here, V.shape[0], V.shape[1]) if block else None
        reader = CacheReader(sbm, K, V, here, self.layout == "transposed", runs)
        if self.masked:
            seen = visible_from_mask(sbm, here, visible, self.kv)
        else:
            seen = visible_from_positions(sbm, here, visible, self.tokens, self.window)
        seen.sink = load_sink(sbm, sink) if self.sink else None
        new = NewTokens(put(sbm, x["k"], "k"), put(sbm, x["v"], "v"), None, None)
        q = put(sbm, x["q"].reshape(self.d, self.q, -1), "q")
        picks = parity_picks(sbm, reader)
        queries = prepare_queries(sbm, q, self.scale, picks, new, (nl.float32, K.dtype))
        attention_tkg(sbm, queries, reader, seen, rows, out, here.groups < context.groups)
        if rows[1] < self.batch:
            swap_rows(out, rows)
        return values_of(out)


def check(problem: Problem, lnc: int) -> None:
    wanted = problem.expected(problem.inputs())
    for got in problem.run(lnc):
        close(got, wanted, 4e-6)


LAYOUTS = ["flat", "transposed", "block"]


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16, FP8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_dtypes(layout: str, dtype: type, lnc: int) -> None:
    check(Problem(layout=layout, dtype=dtype), lnc)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("d", [2, 6, 64, 80, 128])
def test_head_sizes(d: int, layout: str, lnc: int) -> None:
    check(Problem(layout=layout, d=d, dtype=BF16, scale=d**-0.5), lnc)
    check(Problem(layout=layout, d=d, dtype=FP8, scale=d**-0.5), lnc)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("q, kv", [(1, 1), (7, 1), (3, 3), (10, 2), (64, 8)])
def test_heads(q: int, kv: int, lnc: int) -> None:
    check(Problem(q=q, kv=kv), lnc)
    check(Problem(q=q, kv=kv, masked=True, layout="block", dtype=BF16), lnc)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("window", [0, 1, 2, 5, 40, 1000])
@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_windows(tokens: int, window: int, lnc: int) -> None:
    """Also shorter than the new tokens are many, and longer than the context."""
    check(Problem(tokens=tokens, window=window, lengths=(41, 0, 3)), lnc)


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_and_sinks(layout: str, tokens: int, lnc: int, sink: bool) -> None:
    check(Problem(layout=layout, tokens=tokens, masked=True, sink=sink), lnc)
    check(Problem(layout=layout, tokens=tokens, sink=sink), lnc)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("context", [3, 20, 64, 65, 66])
def test_masks_shorter_and_longer_than_the_cache(context: int, lnc: int) -> None:
    """S_ctx counts the new tokens: up to as many more than the cache has slots."""
    check(Problem(tokens=2, masked=True, context=context), lnc)
    check(Problem(tokens=2, masked=True, context=context, layout="transposed"), lnc)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("lengths", [(0,), (1,), (63,), (0, 0), (5, 63, 0), (9,) * 7])
@pytest.mark.parametrize("layout", ["flat", "block"])
def test_lengths(layout: str, lengths: tuple[int, ...], lnc: int) -> None:
    """Odd and even batches: two cores share rows, or the context."""
    check(Problem(layout=layout, lengths=lengths, dtype=BF16), lnc)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("capacity", [128, 160, 384, 592])
def test_contexts_of_several_groups(capacity: int, layout: str, lnc: int) -> None:
    """One row: two cores share the context, and the second's last group may be short."""
    check(Problem(lengths=(capacity - 9,), capacity=capacity, layout=layout, dtype=BF16), lnc)
    check(Problem(lengths=(0,), capacity=capacity, layout=layout, masked=True), lnc)


@pytest.mark.parametrize("block_len", [1, 2, 3, 24, 48, 96, 128])
@pytest.mark.parametrize("lnc", [1, 2])
def test_block_lengths(lnc: int, block_len: int) -> None:
    capacity = 384
    problem = Problem(layout="block", capacity=capacity, block_len=block_len, lengths=(300, 17, 1))
    check(problem, lnc)
    problem.dtype = FP8
    check(problem, lnc)


@pytest.fixture
def several_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """So little room for scores that one pass sees one group of one row; the numbers of passes."""
    for user in (passes, merging):
        monkeypatch.setattr(user, "SCORE_BYTES", 4)
    numbers: list[int] = []
    plan = module.plan_passes

    def planned(*args: Any) -> Any:
        result = plan(*args)
        numbers.append(len(result))
        return result

    monkeypatch.setattr(module, "plan_passes", planned)
    return numbers


PASSES = {
    "positions": {},
    "window": {"window": 130, "tokens": 2},
    "mask": {"masked": True, "tokens": 2},
    "sink": {"sink": True},
    "mask and sink": {"masked": True, "sink": True},
}


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", PASSES.values(), ids=PASSES)
def test_several_passes_over_the_context(
    options: dict[str, Any], layout: str, lnc: int, several_passes: list[int]
) -> None:
    """Partial softmaxes are merged; a pass may see nothing at all."""
    sizes = {"lengths": (200, 5, 490), "capacity": 508, "block_len": 4}
    check(Problem(layout=layout, **sizes, **options), lnc)
    assert min(several_passes) > 3


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("dtype", [BF16, FP8])
def test_several_passes_over_narrow_caches(
    dtype: type, lnc: int, several_passes: list[int]
) -> None:
    sizes = {"lengths": (200, 5), "capacity": 508, "block_len": 4}
    check(Problem(layout="block", dtype=dtype, **sizes), lnc)
    assert min(several_passes) >= 2


@pytest.mark.parametrize("lnc", [1, 2])
def test_a_last_pass_of_fewer_rows(lnc: int) -> None:
    """128 columns hold two rows of 3 heads and 16 tokens; the third row is alone."""
    check(Problem(lengths=(9, 13, 15), tokens=16, q=3, kv=1, capacity=32, dtype=BF16), lnc)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("scale", [1e3, -1e3, 1e-30])
def test_scores_of_any_size(scale: float, lnc: int) -> None:
    """Large scores single out one position: the one that float64 singles out."""
    problem = Problem(scale=scale)
    wanted = problem.expected(problem.inputs())
    for got in problem.run(lnc):
        close(got, wanted, 1e-4)


@pytest.mark.parametrize("lnc", [1, 2])
def test_as_many_columns_as_there_may_be(lnc: int) -> None:
    check(Problem(q=2, kv=1, tokens=64, lengths=(70,), capacity=256), lnc)
    check(Problem(q=64, kv=1, tokens=2, lengths=(9, 30), capacity=64, masked=True), lnc)
