"""tensor_copy, memset, tensor_copy_predicated, nc_stream_shuffle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiHazardError, NkiValidationError
from nkisim.enums import PSUM
from nkisim.enums import engine as Engine
from tests.nkisim.harness import (
    LAYOUTS,
    empty,
    execute,
    fill,
    observe,
    place,
    records,
    tile,
    values_of,
)

RNG = np.random.default_rng(5)


def last_record(body: Callable[[], Any]):
    return records(observe(body))[-1]


# tensor_copy


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32", "bfloat16"])
def test_equal_dtypes_are_copied_bit_for_bit(layout: str, dtype: str) -> None:
    """Also integers that float32 cannot hold, and NaN payloads (F15)."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    shape = (20, 2, 9)
    values = RNG.integers(0, 256, (*shape, kind.itemsize), np.uint8).view(kind)[..., 0]

    def body():
        d = place(shape, dtype, layout)
        nisa.tensor_copy(d, fill(place(shape, dtype, layout), values))
        return values_of(d)

    assert execute(body).tobytes() == values.tobytes()


@pytest.mark.parametrize("engine", [Engine.vector, Engine.gpsimd, Engine.scalar])
def test_different_dtypes_go_through_float32_f01(engine: Engine) -> None:
    def body():
        wide = tile(np.array([[2**24 + 1, -7, 300]], np.int32))
        f, i = empty((1, 3)), empty((1, 3), "int8")
        nisa.tensor_copy(f, wide, engine=engine)
        nisa.tensor_copy(i, wide, engine=engine)
        halves = empty((1, 4), "int16")
        nisa.tensor_copy(halves, tile(np.array([[0.5, 1.5, 2.5, 4e4]], np.float32)), engine=engine)
        return values_of(f), values_of(i), values_of(halves)

    floats, bytes_, halves = execute(body)
    np.testing.assert_array_equal(floats, [[2**24, -7, 300]])
    np.testing.assert_array_equal(bytes_, [[127, -7, 127]])
    np.testing.assert_array_equal(halves, [[0, 2, 2, 32767]])


def test_bfloat16_is_really_rounded_f38() -> None:
    def body():
        d = empty((1, 2), "bfloat16")
        nisa.tensor_copy(d, tile(np.array([[1 + 2**-9, 1 + 3 * 2**-8]], np.float32)))
        return values_of(d).astype(np.float32)

    np.testing.assert_array_equal(execute(body), [[1, 1 + 2**-6]])


def test_copy_from_psum_and_between_shapes() -> None:
    a = RNG.normal(size=(16, 2, 6)).astype(np.float32)

    def body():
        d = empty((16, 12))
        nisa.tensor_copy(d, tile(a, buffer=PSUM))
        return values_of(d)

    np.testing.assert_array_equal(execute(body), a.reshape(16, 12))


def test_copy_between_quadrants() -> None:
    a = RNG.normal(size=(32, 4)).astype(np.float32)

    def body():
        d = tile(np.zeros((128, 4), np.float32))
        nisa.tensor_copy(d[96:128], tile(a))
        return values_of(d)

    result = execute(body)
    np.testing.assert_array_equal(result[96:], a)
    np.testing.assert_array_equal(result[:96], 0)


def test_a_run_time_index_is_read_when_the_copy_runs_f51() -> None:
    """What tensor_copy_dynamic_src and _dst did, by a register and by an SBUF element."""
    a = RNG.normal(size=(8, 5, 3)).astype(np.float32)

    def body():
        source, d = tile(a), tile(np.zeros((8, 4, 3), np.float32))
        index = tile(np.array([[3]], np.int32))
        one = empty((8, 3))
        nisa.tensor_copy(one, source.select(1, index))
        register = nisa.register_alloc(2)
        nisa.tensor_copy(d.select(1, register), one)
        return values_of(d)

    expected = np.zeros((8, 4, 3), np.float32)
    expected[:, 2] = a[:, 3]
    np.testing.assert_array_equal(execute(body), expected)

    def one_copy():
        source = tile(a)
        nisa.tensor_copy(empty((8, 3)), source.select(1, tile(np.array([[1]], np.int32))))

    record = last_record(one_copy)
    assert record.work == {"dynamic": True}
    assert len(record.reads) == 2  # the row, and the tile that holds the index


def test_a_run_time_index_outside_is_refused() -> None:
    def body():
        nisa.tensor_copy(
            empty((8, 3)),
            tile(np.zeros((8, 5, 3), np.float32)).select(1, tile(np.array([[5]], np.int32))),
        )

    with pytest.raises(NkiValidationError, match="tensor_copy: src: .*index 5 is out of bounds"):
        execute(body)


def test_an_uninitialised_run_time_index_is_found() -> None:
    def body():
        source = tile(np.zeros((8, 5, 3), np.float32))
        nisa.tensor_copy(empty((8, 3)), source.select(1, empty((1, 1), "int32")))

    with pytest.raises(NkiHazardError, match="src's index"):
        execute(body)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"shape": (8, 5)}, r"src: shape \[8, 5\]"),
        ({"engine": Engine.tensor}, "engine: Engine.tensor|engine.tensor cannot run it"),
        ({"engine": Engine.gpsimd, "buffer": PSUM}, "src: .*not in SBUF"),
    ],
)
def test_rules_of_tensor_copy(arguments: dict[str, Any], text: str) -> None:
    def body():
        ones = np.ones(arguments.get("shape", (8, 6)), np.float32)
        source = tile(ones, buffer=arguments.get("buffer", nl.sbuf))
        nisa.tensor_copy(empty((8, 6)), source, engine=arguments.get("engine", Engine.unknown))

    with pytest.raises(NkiValidationError, match=text):
        execute(body)


def test_the_scalar_engine_of_gen2_does_not_copy() -> None:
    def body():
        t = tile(np.ones((4, 4), np.float32))
        nisa.tensor_copy(t, t, engine=Engine.scalar)

    execute(body)
    with pytest.raises(NkiValidationError, match="engine: .*scalar cannot run it"):
        execute(body, target="trn1")


# memset


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "number", "expected"),
    [
        ("float32", 0.2, np.float32(0.2)),
        ("bfloat16", 0, 0),
        ("float16", 1, 1),
        ("float8_e4m3", 1.0625, 1),
        ("int32", 2**24 + 1, 2**24 + 1),
        ("uint8", 255, 255),
        ("int16", -3, -3),
    ],
)
def test_memset(layout: str, dtype: str, number: float, expected: float) -> None:
    def body():
        d = place((20, 2, 5), dtype, layout)
        nisa.memset(d, number)
        return values_of(d)

    result = execute(body)
    assert result.shape == (20, 2, 5)
    assert (result == expected).all()


@pytest.mark.parametrize(
    ("dtype", "number", "text"),
    [
        ("int32", 2.0, "2.0 for int32; use an integer"),
        ("uint8", 256, "256 for uint8; use 0 to 255"),
        ("uint16", -1, "-1 for uint16"),
        ("float32", "0", "must be a number"),
        ("float8_e4m3fn_x4", 1, "1 for the packed float8_e4m3fn_x4; use 0"),
    ],
)
def test_memset_takes_a_value_of_the_dtype_f66(dtype: str, number: Any, text: str) -> None:
    with pytest.raises(NkiValidationError, match=f"memset: value: {text}"):
        execute(lambda: nisa.memset(empty((4, 4), dtype), number))


def test_memset_runs_on_vector_or_gpsimd() -> None:
    assert last_record(lambda: nisa.memset(empty((4, 4)), 0.0)).engine is Engine.vector
    body = lambda: nisa.memset(empty((4, 4)), 0.0, engine=Engine.gpsimd)  # noqa: E731
    assert last_record(body).engine is Engine.gpsimd
    with pytest.raises(NkiValidationError, match="engine"):
        execute(lambda: nisa.memset(empty((4, 4)), 0.0, engine=Engine.scalar))
    with pytest.raises(NkiValidationError, match="dst: .*not in SBUF"):
        execute(lambda: nisa.memset(empty((4, 4), buffer=PSUM), 0.0, engine=Engine.gpsimd))


# tensor_copy_predicated


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("predicate", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("reverse", [False, True])
def test_predicated_copy_f92(layout: str, predicate: str, reverse: bool) -> None:
    shape = (20, 2, 9)
    old, new = (RNG.normal(size=shape).astype(np.float16) for _ in range(2))
    chosen = RNG.integers(0, 3, shape).astype(predicate)  # any value but 0 is true

    def body():
        d = fill(place(shape, "float16", layout), old)
        source = fill(place(shape, "float16", layout), new)
        nisa.tensor_copy_predicated(d, source, tile(chosen), reverse_pred=reverse)
        return values_of(d)

    expected = [
        n if (c != 0) != reverse else o
        for n, o, c in zip(new.flat, old.flat, chosen.flat, strict=True)
    ]
    np.testing.assert_array_equal(execute(body).reshape(-1), expected)


def test_predicated_copy_between_ranks_f09() -> None:
    source = RNG.normal(size=(8, 24)).astype(np.float32)
    old = RNG.normal(size=(8, 2, 3, 4)).astype(np.float32)
    chosen = RNG.integers(0, 2, (8, 2, 3, 4)).astype(np.uint8)

    def body():
        d = tile(old)
        nisa.tensor_copy_predicated(d, tile(source), tile(chosen))
        return values_of(d)

    expected = np.where(chosen.reshape(8, 24) > 0, source, old.reshape(8, 24))
    np.testing.assert_array_equal(execute(body).reshape(8, 24), expected)


def test_predicated_copy_of_a_number() -> None:
    chosen = np.array([[1, 0, 1]], np.uint8)

    def body():
        d, i = tile(np.array([[1, 2, 3]], np.float32)), tile(np.array([[1, 2, 3]], np.int32))
        nisa.tensor_copy_predicated(d, -0.5, tile(chosen))
        nisa.tensor_copy_predicated(i, 2**24 + 1, tile(chosen))
        return values_of(d), values_of(i)

    floats, integers = execute(body)
    np.testing.assert_array_equal(floats, [[-0.5, 2, -0.5]])
    np.testing.assert_array_equal(integers, [[2**24 + 1, 2, 2**24 + 1]])


def test_a_predicated_copy_initialises_only_what_it_writes() -> None:
    def body(width: int):
        d = empty((1, 4))
        nisa.tensor_copy_predicated(d, 1.0, tile(np.array([[1, 1, 0, 1]], np.uint8)))
        c = empty((1, width))
        nisa.tensor_copy(c, d[:, 0:width])
        return values_of(c)

    np.testing.assert_array_equal(execute(lambda: body(2)), [[1, 1]])
    with pytest.raises(NkiHazardError, match=r"1 of 3 elements, the first at \[0, 2\]"):
        execute(lambda: body(3))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"predicate": ((8, 6), "int8")}, "predicate: dtype int8"),
        ({"predicate": ((8, 6), "float32")}, "predicate: dtype float32"),
        ({"predicate": ((8, 5), "uint8")}, r"predicate: shape \[8, 5\]"),
        ({"src": ((8, 6), "bfloat16")}, "src: dtype bfloat16, but dst is float32"),
        ({"src": ((8, 7), "float32")}, r"src: shape \[8, 7\]"),
        (
            {"src": ((8, 6), "float32", PSUM), "predicate": ((8, 6), "uint8", PSUM)},
            "src and predicate: are all in PSUM",
        ),
    ],
)
def test_rules_of_predicated_copy(changes: dict[str, Any], text: str) -> None:
    def body():
        given: dict[str, Any] = {
            "src": ((8, 6), "float32"),
            "predicate": ((8, 6), "uint8"),
        } | changes
        made: dict[str, Any] = {
            k: tile(np.ones(v[0], np.float32), *v[1:]) for k, v in given.items()
        }
        nisa.tensor_copy_predicated(tile(np.ones((8, 6), np.float32)), **made)

    with pytest.raises(NkiValidationError, match=text):
        execute(body)


# nc_stream_shuffle


@pytest.mark.parametrize("buffer", [nl.sbuf, PSUM])
def test_shuffle_within_each_quadrant(buffer: nl.MemoryRegion) -> None:
    values = RNG.integers(0, 1 << 30, (128, 3, 4)).astype(np.int32)
    mask = RNG.permutation(32).tolist()

    def body():
        d = empty(values.shape, "int32")
        nisa.nc_stream_shuffle(d, tile(values, buffer=buffer), mask)
        return values_of(d)

    result = execute(body)
    for partition in range(128):
        origin = partition // 32 * 32 + mask[partition % 32]
        np.testing.assert_array_equal(result[partition], values[origin])


def test_mask_255_leaves_the_partition_f32() -> None:
    values = RNG.normal(size=(128, 4)).astype(np.float32)
    mask = list(range(32))
    mask[3] = 255

    def body():
        d = tile(np.full((128, 4), 5, np.float32))
        nisa.nc_stream_shuffle(d, tile(values), mask)
        return values_of(d)

    result, kept = execute(body), np.isin(np.arange(128), [3, 35, 67, 99])
    np.testing.assert_array_equal(result[kept], 5)
    np.testing.assert_array_equal(result[~kept], values[~kept])


def test_shuffle_in_place_and_broadcast_of_one_partition() -> None:
    values = RNG.normal(size=(32, 4)).astype(np.float32)

    def body():
        t = tile(values)
        nisa.nc_stream_shuffle(t, t, [(i - 1) % 32 for i in range(32)])
        d = empty((32, 4))
        nisa.nc_stream_shuffle(d, t[0:1], [0] * 32)
        return values_of(t), values_of(d)

    rotated, broadcast = execute(body)
    np.testing.assert_array_equal(rotated, np.roll(values, 1, axis=0))
    np.testing.assert_array_equal(broadcast, np.tile(values[31], (32, 1)))


def test_a_shuffle_reads_only_the_partitions_in_its_mask() -> None:
    def body(mask: list[int]):
        source, d = empty((32, 4)), empty((32, 4))
        nisa.memset(source[0:1], 3.0)
        nisa.nc_stream_shuffle(d, source, mask)
        return values_of(d)

    assert (execute(lambda: body([0] * 32)) == 3).all()
    with pytest.raises(NkiHazardError, match="nc_stream_shuffle: src: .*never written"):
        execute(lambda: body([0] * 31 + [1]))


def test_a_shuffle_initialises_only_what_it_writes() -> None:
    def body():
        source, d = tile(np.ones((32, 4), np.float32)), empty((32, 4))
        nisa.nc_stream_shuffle(d, source, [0] * 31 + [255])
        nisa.tensor_copy(source, d)

    with pytest.raises(NkiHazardError, match=r"4 of 128 elements, the first at \[31, 0\]"):
        execute(body)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mask": [0] * 31}, "shuffle_mask: got"),
        ({"mask": [32] + [0] * 31}, "shuffle_mask: got"),
        ({"mask": [-1] + [0] * 31}, "shuffle_mask: got"),
        ({"dst": ((64, 4), "bfloat16")}, "src: dtype float32, but dst is bfloat16"),
        ({"dst": ((64, 5), "float32")}, r"dst: shape \[64, 5\]"),
        ({"src": ((40, 4), "float32")}, "reads partition 40 of src, which has 40"),
    ],
)
def test_rules_of_shuffle(changes: dict[str, Any], text: str) -> None:
    def body():
        made = []
        for name in ("dst", "src"):
            shape, dtype = changes.get(name, ((64, 4), "float32"))
            made.append(tile(np.ones(shape, np.float32), dtype))
        nisa.nc_stream_shuffle(made[0], made[1], changes.get("mask", list(range(32))))

    with pytest.raises(NkiValidationError, match=text):
        execute(body)


def test_the_wider_operand_decides_the_start_partition_of_a_shuffle() -> None:
    def body():
        source = tile(np.ones((64, 4), np.float32))
        nisa.nc_stream_shuffle(empty((64, 4)), source[32:64], [0] * 32)

    with pytest.raises(NkiValidationError, match="src: .*starts at partition 32; 64 active"):
        execute(body)
