"""tensor_tensor, tensor_scalar, scalar_tensor_tensor, reciprocal: values over views and dtypes,
engines, and one test a rule."""

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

RNG = np.random.default_rng(3)
FLOATS = ("float32", "bfloat16", "float16", "float8_e5m2", "float8_e4m3", "tfloat32")


def numpy_type(dtype: str) -> np.dtype:
    if dtype == "tfloat32":
        return np.dtype(np.float32)
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


def nearest(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values rounded to the nearest of a format, ties to even, by NumPy's own types."""
    values = values.astype(np.float32)
    if dtype == "tfloat32":
        mantissa, exponent = np.frexp(values.astype(np.float64))
        return np.ldexp(np.rint(mantissa * 2**11), exponent - 11).astype(np.float32)
    if np.issubdtype(numpy_type(dtype), np.integer):
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max).astype(dtype)
    return values.astype(numpy_type(dtype)).astype(np.float32)


def sample(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if np.issubdtype(numpy_type(dtype), np.integer):
        return RNG.integers(0, 100, shape).astype(dtype)
    return nearest(RNG.normal(size=shape) * 4, dtype).astype(numpy_type(dtype))


def engines(body: Callable[[], Any], **options: Any) -> list[Engine]:
    return [record.engine for record in records(observe(body, **options))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, "int8", "uint16", "int32"])
def test_tensor_tensor_over_views_and_dtypes(layout: str, dtype: str) -> None:
    shape = (24, 3, 10)
    a, b = sample(shape, dtype), sample(shape, "bfloat16")

    def body():
        d = place(shape, dtype, layout)
        nisa.tensor_tensor(d, fill(place(shape, dtype, layout), a), tile(b), nl.multiply)
        return values_of(d)

    exact = a.astype(np.float64) * b.astype(np.float64)
    result = execute(body).astype(np.float32)
    np.testing.assert_array_equal(result, nearest(exact, dtype).astype(np.float32))


def test_shapes_may_differ_where_the_elements_agree() -> None:
    a = sample((16, 2, 6), "float32")

    def body():
        d = empty((16, 3, 4))
        nisa.tensor_tensor(d, tile(a), tile(a.reshape(16, 12)), nl.add)
        return values_of(d)

    np.testing.assert_array_equal(execute(body), (2 * a).reshape(16, 3, 4))


def test_in_place_with_overlapping_views() -> None:
    """The operands are read before the destination is written."""
    a = sample((4, 16), "float32")

    def body():
        t = tile(a)
        nisa.tensor_tensor(t[:, 1:16], t[:, 0:15], t[:, 1:16], nl.add)
        return values_of(t)

    expected = a.copy()
    expected[:, 1:] += a[:, :-1]
    np.testing.assert_array_equal(execute(body), expected)


def test_32_bit_integers_are_exact_on_gpsimd_f93() -> None:
    a, b = np.array([[2**24 + 1, -(2**31), 2**31 - 1]], np.int32), np.array([[2, 0, 1]], np.int32)

    def body(engine: Engine):
        d = empty((1, 3), "int32")
        nisa.tensor_tensor(d, tile(a), tile(b), nl.add, engine=engine)
        return values_of(d)

    expected = [[2**24 + 3, -(2**31), -(2**31)]]
    np.testing.assert_array_equal(execute(lambda: body(Engine.unknown)), expected)
    np.testing.assert_array_equal(execute(lambda: body(Engine.gpsimd)), expected)
    # float32 on the Vector engine: 2^24 + 1 reads as 2^24, the sum of the last saturates.
    rounded = execute(lambda: body(Engine.vector))
    np.testing.assert_array_equal(rounded, [[2**24 + 2, -(2**31), 2**31 - 1]])


def test_integer_comparison_on_gpsimd_sees_every_bit() -> None:
    a = np.array([[2**32 - 1, 7]], np.uint32)

    def body():
        d = empty((1, 2), "int32")
        nisa.tensor_tensor(d, tile(a), tile(a - np.array([[1, 0]], np.uint32)), nl.equal)
        return values_of(d)

    np.testing.assert_array_equal(execute(body), [[0, 1]])


def test_engines_of_tensor_tensor() -> None:
    def body():
        f, i = tile(np.ones((4, 4), np.float32)), tile(np.ones((4, 4), np.int32))
        p = tile(np.ones((4, 4), np.int32), buffer=PSUM)
        nisa.tensor_tensor(f, f, f, nl.add)
        nisa.tensor_tensor(f, f, f, nl.add, engine=Engine.gpsimd)
        nisa.tensor_tensor(f, f, f, nl.power)
        nisa.tensor_tensor(i, i, i, nl.add)
        nisa.tensor_tensor(i, p, i, nl.add)
        nisa.tensor_tensor(i, i, i, nl.bitwise_or)
        nisa.tensor_tensor(f, i, i, nl.add)

    expected = ["vector", "gpsimd", "gpsimd", "gpsimd", "vector", "vector", "vector"]
    assert [engine.name for engine in engines(body)] == expected


def test_the_record_names_operands_and_operator() -> None:
    def body():
        a, b, d = (tile(np.ones((4, 4), np.float32)) for _ in range(3))
        nisa.tensor_tensor(d, a, b, nl.subtract, name="difference")
        nisa.tensor_scalar(d, a, nl.add, b[:, 0:1], op1=nl.multiply, operand1=2.0)

    first, second = records(observe(body))
    assert (first.op, first.name, first.work) == ("tensor_tensor", "difference", {"op": "subtract"})
    assert (len(first.reads), len(first.writes)) == (2, 1)
    assert (len(second.reads), second.work) == (2, {"op0": "add", "op1": "multiply"})


def tensor_tensor_of(**changes: Any) -> Callable[[], Any]:
    """A legal call with some arguments changed; tensors are given as (shape, dtype, buffer)."""

    def body():
        arguments: dict[str, Any] = {"op": nl.add}
        for name in ("dst", "data1", "data2"):
            shape, dtype, *buffer = changes.get(name, ((8, 6), "float32"))
            arguments[name] = tile(np.ones(shape, np.float32), dtype, *buffer)
        arguments |= {key: item for key, item in changes.items() if key in ("op", "engine")}
        nisa.tensor_tensor(**arguments)

    return body


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data2": ((8, 5), "float32")}, r"data2: shape \[8, 5\]"),
        ({"data1": ((7, 6), "float32")}, r"data1: shape \[7, 6\]"),
        (
            {"data1": ((8, 6), "float32", PSUM), "data2": ((8, 6), "float32", PSUM)},
            "data1 and data2: are all in PSUM",
        ),
        ({"op": nl.bitwise_and}, "dst: dtype float32"),
        ({"engine": Engine.scalar}, "engine: Engine.scalar|engine.scalar cannot run it"),
        ({"engine": Engine.vector, "op": nl.power}, "op=nl.power.*cannot run it"),
        ({"op": nl.power, "data1": ((8, 6), "float32", PSUM)}, "data1: .*not in SBUF"),
        ({"engine": Engine.gpsimd, "dst": ((8, 6), "float32", PSUM)}, "dst: .*not in SBUF"),
    ],
)
def test_rules_of_tensor_tensor(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(NkiValidationError, match=text):
        execute(tensor_tensor_of(**changes))


def test_bits_are_not_cast_and_stay_on_vector() -> None:
    i8: dict[str, Any] = {name: ((8, 6), "int8") for name in ("dst", "data1", "data2")}
    execute(tensor_tensor_of(op=nl.bitwise_and, **i8))
    with pytest.raises(NkiValidationError, match="data2: dtype int16, dst is int8; bits are not"):
        execute(tensor_tensor_of(op=nl.bitwise_and, **i8 | {"data2": ((8, 6), "int16")}))
    with pytest.raises(NkiValidationError, match="op=nl.bitwise_and"):
        execute(tensor_tensor_of(op=nl.bitwise_and, engine=Engine.gpsimd, **i8))


def test_a_refused_instruction_writes_nothing() -> None:
    def body():
        d = tile(np.zeros((4, 4), np.float32))
        with pytest.raises(NkiValidationError):
            nisa.tensor_tensor(d, d, empty((4, 4)), nl.add)
        with pytest.raises(NkiValidationError):
            nisa.tensor_scalar(d, tile(np.ones((4, 4), np.float32)), nl.add, empty((4, 1)))
        return values_of(d)

    np.testing.assert_array_equal(execute(body), np.zeros((4, 4)))


def test_uninitialised_operands_are_found() -> None:
    def body():
        d = empty((4, 4))
        nisa.tensor_scalar(d, empty((4, 4)), nl.add, 1.0)

    with pytest.raises(NkiHazardError, match="tensor_scalar: data: .*never written"):
        execute(body)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, "int8", "uint8", "int32"])
def test_tensor_scalar_over_views_and_dtypes(layout: str, dtype: str) -> None:
    """(data * column - number), both stages in float32, one rounding at the end."""
    shape = (24, 3, 10)
    a, column = sample(shape, dtype), sample((24, 1), "float32")

    def body():
        d = place(shape, dtype, layout)
        source = fill(place(shape, dtype, layout), a)
        nisa.tensor_scalar(d, source, nl.multiply, tile(column), op1=nl.subtract, operand1=1.5)
        return values_of(d)

    product = (a.astype(np.float64) * column[:, :, None].astype(np.float64)).astype(np.float32)
    expected = nearest(product.astype(np.float64) - 1.5, dtype)
    np.testing.assert_array_equal(execute(body).astype(np.float32), expected.astype(np.float32))


def test_tensor_scalar_reversed_stages() -> None:
    a, c = sample((8, 5), "float32"), sample((8, 1), "float32")

    def body():
        d = empty((8, 5))
        nisa.tensor_scalar(
            d, tile(a), nl.subtract, 2, True, nl.subtract, tile(c), reverse1=True
        )  # fmt: skip
        return values_of(d)

    inner = (2 - a.astype(np.float64)).astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(execute(body), (c - inner).astype(np.float32))


def test_a_comparison_feeds_the_second_stage() -> None:
    a = np.array([[1, 2, 3]], np.float32)

    def body():
        d = empty((1, 3), "bfloat16")
        nisa.tensor_scalar(d, tile(a), nl.greater, 1.5, op1=nl.multiply, operand1=-30000.0)
        return values_of(d)

    expected = np.array([[0, -30000, -30000]], np.float32).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(execute(body), expected)


def test_the_first_stage_is_not_rounded_to_the_data_type() -> None:
    a = np.array([[1.0]], np.float16)

    def body():
        d = empty((1, 1), "float16")
        nisa.tensor_scalar(d, tile(a), nl.add, 2.0**-13, op1=nl.subtract, operand1=1.0)
        return values_of(d)

    assert execute(body)[0, 0] == 2.0**-13


def test_integer_results_round_to_even_and_saturate_f01() -> None:
    a = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 300, -300, 1e10, -1e10]], np.float32)

    def body(dtype: str):
        d = empty(a.shape, dtype)
        nisa.tensor_scalar(d, tile(a), nl.add, 0.0)
        return values_of(d)

    signed = [[0, 2, 2, 0, -2, 127, 127, -128, 127, -128]]
    np.testing.assert_array_equal(execute(lambda: body("int8")), signed)
    unsigned = [[0, 2, 2, 0, 0, 128, 255, 0, 255, 0]]
    np.testing.assert_array_equal(execute(lambda: body("uint8")), unsigned)
    wide = [[0, 2, 2, 0, -2, 128, 300, -300, 2**31 - 1, -(2**31)]]
    np.testing.assert_array_equal(execute(lambda: body("int32")), wide)


def test_engines_of_tensor_scalar() -> None:
    def body():
        f = tile(np.ones((4, 4), np.float32))
        nisa.tensor_scalar(f, f, nl.add, 1.0)
        nisa.tensor_scalar(f, f, nl.rsqrt, 0.0)
        nisa.tensor_scalar(f, f, nl.add, 1e-6, op1=nl.power, operand1=-0.5)
        nisa.tensor_scalar(f, f, nl.multiply, 2.0, engine=Engine.scalar)
        nisa.tensor_scalar(f, f, nl.add, 2.0, engine=Engine.scalar)
        nisa.tensor_scalar(
            f, f, nl.multiply, 2.0, op1=nl.add, operand1=1.0, engine=Engine.scalar
        )  # fmt: skip

    expected = ["vector", "gpsimd", "gpsimd", "scalar", "scalar", "scalar"]
    assert [engine.name for engine in engines(body)] == expected
    with pytest.raises(NkiValidationError, match="engine: .*scalar cannot run it"):
        engines(body, target="trn1")


def tensor_scalar_of(**changes: Any) -> Callable[[], Any]:
    def body():
        source = changes.get("data", ((8, 6), "float32"))
        data = tile(np.ones(source[0], np.float32), *source[1:])
        arguments: dict[str, Any] = {"op0": nl.add, "operand0": 1.0}
        for key, item in changes.items():
            if key != "data":
                arguments[key] = tile(item) if isinstance(item, np.ndarray) else item
        nisa.tensor_scalar(empty((8, 6), data.dtype), data, **arguments)

    return body


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"operand0": np.ones((7, 1), np.float32)}, r"operand0: shape \[7, 1\]"),
        ({"operand0": np.ones((8, 2), np.float32)}, r"operand0: shape \[8, 2\]"),
        ({"operand0": np.ones((8, 1), np.int32)}, "operand0: dtype int32"),
        ({"operand0": np.ones((8, 1), ml_dtypes.bfloat16)}, "operand0: dtype bfloat16"),
        ({"operand0": "1"}, "operand0: must be a number or a tile"),
        ({"operand0": None}, "operand0: must be a number or a tile"),
        ({"operand1": 1.0}, "operand1: got 1.0 without op1"),
        ({"op1": nl.add}, "operand1: must be a number"),
        ({"op1": nl.bitwise_and, "operand1": 1}, "op1: nl.bitwise_and with op0 nl.add"),
        ({"op0": nl.bitwise_and, "operand0": 1}, "dst: dtype float32"),
        ({"engine": Engine.gpsimd}, "op0=nl.add, op1=None.*engine.gpsimd cannot run it"),
        ({"engine": Engine.scalar, "op0": nl.subtract}, "engine.scalar cannot run it"),
        (
            {"engine": Engine.scalar, "op1": nl.multiply, "operand1": 1.0},
            "op0=nl.add, op1=nl.multiply.*engine.scalar cannot run it",
        ),
        ({"op0": nl.rsqrt, "operand0": 0, "engine": Engine.vector}, "op0=nl.rsqrt"),
        ({"op0": nl.rsqrt, "operand0": 0, "data": ((8, 6), "float32", PSUM)}, "data: .*in SBUF"),
        ({"data": ((8, 7), "float32")}, r"data: shape \[8, 7\]"),
    ],
)
def test_rules_of_tensor_scalar(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(NkiValidationError, match=text):
        execute(tensor_scalar_of(**changes))


def test_bit_stages_take_integers() -> None:
    integers: dict[str, Any] = {"data": ((8, 6), "int32"), "op0": nl.bitwise_or}
    execute(tensor_scalar_of(**integers, operand0=np.ones((8, 1), np.int32)))
    execute(tensor_scalar_of(**integers, operand0=np.int32(3)))
    with pytest.raises(NkiValidationError, match="operand0: nl.bitwise_or works on bits, got 1.0"):
        execute(tensor_scalar_of(**integers, operand0=1.0))
    with pytest.raises(NkiValidationError, match="operand0: dtype int8, data is int32"):
        execute(tensor_scalar_of(**integers, operand0=np.ones((8, 1), np.int8)))
    with pytest.raises(NkiValidationError, match="engine.gpsimd cannot run it"):
        execute(tensor_scalar_of(**integers, operand0=1, engine=Engine.gpsimd))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int16"])
def test_scalar_tensor_tensor(layout: str, dtype: str) -> None:
    shape = (24, 2, 7)
    a, b = sample(shape, dtype), sample(shape, dtype)
    column = sample((24, 1), "float32")

    def body():
        d = place(shape, dtype, layout)
        nisa.scalar_tensor_tensor(
            d, fill(place(shape, dtype, layout), a), nl.multiply, tile(column), nl.subtract,
            tile(b), reverse1=True,
        )  # fmt: skip
        return values_of(d)

    product = (a.astype(np.float64) * column[:, :, None].astype(np.float64)).astype(np.float32)
    expected = nearest(b.astype(np.float64) - product, dtype)
    np.testing.assert_array_equal(execute(body).astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"op0": nl.bitwise_and}, "op0: nl.bitwise_and works on bits"),
        ({"op1": nl.bitwise_and}, "op1: nl.bitwise_and works on bits"),
        ({"op1": nl.abs}, "op1: nl.abs takes one operand"),
        ({"op1": nl.power}, "op1: nl.power runs on gpsimd only"),
        ({"shape": (8, 5)}, r"operand1: shape \[8, 5\]"),
        ({"buffer": PSUM}, "data and operand1: are all in PSUM"),
    ],
)
def test_rules_of_scalar_tensor_tensor(change: dict[str, Any], text: str) -> None:
    def body():
        buffer = change.get("buffer", nl.sbuf)
        one = np.ones((8, 6), np.float32)
        other = tile(np.ones(change.get("shape", (8, 6)), np.float32), buffer=buffer)
        nisa.scalar_tensor_tensor(
            empty((8, 6)), tile(one, buffer=buffer), change.get("op0", nl.add), 1.0,
            change.get("op1", nl.add), other,
        )  # fmt: skip

    with pytest.raises(NkiValidationError, match=text):
        execute(body)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_reciprocal(layout: str, dtype: str) -> None:
    a = sample((24, 2, 7), dtype)

    def body():
        d = place(a.shape, dtype, layout)
        nisa.reciprocal(d, fill(place(a.shape, dtype, layout), a))
        return values_of(d)

    expected = nearest((1 / a.astype(np.float64)).astype(np.float32), dtype)
    np.testing.assert_array_equal(execute(body).astype(np.float32), expected)


def test_rules_of_reciprocal() -> None:
    def body():
        nisa.reciprocal(empty((8, 6)), tile(np.ones((8, 5), np.float32)))

    with pytest.raises(NkiValidationError, match=r"reciprocal: data: shape \[8, 5\]"):
        execute(body)


def test_more_than_128_partitions_are_refused_f12() -> None:
    def body():
        empty((129, 4))

    with pytest.raises(NkiValidationError, match="129 partitions.* has 128"):
        execute(body)


def test_unknown_keywords_are_refused_f84() -> None:
    def body():
        t = tile(np.ones((4, 4), np.float32))
        nisa.tensor_tensor(t, t, t, nl.add, mask=1)  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        execute(body)
