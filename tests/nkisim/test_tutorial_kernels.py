"""The kernels of AWS's public tutorials, written anew here, against NumPy in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nkisim.kernel import Kernel
from nkisim.lint import lint
from tests.nkisim.kernels import elementwise, layout, mamba, matmul, normalise, runtime

BF16 = ml_dtypes.bfloat16
MODULES = (elementwise, layout, mamba, matmul, normalise, runtime)


def draw(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(result: np.ndarray, wanted: np.ndarray, relative: float = 1e-5) -> None:
    """Within `relative` of the greatest element: sums cancel, so small elements lose digits."""
    assert result.shape == wanted.shape
    error = np.abs(result.astype(np.float64) - wanted).max()
    assert error <= relative * np.abs(wanted).max()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_compiler_would_take_the_kernels(module: Any) -> None:
    kernels = [kernel for kernel in vars(module).values() if isinstance(kernel, Kernel)]
    assert kernels
    assert lint(inspect.getsource(module)) == []


# -- matrix multiplication ------------------------------------------------------------------------

BLOCKED = {"m_tiles": 2, "n_tiles": 1, "k_tiles": 2}


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize(
    ("kernel", "shape", "options"),
    [
        (matmul.one_tile, (96, 64, 300), {}),
        (matmul.one_tile, (128, 128, 512), {}),
        (matmul.tiled, (256, 256, 1024), {}),
        (matmul.column_kept, (256, 256, 1024), {}),
        (matmul.free_blocked, (256, 256, 1024), {}),
        (matmul.all_blocked, (512, 256, 1024), BLOCKED),
    ],
)
def test_matmul(kernel: Kernel, shape: tuple[int, int, int], options: Any, dtype: Any) -> None:
    k, m, n = shape
    lhs_t, rhs = draw(k, m, dtype=dtype), draw(k, n, dtype=dtype, seed=1)
    wanted = lhs_t.astype(np.float64).T @ rhs.astype(np.float64)
    result = kernel(lhs_t, rhs, **options)
    assert result.dtype == dtype
    # Rounding to bfloat16's 8 bits: once, or once for each of the two blocks of K.
    rounding = 2**-7 if kernel is matmul.all_blocked else 2**-8
    close(result, wanted, 2e-6 if dtype == np.float32 else rounding)


def test_blocking_changes_the_order_of_float32_sums_only() -> None:
    lhs_t, rhs = draw(512, 256), draw(512, 512, seed=1)
    assert (matmul.tiled(lhs_t, rhs) == matmul.column_kept(lhs_t, rhs)).all()
    close(matmul.all_blocked(lhs_t, rhs, **BLOCKED), matmul.tiled(lhs_t, rhs), 1e-6)


# -- element-wise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_addition_on_one_core_and_on_two(cores: int, dtype: Any) -> None:
    a, b = draw(256, 1024, dtype=dtype), draw(256, 1024, dtype=dtype, seed=1)
    wanted = (a.astype(np.float32) + b.astype(np.float32)).astype(dtype)
    kernel: Any = elementwise.add
    assert (kernel[cores](a, b) == wanted).all()


def test_addition_of_a_small_tile() -> None:
    a, b = draw(4, 3, dtype=np.float16), draw(4, 3, dtype=np.float16, seed=1)
    assert (elementwise.add_whole(a, b) == a + b).all()


@pytest.mark.parametrize("shape", [(4, 4096), (128, 128)])
def test_exponential(shape: tuple[int, int]) -> None:
    x = draw(*shape, dtype=BF16)
    result = elementwise.exponential(x)
    assert result.dtype == BF16
    np.testing.assert_allclose(result.astype(np.float64), np.exp(x.astype(np.float64)), rtol=2**-8)


# -- layout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.float32, BF16])
def test_transposes_of_rows(dtype: Any) -> None:
    x = np.arange(5 * 12).astype(dtype).reshape(5, 12)
    wanted = x.reshape(5, 3, 4).transpose(0, 2, 1).reshape(5, 12)
    assert (layout.transpose_rows(x, (3, 4)) == wanted).all()
    assert (layout.transpose_rows_at_once(x, shape=(3, 4)) == wanted).all()


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
def test_transpose_through_the_tensor_engine(dtype: Any) -> None:
    x = draw(128, 48, dtype=dtype)
    assert (layout.transpose(x) == x.T).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_pooling(dtype: Any) -> None:
    x = np.arange(2 * 6 * 6).astype(dtype).reshape(2, 6, 6)
    for size in (2, 3):
        cut = x.reshape(2, 6 // size, size, 6 // size, size)
        close(layout.average_pool(x, size), cut.astype(np.float64).mean((2, 4)), 2**-11)
        assert (layout.maximum_pool(x, size) == cut.max((2, 4))).all()


def test_a_strided_split() -> None:
    x = draw(4, 5, dtype=BF16)
    even, odd = layout.even_and_odd(x)
    assert (even == x[:, 0::2]).all() and (odd == x[:, 1::2]).all()


# -- the Mamba scan -------------------------------------------------------------------------------


def scan_of(delta: Any, u: Any, a: Any, b: Any, c: Any) -> np.ndarray:
    """y (batch, channels, time), step by step in float64."""
    delta, u, a, b, c = (array.astype(np.float64) for array in (delta, u, a, b, c))
    state = np.zeros((*delta.shape[:2], a.shape[1]))
    y = np.empty(delta.shape)
    for t in range(delta.shape[2]):
        decay = np.exp(delta[:, :, t, None] * a)
        state = decay * state + (delta * u)[:, :, t, None] * b[:, None, :, t]
        y[:, :, t] = (state * c[:, None, :, t]).sum(-1)
    return y


@pytest.mark.parametrize("kernel", [mamba.scan, mamba.scan_loads_hoisted, mamba.scan_time_tiled])
def test_mamba(kernel: Callable[..., Any]) -> None:
    channels, states, time = 256, 2, 128
    delta = np.abs(draw(1, channels, time)) * 0.5
    u = draw(1, channels, time, seed=1)
    a = -np.abs(draw(channels, states, seed=2))
    b, c = draw(1, states, time, seed=3), draw(1, states, time, seed=4)
    options = {"span": 64} if kernel is mamba.scan_time_tiled else {}
    close(kernel(delta, u, a, b, c, **options), scan_of(delta, u, a, b, c))


def test_the_versions_of_mamba_agree_bit_for_bit() -> None:
    arguments = [np.ones((1, 128, 96), np.float32)] * 2 + [-np.ones((128, 3), np.float32)]
    arguments += [np.ones((1, 3, 96), np.float32)] * 2
    first = mamba.scan(*arguments)
    assert (mamba.scan_loads_hoisted(*arguments) == first).all()
    assert (mamba.scan_time_tiled(*arguments, span=32) == first).all()


# -- known at run time only -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_a_loop_with_a_runtime_bound(count: int) -> None:
    x = draw(1, 5)
    wanted = np.where(np.arange(5) < count, x, 0)
    assert (runtime.copy_some(x, np.array([[count]], np.int32)) == wanted).all()


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_loop_on_a_condition(count: int) -> None:
    x = draw(1, 3)
    wanted = np.zeros_like(x)
    for _ in range(count):
        wanted += x
    assert (runtime.times(x, np.array([[count]], np.int32)) == wanted).all()


def test_a_device_loop_over_blocks() -> None:
    x = draw(384, 16)
    assert (runtime.blocks_plus(x, 2.0) == x + np.float32(2)).all()


def test_selection_gather_and_scatter() -> None:
    table = draw(6, 128, 8)
    assert (runtime.select(table, np.array([[3]], np.int32)) == table[3]).all()
    flat = draw(40, 8)
    rows = np.array([[5], [0], [39], [5]], np.uint32)
    assert (runtime.gather(flat, rows) == flat[rows[:, 0]]).all()
    places = np.array([[7], [2], [40], [0]], np.uint32)  # 40 is outside
    values = draw(4, 8, seed=1)
    wanted = flat.copy()
    wanted[[7, 2, 0]] = values[[0, 1, 3]]
    result = runtime.scatter(values, places, flat)
    assert (result == wanted).all()
    assert (flat == wanted).all()  # the argument itself is updated


# -- softmax and RMS norm -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize(
    ("kernel", "rows"), [(normalise.softmax, 200), (normalise.softmax_by_language, 128)]
)
def test_softmax(kernel: Kernel, rows: int, dtype: Any) -> None:
    x = draw(rows, 96, dtype=dtype) * 4
    x = x.astype(dtype)
    exact = np.exp(x.astype(np.float64) - x.astype(np.float64).max(1, keepdims=True))
    wanted = exact / exact.sum(1, keepdims=True)
    close(kernel(x), wanted, 1e-6 if dtype == np.float32 else 2**-8)


def rms_of(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    return x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * weight


def test_rms_norm() -> None:
    x, weight = draw(200, 96), draw(1, 96, seed=1)
    close(normalise.rms_norm(x, weight), rms_of(x, weight), 1e-6)
    whole = np.repeat(weight, 128, 0)
    close(normalise.rms_norm_by_language(x[:128], whole), rms_of(x[:128], weight), 1e-6)
