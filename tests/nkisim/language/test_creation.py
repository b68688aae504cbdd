"""Tensors that `nki.language` makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiHazardError, NkiValidationError
from nkisim.enums import MemoryRegion
from nkisim.tensor import NkiTensor
from tests.nkisim.harness import execute, observe, values_of

DTYPES = ["float32", "bfloat16", "float16", "float8_e4m3", "float8_e5m2", "int32", "uint8", "int16"]
MEMORIES = [nl.sbuf, nl.psum, nl.hbm, nl.shared_hbm]


def test_ndarray_defaults_f74() -> None:
    """F74: buffer defaults to SBUF; dtype may be positional; the tensor is uninitialised."""

    def body() -> None:
        tensor = nl.ndarray((4, 6), nl.bfloat16)
        assert tensor.buffer is nl.sbuf and tensor.shape == (4, 6) and tensor.dtype == "bfloat16"
        assert f"{tensor.dtype}" == "bfloat16"
        assert nl.ndarray((2, 3), np.float32, nl.psum, "sums").name == "sums"
        assert nl.ndarray(dtype=nl.int8, shape=[2, 3], buffer=nl.hbm).buffer is nl.private_hbm
        assert nl.ndarray((1,), nl.int32).shape == (1, 1)
        nl.copy(tensor)

    with pytest.raises(NkiHazardError, match="24 of 24 elements"):
        execute(body)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_ones_full(dtype: str, memory: MemoryRegion) -> None:
    def body() -> list[np.ndarray]:
        value = 3 if "int" in dtype else 1.5
        tensors = [
            nl.zeros((6, 5, 7), dtype, memory),
            nl.ones((6, 5, 7), dtype, memory),
            nl.full((6, 5, 7), value, dtype, memory),
        ]
        assert {t.buffer for t in tensors} == {memory} and {t.dtype for t in tensors} == {dtype}
        return [values_of(t) for t in tensors]

    zeros, ones, full = execute(body)
    wanted = 3 if "int" in dtype else 1.5
    assert (zeros == 0).all() and (ones == 1).all() and (full.astype(float) == wanted).all()
    assert full.shape == (6, 5, 7)


@pytest.mark.parametrize("shape", [(1,), (127,), (128, 300), (3, 5, 7, 11), (2, 131, 257)])
def test_hbm_is_filled_whatever_its_shape(shape: tuple[int, ...]) -> None:
    def body() -> NkiTensor:
        return nl.full(shape, -2.0, nl.float32, buffer=nl.shared_hbm)

    np.testing.assert_array_equal(execute(body), np.full(shape, -2, np.float32))


def test_like() -> None:
    def body() -> None:
        x = nl.zeros((3, 4), nl.float16, buffer=nl.psum)
        z = nl.zeros_like(x)
        e = nl.empty_like(x)
        assert (z.buffer, z.dtype, z.shape) == (nl.sbuf, "float16", (3, 4))
        assert (e.buffer, e.dtype, e.shape) == (nl.psum, "float16", (3, 4))
        assert nl.zeros_like(x, nl.int32, nl.psum, "n").dtype == "int32"
        assert nl.empty_like(x, buffer=nl.sbuf).buffer is nl.sbuf
        assert (values_of(z) == 0).all()

    execute(body)


def test_an_address_is_in_bytes() -> None:
    def body() -> None:
        high = nl.ndarray((32, 4), nl.float32, address=(32, 16))
        nisa.memset(high, 7.0)
        whole = nl.ndarray((128, 8), nl.float32, address=(0, 0))
        nisa.memset(whole, 1.0)
        nl.copy(high)

    with pytest.raises(NkiHazardError, match="overwritten"):
        execute(body)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((4, 4), nl.float32, "sbuf"), ("buffer", "'sbuf'")),
        (((129, 4), nl.float32), ("shape", "129", "128")),
        (((4,), nl.float32), ("shape", "two or more dimensions")),
        (((4, 4), nl.float32, nl.hbm, "", (0, 0)), ("address", "HBM")),
        (((4, 4), nl.float32, nl.sbuf, "", 128), ("address", "128")),
        (((4, 4), nl.float32, nl.sbuf, "", (128, 0)), ("address", "partitions 128")),
        (((4, 60000), nl.float32), ("ndarray", "bytes")),
    ],
)
def test_what_ndarray_refuses(arguments: Any, words: tuple[str, ...]) -> None:
    """F71 (strings for buffers) and the limits of the memories."""
    with pytest.raises(NkiValidationError) as caught:
        execute(lambda: nl.ndarray(*arguments))
    for word in words:
        assert word in str(caught.value)


def test_an_integer_tile_takes_no_float_f66() -> None:
    """F66: the value's type fits the tile's."""
    with pytest.raises(NkiValidationError, match="value: 2.0 for int32"):
        execute(lambda: nl.full((4, 4), 2.0, nl.int32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3"])
def test_rand_is_uniform_and_below_one(dtype: str) -> None:
    def body() -> np.ndarray:
        return values_of(nl.rand((128, 64), dtype)).astype(np.float64)

    values = execute(body)
    assert values.min() >= 0 and values.max() < 1
    # 8192 samples: the mean of a uniform variable is off by less than 6 standard errors; the
    # narrow formats round down, by at most half of their last bit (2^-5 for 4 bits).
    slack = 6 * np.sqrt(1 / 12 / values.size) + (1 / 32 if "float8" in dtype else 1 / 512)
    assert abs(values.mean() - 0.5) < slack
    assert np.histogram(values, 4, (0, 1))[0].min() > 0.2 * values.size


def test_random_seed_repeats_f58_f91() -> None:
    """F91: the same seed gives the same numbers; F58: the seed is a (1, 1) tensor."""

    def body() -> list[np.ndarray]:
        seed = nl.full((1, 1), 42, dtype=nl.int32, buffer=nl.sbuf)
        nl.random_seed(seed)
        first = values_of(nl.rand((8, 16), nl.float32))
        other = values_of(nl.rand((8, 16), nl.float32))
        nl.random_seed(seed)
        return [first, other, values_of(nl.rand((8, 16), nl.float32))]

    first, other, again = execute(body)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    with pytest.raises(NkiValidationError, match="random_seed: seed: must be a tensor, got 42"):
        execute(lambda: nl.random_seed(42))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8, ml_dtypes.bfloat16])
def test_shared_constant(dtype: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 100, (5, 3)).astype(dtype)

    def body() -> tuple[NkiTensor, np.ndarray]:
        constant = nl.shared_constant(values)
        assert constant.buffer is nl.shared_hbm and constant.shape == (5, 3)
        assert nl.shared_constant(values.copy()).storage is constant.storage
        return constant, values_of(nl.load(constant))

    returned, loaded = execute(body)
    np.testing.assert_array_equal(returned, values)
    np.testing.assert_array_equal(loaded, values)


def test_shared_constant_from_a_file_f87(tmp_path: Path) -> None:
    """F87: a path of a .npy file."""
    path = tmp_path / "table.npy"
    np.save(path, np.arange(6, dtype=np.int32).reshape(2, 3))
    got = execute(lambda: nl.shared_constant(str(path)))
    assert got.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(NkiValidationError, match="shared_constant: constant"):
        execute(lambda: nl.shared_constant([1, 2]))
    with pytest.raises(TypeError, match="float64"):
        execute(lambda: nl.shared_constant(np.zeros(3)))


def test_both_cores_share_a_constant() -> None:
    def body() -> NkiTensor:
        constant = nl.shared_constant(np.arange(4, dtype=np.int32).reshape(1, 4))
        out = nl.ndarray((2, 4), nl.int32, buffer=nl.shared_hbm)
        nl.store(out[nl.ds(nl.program_id(0), 1)], nl.load(constant))
        return out

    run = observe(body, lnc=2)
    assert run.result.tolist() == [[0, 1, 2, 3]] * 2
    constants = [a for a in run.report.program.allocations if a.kind == "constant"]
    assert len(constants) == 1


@pytest.mark.parametrize("dtype", [nl.uint8, nl.float32, nl.bfloat16, nl.bool_, nl.float8_e4m3])
def test_shared_identity_matrix(dtype: str) -> None:
    def body() -> tuple[np.ndarray, np.ndarray]:
        identity = nl.shared_identity_matrix(n=9, dtype=dtype)
        assert identity.dtype == dtype and identity.buffer is nl.sbuf
        target = nl.ndarray((9, 9), dtype)
        assert nl.shared_identity_matrix(9, dst=target) is target
        return values_of(identity), values_of(target)

    for got in execute(body):
        np.testing.assert_array_equal(got.astype(np.float32), np.eye(9))


def test_its_default_is_uint8() -> None:
    execute(lambda: nl.shared_identity_matrix(4).dtype == "uint8" or pytest.fail("not uint8"))
