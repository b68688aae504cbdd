"""GpSimd's own instructions against plain loops, and their rules."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiHazardError
from nkisim.isa.ops import Op
from nkisim.tensor import NkiTensor
from tests.nkisim.harness import empty, execute, fill, observe, records, tile, values_of

BF16 = ml_dtypes.bfloat16
OFFSETS: dict[str, tuple[list, int, int, tuple[int, ...]]] = {
    "arange": ([[1, 12]], 0, 0, (5, 12)),
    "minus": ([[-1, 12]], 11, 0, (5, 12)),
    "partition": ([[0, 3]], 5, 2, (128, 3)),
    "four": ([[100, 2], [10, 3], [0, 1], [-1, 4]], -7, 1000, (3, 2, 3, 4)),
    "flat": ([[10, 3], [1, 4]], 0, 1, (2, 12)),
}


def affine(shape: tuple[int, ...], pattern: list, offset: int, multiplier: int) -> np.ndarray:
    """The documented loops: partition, then the pattern's dimensions, outermost first."""
    result = np.zeros((shape[0], int(np.prod(shape[1:]))), np.int64)
    for p in range(shape[0]):
        for at, index in enumerate(np.ndindex(*(count for _, count in pattern))):
            steps = sum(i * step for i, (step, _) in zip(index, pattern, strict=True))
            result[p, at] = offset + p * multiplier + steps
    return result.reshape(shape)


@pytest.mark.parametrize("dtype", ["int32", "float32", "bfloat16", "int16", "uint8"])
@pytest.mark.parametrize("case", OFFSETS)
def test_iota(case: str, dtype: str) -> None:
    pattern, offset, multiplier, shape = OFFSETS[case]

    def body() -> np.ndarray:
        dst = empty(shape, dtype)
        nisa.iota(dst, pattern, offset, multiplier)
        return values_of(dst)

    wanted = affine(shape, pattern, offset, multiplier)
    if dtype in ("int16", "uint8"):
        limits = np.iinfo(dtype)
        wanted = wanted.clip(limits.min, limits.max)
    got = execute(body)
    np.testing.assert_array_equal(got, wanted.astype(got.dtype))


def test_iota_writes_a_strided_view_and_wraps_like_32_bits() -> None:
    def body() -> np.ndarray:
        dst = tile(np.zeros((2, 8), np.int32))
        nisa.iota(dst[:, 1:8:2], [[1, 4]], offset=2**31 - 2)
        return values_of(dst)

    wanted = np.zeros((2, 8), np.int64)
    wanted[:, 1::2] = 2**31 - 2 + np.arange(4)
    np.testing.assert_array_equal(execute(body), wanted.astype(np.int32))


def test_a_register_as_offset_f35() -> None:
    """F35: iota and affine_select take a register as offset."""

    def body() -> tuple[np.ndarray, np.ndarray]:
        register = nisa.register_alloc(7)
        dst = empty((1, 4), "int32")
        nisa.iota(dst, [[1, 4]], offset=register)
        kept = empty((1, 12))
        ones = tile(np.ones((1, 12), np.float32))
        nisa.affine_select(kept, [[-1, 12]], 0, ones, 0.0, nl.greater_equal, offset=register)
        return values_of(dst), values_of(kept)

    numbers, kept = execute(body)
    assert numbers.tolist() == [[7, 8, 9, 10]]
    assert kept.tolist() == [[1.0] * 8 + [0.0] * 4]


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("equal", lambda x: x == 0),
        ("not_equal", lambda x: x != 0),
        ("greater", lambda x: x > 0),
        ("greater_equal", lambda x: x >= 0),
        ("less", lambda x: x < 0),
        ("less_equal", lambda x: x <= 0),
    ],
)
def test_affine_select(name: str, holds: Any) -> None:
    rng = np.random.default_rng(3)
    data = rng.standard_normal((6, 4, 5)).astype(np.float32)
    pattern = [[-2, 4], [1, 5]]

    def body() -> np.ndarray:
        dst = empty((6, 20))
        nisa.affine_select(dst, pattern, 1, tile(data), -9.5, getattr(nl, name), offset=-1)
        return values_of(dst)

    chosen = holds(affine((6, 20), pattern, -1, 1))
    wanted = np.where(chosen, data.reshape(6, 20), np.float32(-9.5))
    np.testing.assert_array_equal(execute(body), wanted)


def test_affine_select_defaults_to_equal_f68() -> None:
    """F68: cmp_op defaults to nl.equal, offset to 0: only the diagonal is kept."""

    def body() -> np.ndarray:
        dst = empty((4, 4))
        nisa.affine_select(dst, [[-1, 4]], 1, tile(np.ones((4, 4), np.float32)), 0.0)
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), np.eye(4, dtype=np.float32))


def test_affine_select_keeps_bits_and_casts_through_float32_f10() -> None:
    """F10: a Python float as on_false_value. Equal dtypes keep bits; others go through float32."""
    lowest = float(np.finfo(np.float32).min)
    big = np.array([[2**24 + 1, 5, 2**24 + 1, 5]], np.int32)

    def body() -> tuple[np.ndarray, ...]:
        same, wide = empty((1, 4), "int32"), empty((1, 4), "float32")
        narrow = empty((1, 4), "bfloat16")
        nisa.affine_select(same, [[1, 4]], 0, tile(big), lowest, nl.less, offset=-2)
        nisa.affine_select(wide, [[1, 4]], 0, tile(big), lowest, nl.less, offset=-2)
        nisa.affine_select(narrow, [[1, 4]], 0, tile(big), lowest, nl.less, offset=-2)
        return values_of(same), values_of(wide), values_of(narrow)

    same, wide, narrow = execute(body)
    assert same.tolist() == [[2**24 + 1, 5, -(2**31), -(2**31)]]
    assert wide.tolist() == [[2.0**24, 5.0, lowest, lowest]]
    assert narrow.astype(float).tolist() == [[2.0**24, 5.0, -np.inf, -np.inf]]


@pytest.mark.parametrize("name", ["add", "average", "max", "maximum"])
def test_tensor_partition_reduce(name: str) -> None:
    data = np.random.default_rng(0).integers(-8, 8, (32, 4, 5)).astype(np.float32)
    formula = {"add": np.sum, "average": np.mean, "max": np.max, "maximum": np.max}[name]

    def body() -> np.ndarray:
        dst = empty((1, 4, 5))
        nisa.tensor_partition_reduce(dst, getattr(nl, name), tile(data))
        return values_of(dst)

    np.testing.assert_array_equal(execute(body), formula(data, axis=0, keepdims=True))


@pytest.mark.parametrize(
    ("name", "ufunc"), [("bitwise_or", np.bitwise_or), ("bitwise_and", np.bitwise_and)]
)
def test_tensor_partition_reduce_of_bits(name: str, ufunc: np.ufunc) -> None:
    data = np.random.default_rng(1).integers(-(2**31), 2**31, (8, 6)).astype(np.int32)

    def body() -> np.ndarray:
        dst = empty((1, 6), "int32")
        nisa.tensor_partition_reduce(dst, getattr(nl, name), tile(data))
        return values_of(dst)

    np.testing.assert_array_equal(execute(body)[0], ufunc.reduce(data, axis=0))


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.uint8, np.int32])
def test_nc_n_gather(dtype: Any) -> None:
    rng = np.random.default_rng(2)
    data = rng.integers(0, 200, (7, 3, 9)).astype(dtype)
    indices = rng.integers(0, 27, (7, 2, 6)).astype(np.uint32)

    def body() -> np.ndarray:
        dst = empty((7, 12), nl.ndarray((1, 1), data.dtype).dtype)
        nisa.nc_n_gather(dst, tile(data), tile(indices))
        return values_of(dst)

    wanted = np.zeros((7, 12), dtype)
    for p in range(7):
        for i, index in enumerate(indices[p].reshape(-1)):
            wanted[p, i] = data[p].reshape(-1)[index]
    np.testing.assert_array_equal(execute(body), wanted)


@pytest.mark.parametrize(("each", "valid"), [(1, None), (2, None), (4, 50), (8, 16)])
def test_local_gather(each: int, valid: int | None) -> None:
    """Indices count elements, and every core has its own list, read partition by partition."""
    rng = np.random.default_rng(4)
    data = rng.standard_normal((32, 20, 4)).astype(np.float32)
    index = rng.integers(0, 80 - each, (32, 4)).astype(np.uint16)
    count = 64 if valid is None else valid

    def body() -> np.ndarray:
        dst = empty((32, count, each))
        nisa.local_gather(dst, tile(data), tile(index), each, valid)
        return values_of(dst)

    wanted = np.zeros((32, count, each), np.float32)
    for p in range(32):
        core = index[16 * (p // 16) : 16 * (p // 16) + 16]
        for i in range(count):
            start = core[i % 16, i // 16]
            wanted[p, i] = data[p].reshape(-1)[start : start + each]
    np.testing.assert_array_equal(execute(body), wanted)


def test_local_gather_writes_through_a_view_f33() -> None:
    """F33: a slice or a strided pattern as dst takes the columns that it names, no others."""
    data = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
    index = (np.arange(16, dtype=np.uint16) % 8)[:, None]

    def body() -> np.ndarray:
        big = tile(np.full((16, 40), -1, np.float32))
        nisa.local_gather(big.ap([[40, 16], [2, 16]], offset=5), tile(data), tile(index))
        return values_of(big)

    wanted = np.full((16, 40), -1, np.float32)
    wanted[:, 5:37:2] = data[:, np.arange(16) % 8]
    np.testing.assert_array_equal(execute(body), wanted)


@pytest.mark.parametrize(("n", "k", "columns"), [(42, 8, 3), (48, 48, 3), (8, 1, 2), (30, 5, 4)])
def test_topk_f16(n: int, k: int, columns: int) -> None:
    """F16: the K largest, ascending, with 0-based indices in the 16-partition snake."""
    rng = np.random.default_rng(n)
    # Distinct bfloat16 values, so that the order is the only one.
    values = rng.permutation(2 * 16 * columns).reshape(32, columns).astype(BF16)

    def body() -> tuple[np.ndarray, np.ndarray]:
        top, at = empty((32, k), "bfloat16"), empty((32, k), "uint32")
        nisa.topk(top, at, tile(values), n)
        return values_of(top), values_of(at)

    top, at = execute(body)
    for group in range(2):
        snake = [float(values[16 * group + e % 16, e // 16]) for e in range(n)]
        wanted = sorted(range(n), key=lambda e: snake[e])[-k:]
        for p in range(16 * group, 16 * group + 16):
            assert at[p].tolist() == wanted
            assert top[p].astype(float).tolist() == [snake[e] for e in wanted]


def test_topk_does_not_read_beyond_n() -> None:
    def body() -> np.ndarray:
        src = empty((16, 3), "bfloat16")
        fill(src[:, 0:2], np.arange(32).reshape(16, 2).astype(BF16))
        top, at = empty((16, 2), "bfloat16"), empty((16, 2), "uint32")
        nisa.topk(top, at, src, 32)
        return values_of(top)

    assert execute(body)[0].astype(float).tolist() == [30.0, 31.0]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_nonzero_with_count(dtype: Any) -> None:
    """The stub's own example, and random rows; only partitions 0, 16, 32, ... are touched."""
    data = np.random.default_rng(5).integers(0, 2, (40, 8)).astype(dtype)
    data[0] = [0, 1, 1, 0, 0, 1, 0, 0]
    data[16] = 0
    data[32] = -1

    def body() -> np.ndarray:
        dst = tile(np.full((40, 9), 77, np.int32))
        nisa.nonzero_with_count(dst, tile(data), index_offset=16, padding_val=-1)
        return values_of(dst)

    got = execute(body)
    assert got[0].tolist() == [17, 18, 21, -1, -1, -1, -1, -1, 3]
    assert got[16].tolist() == [-1] * 8 + [0]
    assert got[32].tolist() == [*range(16, 24), 8]
    untouched = [p for p in range(40) if p % 16]
    assert (got[untouched] == 77).all()


def test_nonzero_with_count_leaves_the_other_partitions_unwritten() -> None:
    """Storing the whole result, as the stub's example does, reads partitions that nobody wrote."""

    def body() -> np.ndarray:
        dst = empty((32, 9), "int32")
        nisa.nonzero_with_count(dst, tile(np.ones((32, 8), np.int32)))
        return values_of(nl.copy(dst))

    with pytest.raises(NkiHazardError, match="270 of 288 elements"):
        execute(body)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_sequence_bounds(dtype: Any) -> None:
    """AWS's example of 9 elements, and runs that end at the last element."""

    def bounds(ids: list[int]) -> list[list[float]]:
        def body() -> np.ndarray:
            dst = empty((1, 2, len(ids)), nl.int32 if dtype is np.int32 else nl.float32)
            nisa.sequence_bounds(dst, tile(np.array([ids], dtype)))
            return values_of(dst)

        return execute(body)[0].tolist()

    assert bounds([0, 1, 1, 2, 2, 2, 0, 3, 3]) == [
        [9, 1, 1, 3, 3, 3, 9, 7, 7],
        [-1, 3, 3, 6, 6, 6, -1, 9, 9],
    ]
    assert bounds([4, 4, 4]) == [[0, 0, 0], [3, 3, 3]]
    assert bounds([0, 0, 7, 0]) == [[4, 4, 2, 4], [-1, -1, 3, -1]]


def zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> NkiTensor:
    return tile(np.zeros(shape, dtype))


def test_the_records_are_gpsimds() -> None:
    def body() -> None:
        nisa.iota(empty((4, 4)), [[1, 4]])
        nisa.affine_select(empty((4, 4)), [[1, 4]], 0, zeros((4, 4)), 0.0, nl.less)
        nisa.nc_n_gather(empty((4, 2)), zeros((4, 4)), zeros((4, 2), np.uint32))
        nisa.local_gather(empty((16, 16)), zeros((16, 4)), zeros((16, 1), np.uint16))

    executed = records(observe(body))
    assert [record.op for record in executed] == [
        "iota", "affine_select", "nc_n_gather", "local_gather",
    ]  # fmt: skip
    assert {record.engine for record in executed} == {nisa.engine.gpsimd}
    assert executed[1].work == {"op": "less"} and executed[3].work == {"indices": 16, "each": 1}
    assert isinstance(nl.less, Op)
