"""Every instruction set that this machine has: all cases, and the same bits always."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tkg
from tests.calls import BACKENDS, Call
from tkg.backends import cpu
from tkg.contract.dtypes import FP8, NUMPY
from tkg.testing.case import Case

HERE = Path(__file__).parent
ISAS = ("baseline", "avx2", "avx512", "avx512_vbmi", "avx512_bf16", "avx512_amx", "neon")
UNITS = ("avx512_bf16", "avx512_amx")

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cpu out")


def run_with(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"TKG_ISA": isa, "OMP_NUM_THREADS": "2"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_cases_and_invariance_on(isa: str) -> None:
    """The set in use by default is the one that all other tests run on."""
    core = cpu.core()
    if isa not in core.runnable_isas().split():
        refused = run_with(isa, "-c", "from tkg.backends import cpu; print(cpu.unavailable())")
        assert isa in refused.stdout
        return
    if isa == core.isa():
        return
    tests = [str(HERE / name) for name in ("test_cases.py", "test_invariance.py")]
    picked = "cpu and is_right or invariance and not every_case"
    ran = run_with(isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", picked)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert " passed" in ran.stdout


def test_the_forced_set_is_the_one_in_use() -> None:
    for isa in cpu.core().runnable_isas().split():
        ran = run_with(isa, "-c", "from tkg.backends import cpu; print(cpu.core().isa())")
        assert ran.stdout.strip() == isa


def test_an_unknown_set_is_refused_by_name() -> None:
    ran = run_with("mmx", "-c", "from tkg.backends import cpu; print(cpu.unavailable())")
    assert "mmx" in ran.stdout


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("d_head", [64, 96, 128])
@pytest.mark.parametrize("dtype", FP8)
def test_tables_of_fp8_give_the_bits_of_arithmetic(dtype: str, d_head: int, group: int) -> None:
    """`avx512_vbmi` looks FP8 up, `avx512` moves its bits and converts them."""
    core = cpu.core()
    if "avx512_vbmi" not in core.runnable_isas().split():
        pytest.skip("this CPU has no AVX512-VBMI")
    case = Case(
        name="tables",
        lengths=(300, 7, 64),
        capacity=320,
        q_heads=2 * group,
        kv_heads=2,
        d_head=d_head,
        dtype="bfloat16",
        cache_dtype=dtype,
        qkv="ROW",
        out="ROW",
        static_format=dtype,
    )
    assert bits_on("avx512", case) == bits_on("avx512_vbmi", case)


@pytest.mark.parametrize("stored", ["bfloat16", *FP8])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("isa", UNITS)
def test_units_for_bfloat16_are_for_hidden_states_of_it(isa: str, dtype: str, stored: str) -> None:
    """Whatever the weights and the cache are; with other hidden states nothing is rounded."""
    if isa not in cpu.core().runnable_isas().split():
        pytest.skip(f"this CPU has no {isa}")
    scaled = "ROW" if stored in FP8 else "NONE"
    case = Case(
        name="units",
        lengths=(300, 7),
        capacity=320,
        d_head=64,
        dtype=dtype,
        weight_dtype="bfloat16",
        out_dtype="bfloat16",
        cache_dtype=stored,
        qkv=scaled,
        out=scaled,
        static_format=stored if stored in FP8 else "float8_e4m3",
    )
    same = bits_on(isa, case) == bits_on("avx512_vbmi", case)
    assert same == (dtype != "bfloat16")


@pytest.mark.parametrize("features", [1, 31, 32, 65, 700])
def test_rows_have_their_bits_whatever_computes_them(features: int) -> None:
    """`avx512_amx` takes vectors for few rows. A quarter of the weights are denormal."""
    rng = np.random.default_rng(features)
    bits = rng.integers(0, 0x200, (features, 70)) | rng.integers(0, 2, (features, 70)) << 15
    weight = bits.astype(np.uint16).view(NUMPY["bfloat16"])
    x = (rng.standard_normal((20, 1, features)) * 8).astype(NUMPY["bfloat16"])
    project = tkg.Projection(tkg.Linear(weight), backend="cpu")
    together = project(x).tobytes()
    assert together == b"".join(project(row[None]).tobytes() for row in x)
    assert together == b"".join(project(x[i : i + 4]).tobytes() for i in range(0, 20, 4))


def bits_on(isa: str, case: Case) -> list[bytes]:
    """Of what the block and its prepared QKV projection give."""
    core, call = cpu.core(), case.inputs(0)
    in_use = core.isa()
    try:
        core.set_isa(isa)
        return [once.tobytes() for once in (*outputs(call), in_panels(call))]
    finally:
        core.set_isa(in_use)


def outputs(call: Call) -> tuple[np.ndarray, ...]:
    own = call | {name: call[name].copy() for name in ("K_cache", "V_cache")}
    return tkg.attention_block_tkg(**own, backend="cpu")


def in_panels(call: Call) -> np.ndarray:
    """The QKV projection alone, prepared."""
    scale = call.get("weight_dequant_scale_qkv")
    how = tkg.QuantizationType.NONE if scale is None else tkg.QuantizationType.ROW
    linear = tkg.Linear(call["W_qkv"], quantization=how, weight_scale=scale)
    return tkg.Projection(linear, backend="cpu")(call["X"])
