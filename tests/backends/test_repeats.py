"""A layer's later steps over a cache do what a new layer's first step does, errors included."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import tkg
import tkg.layer
from tests.calls import BACKENDS, same_bits
from tkg.testing.placed import back, tensor

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cpu out")

HEADS, HIDDEN, CAPACITY, BATCH = tkg.Heads(4, 2, 16), 24, 32, 2
BLOCK_LEN, SPARE = 8, 3  # pages of a block cache, and those that no row has
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

Step = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """Of a layer, its cache and its arrays."""

    layout: str = "flat"
    cache: np.dtype = np.dtype(np.float32)
    x: np.dtype = np.dtype(np.float32)
    library: str = "numpy"
    rope: str | None = "half"
    window: int | None = None
    projection: bool = True

    def layer(self) -> tkg.AttentionBlock:
        rng = np.random.default_rng(1)
        columns = HEADS.qkv_columns
        weights = [rng.standard_normal((HIDDEN, columns), np.float32) / 5]
        weights.append(rng.standard_normal((HEADS.q * HEADS.d_head, 40), np.float32) / 8)
        qkv, out = (tkg.Linear(self.own(weight)) for weight in weights)
        return tkg.AttentionBlock(
            heads=HEADS,
            qkv=qkv,
            out=out if self.projection else None,
            rope=self.rope,
            sliding_window=self.window,
            backend="cpu",
        )

    def own(self, array: np.ndarray) -> Any:
        return array if self.library == "numpy" else tensor(array, "cpu")

    def make_cache(self) -> tkg.KVCache:
        rng = np.random.default_rng(2)
        fp8 = self.cache.itemsize == 1
        scale = tkg.KVScale.quantize(3.0, 5.0) if fp8 else None
        table = None
        if self.layout == "block":
            pages = BATCH * CAPACITY // BLOCK_LEN
            shape: tuple[int, ...] = (pages + SPARE, BLOCK_LEN, HEADS.kv, HEADS.d_head)
            order = rng.permutation(pages + SPARE)[:pages].astype(np.int32)
            table = self.own(order.reshape(BATCH, -1))
        else:
            shape = (BATCH, HEADS.kv, CAPACITY, HEADS.d_head)
        k, v = (rng.standard_normal(shape, np.float32).astype(self.cache) for _ in "kv")
        transposed = self.layout == "transposed"
        if transposed:
            k = np.ascontiguousarray(k.swapaxes(2, 3))
        return tkg.KVCache(self.own(k), self.own(v), transposed, table, scale)

    def step(self, rng: np.random.Generator, tokens: int = 1, slots: str = "") -> Step:
        positions = rng.integers(0, CAPACITY - tokens + 1, (BATCH, 1)) + np.arange(tokens)
        positions = positions.astype(np.int32)
        x = rng.standard_normal((BATCH, tokens, HIDDEN), np.float32).astype(self.x)
        rope = tkg.rope_tables(positions, HEADS.d_head)
        return {
            "x": self.own(x),
            "pos_ids": self.own(positions),
            "rope": None if self.rope is None else tuple(map(self.own, rope)),
            "slots": self.own(self.free_slots(rng, tokens).astype(slots)) if slots else None,
        }

    def free_slots(self, rng: np.random.Generator, tokens: int) -> np.ndarray:
        """Where tokens may go by the rules, though not where they belong; some are skipped."""
        if self.layout == "block":
            pages = BATCH * CAPACITY // BLOCK_LEN + SPARE
            drawn = rng.permutation(pages * BLOCK_LEN)[: BATCH * tokens].reshape(BATCH, tokens)
        else:
            drawn = np.stack([rng.permutation(CAPACITY)[:tokens] for _ in range(BATCH)])
        return np.where(rng.random(drawn.shape) < 0.2, -1, drawn)


KINDS = (
    Kind(),
    Kind(layout="transposed", cache=BFLOAT16, x=BFLOAT16),
    Kind(layout="block", window=5),
    Kind(cache=np.dtype(ml_dtypes.float8_e4m3), rope="interleaved"),
    Kind(cache=np.dtype(ml_dtypes.float8_e4m3fn), layout="block"),
    Kind(rope=None, projection=False, x=np.dtype(np.float16)),
    Kind(library="torch", cache=BFLOAT16, x=BFLOAT16),
    Kind(library="torch", layout="block", window=9),
    Kind(library="torch", cache=np.dtype(ml_dtypes.float8_e4m3fn), projection=False),
)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each step that was checked as if it were the first one."""
    made: list[str] = []
    full = tkg.layer.checked

    def counted(rules: Any, call: Any) -> Any:
        made.append(str(call))
        return full(rules, call)

    monkeypatch.setattr(tkg.layer, "checked", counted)
    return made


def copied(cache: tkg.KVCache) -> tkg.KVCache:
    k, v, table = (
        own.clone() if isinstance(own, torch.Tensor) else None if own is None else own.copy()
        for own in cache.sources
    )
    return tkg.KVCache(k, v, cache.transposed, table, cache.scale)


def outcome(layer: tkg.AttentionBlock, cache: tkg.KVCache, step: Step) -> Any:
    """The output, or the error."""
    try:
        return layer(step["x"], cache, step["pos_ids"], rope=step["rope"], slots=step["slots"])
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def assert_like_a_first_step(
    kind: Kind, layer: tkg.AttentionBlock, cache: tkg.KVCache, step: Step
) -> Any:
    other = copied(cache)
    for mine, copy in zip(cache.sources, other.sources, strict=True):
        if isinstance(mine, np.ndarray):
            copy.flags.writeable = mine.flags.writeable
    want = outcome(kind.layer(), other, step)
    got = outcome(layer, cache, step)
    if isinstance(want, tuple):
        assert got == want
    else:
        assert type(got) is type(want)
        assert same_bits(back(got), back(want))
    for mine, theirs in zip(cache.sources[:2], other.sources[:2], strict=True):
        assert same_bits(back(mine), back(theirs))
    return got


@pytest.mark.parametrize("slots", ["", "int32", "uint32", "int64"])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_later_steps_are_checked_by_the_core_alone(
    kind: Kind, tokens: int, slots: str, checks: list[str]
) -> None:
    rng = np.random.default_rng(0)
    layer, cache = kind.layer(), kind.make_cache()
    layer(cache=cache, **kind.step(rng, tokens, slots))
    for _ in range(5):
        step = kind.step(rng, tokens, slots)
        copy = copied(cache)
        checks.clear()
        got = layer(cache=cache, **step)
        assert not checks
        assert same_bits(back(got), back(kind.layer()(cache=copy, **step)))
        assert all(map(same_bits, back(cache.sources[:2]), back(copy.sources[:2])))


def _changed(name: str, change: Callable[[Any], Any]) -> Callable[[Step, tkg.KVCache], Step]:
    return lambda step, cache: step | {name: change(step[name])}


def _position(row: int, token: int, value: int) -> Callable[[Step, tkg.KVCache], Step]:
    def change(step: Step, cache: tkg.KVCache) -> Step:
        positions = step["pos_ids"].copy()
        positions[row, token] = value
        return step | {"pos_ids": positions}

    return change


def _twice(step: Step, cache: tkg.KVCache) -> Step:
    """Both rows' tokens in one page, at one slot of it."""
    cache.sources[2][1] = cache.sources[2][0]
    return step | {"pos_ids": np.repeat(step["pos_ids"][:1], BATCH, 0)}


def _entry(value: int) -> Callable[[Step, tkg.KVCache], Step]:
    def change(step: Step, cache: tkg.KVCache) -> Step:
        cache.sources[2][1, 1] = value
        return step

    return change


def _read_only(which: int) -> Callable[[Step, tkg.KVCache], Step]:
    def change(step: Step, cache: tkg.KVCache) -> Step:
        cache.sources[which].flags.writeable = False
        return step

    return change


def _slots(slots: list[Any]) -> Callable[[Step, tkg.KVCache], Step]:
    return lambda step, cache: step | {"slots": np.array(slots)}


def _angles(change: Callable[[np.ndarray], Any]) -> Callable[[Step, tkg.KVCache], Step]:
    return lambda step, cache: step | {"rope": tuple(map(change, step["rope"]))}


class Own(np.ndarray):
    """A subclass, whose attributes may mean anything."""


CHANGES: dict[str, Callable[[Step, tkg.KVCache], Step]] = {
    "padded row": _position(1, 0, -1),
    "position below": _position(0, 0, -2),
    "position beyond": _position(1, 0, CAPACITY),
    "position far beyond": _position(1, 0, 2**31 - 1),
    "gap": _position(0, 1, 3),
    "wide positions": _changed("pos_ids", lambda p: p.astype(np.int64)),
    "wide position beyond": _changed("pos_ids", lambda p: p.astype(np.int64) + 2**32),
    "unsigned positions": _changed("pos_ids", lambda p: p.astype(np.uint32)),
    "float positions": _changed("pos_ids", lambda p: p.astype(np.float32)),
    "positions of another shape": _changed("pos_ids", lambda p: p[:, :1]),
    "positions the other way": _changed("pos_ids", lambda p: p[::-1]),
    "no positions": _changed("pos_ids", lambda p: None),
    "a list": _changed("pos_ids", lambda p: p.tolist()),
    "x of another type": _changed("x", lambda x: x.astype(np.float64)),
    "x in half": _changed("x", lambda x: x.astype(np.float16)),
    "x of the other byte order": _changed("x", lambda x: x.astype(x.dtype.newbyteorder())),
    "x of another size": _changed("x", lambda x: x[..., 1:]),
    "x strided": _changed("x", lambda x: np.repeat(x, 2, -1)[..., ::2]),
    "x reversed": _changed("x", lambda x: x[..., ::-1]),
    "x of fewer rows": _changed("x", lambda x: x[:1]),
    "x in torch": _changed("x", torch.from_numpy),
    "x a subclass": _changed("x", lambda x: x.view(Own)),
    "no x": _changed("x", lambda x: None),
    "no rope": _changed("rope", lambda rope: None),
    "half angles": _angles(lambda t: t.astype(np.float16)),
    "angles of another shape": _angles(lambda t: t[1:]),
    "angles strided": _angles(lambda t: np.repeat(t, 2, 0)[::2]),
    "slots": _slots([[3, 4], [9, 1]]),
    "slots that are skipped": _slots([[-1, 4], [9, -1]]),
    "slots below": _slots([[3, -2], [9, 1]]),
    "slots beyond": _slots([[3, 4], [9, 1 << 20]]),
    "slots twice in a row": _slots([[3, 3], [9, 1]]),
    "slots twice in two rows": _slots([[3, 4], [4, 5]]),
    "first slots": _slots([[3], [9]]),
    "slots of no row": _slots([3, 9]),
    "K read-only": _read_only(0),
    "V read-only": _read_only(1),
    "one slot twice": _twice,
    "table below": _entry(-1),
    "table far below": _entry(-(2**31)),
    "table beyond": _entry(BATCH * CAPACITY // BLOCK_LEN + SPARE),
}
PAGED_ONLY = ("one slot twice", "table below", "table far below", "table beyond")


@pytest.mark.parametrize(
    ("change", "layout"),
    [
        (change, layout)
        for change in CHANGES
        for layout in ("flat", "block")
        if layout == "block" or change not in PAGED_ONLY
    ],
)
def test_a_step_unlike_the_one_before(change: str, layout: str) -> None:
    """Each is refused, or run, as by a new layer, between steps that are like the first one."""
    kind, rng = Kind(layout=layout), np.random.default_rng(0)
    layer, cache = kind.layer(), kind.make_cache()
    slots = "int64" if "slots" in change else ""
    for _ in range(2):
        assert_like_a_first_step(kind, layer, cache, kind.step(rng, 2, slots))
    for _ in range(2):
        step = CHANGES[change](kind.step(rng, 2, slots), cache)
        assert_like_a_first_step(kind, layer, cache, step)
    for array in cache.sources[:2]:
        array.flags.writeable = True
    assert_like_a_first_step(kind, layer, cache, kind.step(rng, 2, slots))


def test_what_the_changes_cover() -> None:
    """Some are refused and some are legal, or the test above would say little."""
    refused = {}
    for change in CHANGES:
        kind, rng = Kind(layout="block"), np.random.default_rng(0)
        cache = kind.make_cache()
        step = CHANGES[change](kind.step(rng, tokens=2), cache)
        refused[change] = isinstance(outcome(kind.layer(), cache, step), tuple)
    legal = [change for change, error in refused.items() if not error]
    expected = {"padded row", "wide positions", "x in half", "half angles", "x strided"}
    expected |= {"slots", "slots that are skipped", "first slots"}
    assert expected <= set(legal)
    assert len(legal) < len(refused) / 2


def test_random_steps(checks: list[str]) -> None:
    """Mixed forms over one cache; a good part of them must be repeats."""
    rng = np.random.default_rng(0)
    for kind in KINDS:
        layer, cache = kind.layer(), kind.make_cache()
        for _ in range(12):
            tokens = int(rng.choice([1, 1, 1, 2]))
            step = kind.step(rng, tokens, str(rng.choice(["", "", "int64"])))
            if rng.random() < 0.2:
                positions = back(step["pos_ids"]).copy()
                positions[rng.integers(BATCH)] += rng.choice([-40, 1, 40])
                step["pos_ids"] = kind.own(positions)
            assert_like_a_first_step(kind, layer, cache, step)
    steps = 12 * len(KINDS)
    assert steps < len(checks) < 1.8 * steps  # a new layer's, and some of the layer's own


def test_a_cache_of_another_owner_at_the_same_place() -> None:
    """Nothing is kept alive, and what is gone is not mistaken for what came after it."""
    kind, rng = Kind(), np.random.default_rng(0)
    layer = kind.layer()
    for _ in range(4):
        cache = kind.make_cache()
        for _ in range(2):
            assert_like_a_first_step(kind, layer, cache, kind.step(rng))
        assert layer._repeats.of(cache) is not None
        del cache
        gc.collect()
        assert not layer._repeats._steps


def test_caches_that_take_turns(checks: list[str]) -> None:
    kind, rng = Kind(), np.random.default_rng(0)
    layer, caches = kind.layer(), [kind.make_cache() for _ in range(3)]
    for cache in caches:
        layer(cache=cache, **kind.step(rng))
    checks.clear()
    for _ in range(3):
        for cache in caches:
            layer(cache=cache, **kind.step(rng))
    assert not checks


def test_threads_that_share_a_layer() -> None:
    """Each with a cache of its own."""
    kind = Kind(layout="block")

    def decode(seed: int, layer: tkg.AttentionBlock) -> Iterator[bytes]:
        rng, cache = np.random.default_rng(seed), kind.make_cache()
        for _ in range(200):
            yield layer(cache=cache, **kind.step(rng)).tobytes()
        yield cache.sources[0].tobytes()

    shared = kind.layer()
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda seed: list(decode(seed, shared)), range(4)))
    assert got == [list(decode(seed, kind.layer())) for seed in range(4)]
