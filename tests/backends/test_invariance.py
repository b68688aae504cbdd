"""The promise of some backends (`BITWISE`): the same bits always.

Whatever the number of threads, the other rows of the batch, where pages lie, how long blocks are,
flat or block cache. Each for float32, bfloat16 and FP8. `test_isa.py` runs this file once for each
instruction set of the cpu backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tkg
from tests.calls import BACKENDS, Call, project, run, same_bits
from tests.variants import BITWISE, paged, rows
from tkg.testing.case import PADDED, Case, ProjectionCase
from tkg.testing.cases import CASES, PROJECTION_CASES

THREADS = (1, 2, 3, 8)
OTHER_DTYPES = ("float32", "float8_e4m3", "float8_e4m3fn")
DTYPES = ("bfloat16", *(pytest.param(n, marks=pytest.mark.repeats) for n in OTHER_DTYPES))


threads_matter = pytest.mark.parametrize("backend", [b for b in BACKENDS if b == "cpu"])


@pytest.fixture(params=[b for b in BACKENDS if b in BITWISE])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that makes the promise."""
    return request.param


@pytest.fixture(autouse=True)
def threads_restored(backend: str) -> Iterator[None]:
    if backend != "cpu":
        yield
        return
    before = tkg.get_num_threads()
    yield
    tkg.set_num_threads(before)


def case(dtype: str, **fields: Any) -> Case:
    """Long and short rows, so that the KV axis of the long ones is worth splitting."""
    shapes: dict[str, Any] = {"q_heads": 6, "kv_heads": 2, "d_head": 64, "hidden": 192}
    shapes |= {"capacity": 768, "lengths": (750, 0, 300, PADDED, 65, 1)}
    weights: dict[str, Any] = {"qkv": "ROW", "out": "ROW"} if dtype.startswith("float8") else {}
    x = "float32" if dtype == "float32" else "bfloat16"
    return Case(name="same", dtype=x, cache_dtype=dtype, **(shapes | weights | fields))


def on_threads(backend: str, count: int, call: Call) -> tuple[Any, Any, Any]:
    """The call with a number of threads, where a backend has them."""
    if backend == "cpu":
        tkg.set_num_threads(count)
        assert tkg.get_num_threads() == count
    return run(backend, call)


@threads_matter
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cache", ["flat", "transposed", "block"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_threads(backend: str, dtype: str, cache: str, tokens: int) -> None:
    call = case(dtype, cache=cache, tokens=tokens).inputs()
    one = on_threads(backend, 1, call)
    for count in THREADS[1:]:
        assert all(map(same_bits, on_threads(backend, count, call), one))


@threads_matter
@pytest.mark.parametrize(
    "some", [c for c in CASES if "ci" in c.tags and c.name != "smollm2-135m-prompt"], ids=str
)
def test_threads_on_every_case(backend: str, some: Case) -> None:
    call = some.inputs()
    assert all(map(same_bits, on_threads(backend, 3, call), on_threads(backend, 1, call)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(
    ("backend", "threads"),
    [(b, n) for b in BACKENDS if b in BITWISE for n in ((1, 3) if b == "cpu" else (1,))],
)
def test_batch_mates(backend: str, dtype: str, mask: bool, threads: int) -> None:
    options: dict[str, Any] = {"visible": "holes", "lengths": (750, 0, 300, 65)} if mask else {}
    some = case(dtype, **options)
    call = some.inputs()
    out = on_threads(backend, threads, call)[0]
    for row in range(some.batch):
        assert same_bits(run(backend, rows(call, [row]))[0][0], out[row])
    order = [*range(1, some.batch), 0, 0, 2]
    caches = {"update_cache": False}  # a row taken twice may not be written twice
    assert same_bits(run(backend, rows(call, order) | caches)[0], out[order])


@pytest.mark.repeats
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_batch_mates(backend: str, dtype: str) -> None:
    """A row alone, in a batch of 2, and in one that a kernel would tile.

    Hidden states and heads are wide enough for a projection to split its sums.
    """
    wide = {"hidden": 1300, "q_heads": 20, "capacity": 48}
    call = case(dtype, lengths=tuple(range(33)), **wide).inputs()
    out = on_threads(backend, 2, call)[0]
    assert same_bits(on_threads(backend, 3, call)[0], out)
    for row in (0, 1, 7, 31, 32):
        assert same_bits(run(backend, rows(call, [row]))[0][0], out[row])
        assert same_bits(run(backend, rows(call, [row, 5]))[0][0], out[row])


@pytest.mark.parametrize("dtype", DTYPES)
def test_number_of_new_tokens_of_other_rows_and_their_values(backend: str, dtype: str) -> None:
    call = case(dtype, tokens=3).inputs()
    out = run(backend, call)[0].reshape(6, 3, -1)
    X = call["X"].copy()
    X[1:] *= 3
    changed = run(backend, call | {"X": X})[0].reshape(6, 3, -1)
    assert same_bits(changed[0], out[0])
    assert not same_bits(changed[2], out[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, pytest.param(300, marks=pytest.mark.repeats)])
@pytest.mark.parametrize("tokens", [2, pytest.param(5, marks=pytest.mark.repeats)])
def test_pages_and_block_lengths(backend: str, dtype: str, window: int | None, tokens: int) -> None:
    flat = case(dtype, tokens=tokens, window=window).inputs()
    out = run(backend, flat)[0]
    for block_len in (1, 3, 16, 64, 256):
        call = paged(flat, block_len)  # pages in random order
        assert same_bits(run(backend, call)[0], out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_capacity(backend: str, dtype: str) -> None:
    """The split of the KV axis follows from a row's own length, not from the cache's."""
    call = case(dtype).inputs()
    longer = dict(call)
    for name in ("K_cache", "V_cache"):
        pad = np.full((6, 2, 1000, 64), np.nan).astype(call[name].dtype)
        longer[name] = np.concatenate([call[name], pad], axis=2)
    assert same_bits(run(backend, longer)[0], run(backend, call)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_context_of_the_mask(backend: str, dtype: str) -> None:
    """A bucketed S_ctx: masked slots between the last valid one and the new tokens."""
    call = case(dtype, visible="holes", tokens=3, lengths=(300, 17)).inputs()
    out = run(backend, call)[0]
    mask = call["attention_mask"]
    bucket = np.zeros((700, *mask.shape[1:]), mask.dtype)
    bucket[: mask.shape[0] - 3], bucket[-3:] = mask[:-3], mask[-3:]
    assert same_bits(run(backend, call | {"attention_mask": bucket})[0], out)


@pytest.mark.repeats
def test_again_and_again(backend: str) -> None:
    call = case("bfloat16").inputs()
    first = on_threads(backend, 3, call)
    for _ in range(20):
        assert all(map(same_bits, run(backend, call), first))


@threads_matter
@pytest.mark.parametrize("some", PROJECTION_CASES, ids=str)
def test_projection_threads(backend: str, some: ProjectionCase) -> None:
    call = some.inputs()
    tkg.set_num_threads(1)
    one = project(backend, call)
    for count in THREADS[1:]:
        tkg.set_num_threads(count)
        assert same_bits(project(backend, call), one)


@pytest.mark.parametrize("quantization", ["NONE", "STATIC", "ROW"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_projection_batch_mates(backend: str, dtype: str, quantization: Any) -> None:
    sizes: dict[str, Any] = {"d_head": 320, "batch": 37, "tokens": 2, "hidden": 300}
    some = ProjectionCase(name="same", dtype=dtype, quantization=quantization, **sizes)
    call = some.inputs()
    out = project(backend, call).reshape(37, 2, -1)
    for row in (0, 5, 36):
        alone: Call = dict(call)
        alone["attention"] = np.ascontiguousarray(call["attention"][:, row : row + 1])
        assert same_bits(project(backend, alone), out[row])
