"""Loads, stores, copies, transposes, broadcasts, gathers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiHazardError, NkiValidationError
from nkisim.tensor import NkiTensor
from tests.nkisim.harness import execute, fill, observe, records, tile, values_of

BF16 = ml_dtypes.bfloat16
RNG = np.random.default_rng(7)


def numbers(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return (RNG.standard_normal(shape) * 20).astype(dtype)


def hbm(shape: tuple[int, ...], dtype: str = nl.float32) -> NkiTensor:
    return nl.ndarray(shape, dtype, buffer=nl.shared_hbm)


@pytest.mark.parametrize("dtype", [None, nl.bfloat16, nl.int32])
def test_load_and_store(dtype: str | None) -> None:
    x = numbers((4, 6, 10))

    def kernel(a: NkiTensor) -> tuple[NkiTensor, NkiTensor]:
        out, row = hbm((6, 5), dtype or nl.float32), hbm((6, 10))
        block = nl.load(a[1, 0:6, 0:10], dtype=dtype)
        assert block.buffer is nl.sbuf and block.dtype == (dtype or "float32")
        assert nl.store(out, value=block[:, 0:10:2]) is None
        nl.store(row, nl.load(a[3]))
        return out, row

    strided, row = execute(kernel, x)
    wanted = x[1, :, ::2]
    if dtype == nl.int32:
        wanted = np.rint(wanted)
    elif dtype == nl.bfloat16:
        wanted = wanted.astype(BF16)
    np.testing.assert_array_equal(strided, wanted)
    np.testing.assert_array_equal(row, x[3])


def test_load_and_store_at_run_time_rows() -> None:
    x = numbers((10, 6))
    rows = np.array([[7], [0], [3]], np.int32)

    def kernel(a: NkiTensor, r: NkiTensor) -> NkiTensor:
        out = nl.zeros((10, 6), nl.float32, buffer=nl.shared_hbm)
        at = nl.load(r)
        nl.store(out.vector_select(0, at), nl.load(a.vector_select(0, at)))
        last = nl.load(a[nl.ds(nisa.register_alloc(9), 1)])
        nl.store(out[nl.ds(nisa.register_alloc(9), 1)], last)
        return out

    wanted = np.zeros_like(x)
    wanted[[7, 0, 3, 9]] = x[[7, 0, 3, 9]]
    np.testing.assert_array_equal(execute(kernel, x, rows), wanted)


def test_load_of_more_than_128_rows_is_refused() -> None:
    with pytest.raises(NkiValidationError, match="256 partitions"):
        execute(lambda a: nl.load(a), numbers((256, 4)))


def test_load_names_what_it_cannot_take() -> None:
    x = numbers((4, 4))
    with pytest.raises(NkiValidationError, match="load: src: .* one dimension"):
        execute(lambda a: nl.load(a[0]), x)
    with pytest.raises(NkiValidationError, match="load: src: .* not in HBM"):
        execute(lambda a: nl.load(nl.load(a)), x)
    with pytest.raises(NkiValidationError, match="load: src: must be a tensor"):
        execute(lambda a: nl.load(3), x)  # type: ignore[arg-type]


def test_store_takes_sbuf_only_f76() -> None:
    """F76: a PSUM tile has to be copied first."""

    def from_psum() -> None:
        nl.store(hbm((4, 4)), nl.zeros((4, 4), nl.float32, buffer=nl.psum))

    with pytest.raises(NkiValidationError, match="store: value: .* not in SBUF; use nl.copy"):
        execute(from_psum)
    with pytest.raises(NkiValidationError, match="store: dst: .* not in HBM"):
        execute(lambda: nl.store(nl.zeros((4, 4), "float32"), nl.zeros((4, 4), "float32")))


@pytest.mark.parametrize("dtype", [BF16, np.float16, np.uint16])
def test_load_transpose2d(dtype: Any) -> None:
    x = np.abs(numbers((32, 48))).astype(dtype)

    def kernel(a: NkiTensor) -> np.ndarray:
        turned = nl.load_transpose2d(a)
        assert turned.shape == (48, 32) and turned.buffer is nl.sbuf
        return values_of(turned)

    np.testing.assert_array_equal(execute(kernel, x), x.T)
    with pytest.raises(NkiValidationError, match="load_transpose2d: src"):
        execute(lambda a: nl.load_transpose2d(nl.load(a)), x)


def test_copy_keeps_bits_and_leaves_psum_f15() -> None:
    """F15: by the Vector engine; bit exact for equal dtypes; PSUM or SBUF in, SBUF out."""
    integers = np.array([[2**24 + 1, -(2**31), 7]], np.int32)
    nans = np.array([[0x7FC00001, 0xFFC12345, 0x3F800000]], np.uint32).view(np.float32)

    def body() -> list[np.ndarray]:
        copied = [nl.copy(tile(integers)), nl.copy(tile(nans, buffer=nl.psum))]
        assert all(t.buffer is nl.sbuf for t in copied)
        return [*map(values_of, copied), values_of(nl.copy(tile(integers), dtype=nl.float32))]

    run = observe(body)
    same, floats, cast = run.result
    assert same.tolist() == integers.tolist()
    assert floats.view(np.uint32).tolist() == nans.view(np.uint32).tolist()
    assert cast.tolist() == integers.astype(np.float32).tolist()
    executed = records(run)
    assert {r.engine for r in executed if r.op == "tensor_copy"} == {nisa.engine.vector}


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("memory", [nl.sbuf, nl.psum])
def test_transpose(dtype: Any, memory: Any) -> None:
    x = numbers((20, 50), dtype)

    def body() -> list[Any]:
        turned = nl.transpose(tile(x, buffer=memory))
        cast = nl.transpose(tile(x, buffer=memory), dtype=nl.float16)
        return [turned.buffer, values_of(turned), cast.buffer, values_of(cast)]

    psum, turned, sbuf, cast = execute(body)
    assert psum is nl.psum and sbuf is nl.sbuf
    np.testing.assert_array_equal(turned, x.T)
    np.testing.assert_array_equal(cast, x.T.astype(np.float32).astype(np.float16))
    with pytest.raises(NkiValidationError, match="transpose: x"):
        execute(lambda: nl.transpose(tile(np.zeros((4, 4, 4), np.float32))))


def test_expand_dims() -> None:
    def body() -> None:
        x = tile(numbers((4, 6)))
        assert nl.expand_dims(x, 1).shape == (4, 1, 6)
        assert nl.expand_dims(x, 2).shape == (4, 6, 1)
        assert nl.expand_dims(x, 1).storage is x.storage

    execute(body)
    with pytest.raises(NkiValidationError, match="partition dimension"):
        execute(lambda: nl.expand_dims(tile(numbers((4, 6))), 0))


@pytest.mark.parametrize("memory", [nl.sbuf, nl.psum])
@pytest.mark.parametrize("dtype", [np.float32, BF16, np.uint8, np.int32, np.uint32, np.int16])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1, 700), (128, 700)),
        ((1, 5, 1, 4), (33, 5, 6, 4)),
        ((16, 1, 3), (16, 9, 3)),
        ((1, 1), (2, 2)),
    ],
)
def test_broadcast_to(old: tuple[int, ...], new: tuple[int, ...], dtype: Any, memory: Any) -> None:
    x = np.abs(numbers(old)).astype(dtype)
    if np.dtype(dtype).itemsize == 4 and np.dtype(dtype).kind in "iu":
        x = x + x.dtype.type(2**24 + 1)  # more bits than float32 has

    def body() -> np.ndarray:
        wide = nl.broadcast_to(tile(x, buffer=memory), new)
        assert wide.shape == new and wide.buffer is nl.sbuf
        return values_of(wide)

    got = execute(body)
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, np.broadcast_to(x, new))


def test_broadcast_to_the_same_shape_is_the_tile_itself() -> None:
    def body() -> np.ndarray:
        x = tile(numbers((3, 4)))
        assert nl.broadcast_to(x, (3, 4)) is x
        return values_of(nl.broadcast_to(x, (3, 4), dtype=nl.float16))

    assert execute(body).dtype == np.float16


def test_broadcast_to_reads_a_strided_row() -> None:
    x = numbers((1, 12))

    def body() -> np.ndarray:
        return values_of(nl.broadcast_to(tile(x)[:, 1:12:3], (40, 4), dtype=nl.bfloat16))

    np.testing.assert_array_equal(execute(body), np.broadcast_to(x[:, 1::3], (40, 4)).astype(BF16))


def test_broadcast_over_partitions_leaves_the_vector_engine_alone() -> None:
    """MAMBA: a separate instruction on the Tensor engine."""

    def body() -> None:
        nl.broadcast_to(tile(numbers((1, 600))), (128, 600))

    executed = records(observe(body))
    assert [r.op for r in executed].count("nc_matmul") == 2
    assert nisa.engine.vector not in {r.engine for r in executed}


@pytest.mark.parametrize("shape", [(4, 7), (4, 6, 1), (8, 6)])
def test_broadcast_to_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(NkiValidationError, match="broadcast_to: shape"):
        execute(lambda: nl.broadcast_to(tile(numbers((4, 6))), shape))


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.uint16])
def test_gather_flattened(dtype: Any) -> None:
    data = numbers((6, 4, 5))
    indices = RNG.integers(0, 20, (6, 8)).astype(dtype)

    def body() -> list[np.ndarray]:
        found = nl.gather_flattened(tile(data), tile(indices))
        cast = nl.gather_flattened(tile(data), tile(indices), dtype=nl.bfloat16)
        return [values_of(found), values_of(cast)]

    found, cast = execute(body)
    wanted = np.take_along_axis(data.reshape(6, 20), indices.astype(np.int64), axis=1)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(cast, wanted.astype(BF16))
    with pytest.raises(NkiValidationError, match="gather_flattened: axis: got 1"):
        execute(lambda: nl.gather_flattened(tile(data), tile(indices), axis=1))


def test_where() -> None:
    condition = (RNG.random((8, 10)) < 0.5).astype(np.float32)
    x, y = numbers((8, 10)), numbers((8, 10))

    def body() -> list[np.ndarray]:
        c, a, b = tile(condition), tile(x), tile(y)
        results = [
            nl.where(c, a, b),
            nl.where(c, 2.0, b),
            nl.where(c, a, 0.0),
            nl.where(c, a, b, dtype=nl.bfloat16),
            nl.where(nl.copy(c, nl.uint8), a, b),
        ]
        return [values_of(r) for r in results]

    both, left, right, narrow, bits = execute(body)
    chosen = condition != 0
    np.testing.assert_array_equal(both, np.where(chosen, x, y))
    np.testing.assert_array_equal(left, np.where(chosen, np.float32(2), y))
    np.testing.assert_array_equal(right, np.where(chosen, x, np.float32(0)))
    np.testing.assert_array_equal(narrow, np.where(chosen, x, y).astype(BF16))
    np.testing.assert_array_equal(bits, both)


def test_an_uninitialised_tile_is_found_through_the_language_too() -> None:
    def body() -> None:
        x = nl.ndarray((4, 4), nl.float32)
        fill(x[:, 0:3], np.zeros((4, 3), np.float32))
        nl.store(hbm((4, 4)), x)

    with pytest.raises(NkiHazardError, match=r"dma_copy: src: .* 4 of 16 elements"):
        execute(body)
