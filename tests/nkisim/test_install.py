"""`import nki` as this simulator, and what its modules answer."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nkisim
import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiNotImplementedError, NkiValidationError
from nkisim.language import NKIObject

MODULES = ["nki", "nki.isa", "nki.isa.constants", "nki.language", "nki.typing", "nki.collectives"]


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Another test of this process, or the neuron backend, may have installed it."""
    before = "nki" in sys.modules
    nkisim.uninstall()
    yield
    if before:
        nkisim.install()


@pytest.fixture
def installed() -> Iterator[None]:
    nkisim.install()
    yield
    nkisim.uninstall()


def test_install_and_uninstall() -> None:
    assert not [name for name in MODULES if name in sys.modules]
    nkisim.install()
    nkisim.install()
    try:
        for name in MODULES:
            module = importlib.import_module(name)
            *parents, last = name.split(".")
            if parents:
                assert getattr(importlib.import_module(".".join(parents)), last) is module
    finally:
        nkisim.uninstall()
        nkisim.uninstall()
    assert not [name for name in MODULES if name in sys.modules]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nki")


SCRIPT = """
import nki
import nki.isa as nisa
import nki.language as nl
import nki.typing as nt
from nki.collectives import ReplicaGroup
from nki.isa.constants import dge_mode, engine
from nki.typing import tensor
import numpy as np

@nki.jit
def double(x: nt.tensor[2, 3], y: tensor):
    tile = nl.load(x)
    nisa.tensor_scalar(tile, tile, nl.multiply, 2.0, engine=engine.vector)
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(out, tile, dge_mode=dge_mode.unknown)
    return out

@nki.jit(mode="trace")
def plain(x):
    return double(x, x)

values = np.arange(6, dtype=np.float32).reshape(2, 3)
assert (double(values, values) == 2 * values).all()
assert (nki.simulate(plain)(values) == 2 * values).all()
assert (nki.simulate(double[1])(values, y=values) == 2 * values).all()
assert repr(nt.tensor[2, 3]) == "tensor[2, 3]"
"""


def test_a_script_runs_unmodified_f41_f85(installed: None) -> None:
    """F85: called directly or through nki.simulate; a kernel within a kernel."""
    exec(compile(SCRIPT, "script.py", "exec"), {"__name__": "script"})


def test_another_nki_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nki").mkdir()
    (tmp_path / "nki" / "__init__.py").write_text("here = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match=r"another nki is here .*use install\(force=True\)"):
        nkisim.install()
    try:
        nkisim.install(force=True)
        assert importlib.import_module("nki").jit is nkisim.jit
        nkisim.uninstall()
        assert importlib.import_module("nki").here == 1
        with pytest.raises(ImportError, match="another nki is here"):
            nkisim.install()
        nkisim.install(force=True)
        nkisim.uninstall()
        assert importlib.import_module("nki").here == 1, "an imported one comes back"
    finally:
        nkisim.uninstall()
        sys.modules.pop("nki", None)


@pytest.mark.parametrize(
    ("module", "name", "instead"),
    [
        ("nki", "baremetal", "nki.simulate"),
        ("nki", "benchmark", "latency_us"),
        ("nki", "profile", "latency_us"),
        ("nki", "simulate_kernel", "nki.simulate(kernel)"),
        ("nki.isa", "tensor_copy_dynamic_src", "tensor_copy with src.ap"),
        ("nki.isa", "tensor_copy_dynamic_dst", "scalar_offset"),
        ("nki.language", "arange", "nl.ds"),
        ("nki.language", "mgrid", "tensor.ap"),
        ("nki.language", "par_dim", "dimension 0"),
        ("nki.language", "fp32", "finfo"),
        ("nki", "no_such_name", "neither NKI 0.6 nor this simulator"),
        ("nki.isa", "no_such_name", "neither"),
        ("nki.language", "no_such_name", "neither"),
    ],
)
def test_names_that_are_gone_f51_f89(installed: None, module: str, name: str, instead: str) -> None:
    """F51, F89: a removed name fails by name and says what to use; so does an unknown one."""
    found = importlib.import_module(module)
    with pytest.raises(AttributeError) as caught:
        getattr(found, name)
    assert f"{module}.{name}" in str(caught.value) and instead in str(caught.value)
    assert not hasattr(found, name)
    with pytest.raises(ImportError):
        exec(f"from {module} import {name}")


def test_the_old_compiler_inside_a_kernel_f50(installed: None) -> None:
    """F50: `import neuronxcc.nki` in a kernel is an error that says what to import."""

    def kernel(x: Any) -> None:
        import neuronxcc.nki.language  # noqa: F401  # type: ignore[import-not-found]

    with pytest.raises(
        ImportError, match=r"test_install.py:\d+: import neuronxcc: .* inside a kernel"
    ):
        nkisim.simulate(kernel)(np.zeros((2, 2), np.float32))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("neuronxcc")


def test_nki_objects_f40_f87() -> None:
    """F40: frozen dataclasses; F87: __call__; plain ones take keywords, __post_init__ runs."""

    class Plain(NKIObject):
        pass

    @dataclass
    class Config(NKIObject):
        rows: int
        columns: int = 4
        size: int = 0

        def __post_init__(self) -> None:
            self.size = self.rows * self.columns

        def __call__(self, factor: int) -> int:
            return factor * self.size

    @dataclass(frozen=True)
    class Frozen(NKIObject):
        rows: int

    def kernel(x: Any, config: Config, frozen: Frozen) -> Any:
        out = nl.ndarray((frozen.rows, config.columns), nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nl.full(out.shape, float(config(10)), nl.float32))
        return out

    assert vars(Plain(a=1, b="c")) == {"a": 1, "b": "c"}
    config, frozen = Config(3), Frozen(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.rows = 5  # type: ignore[misc]
    result = nkisim.simulate(kernel)(np.zeros((1, 1), np.float32), config, frozen)
    assert result.shape == (2, 4) and (result == 120).all()


def test_the_enumerations_have_nkis_values() -> None:
    assert [member.value for member in nisa.engine] == [0, 1, 2, 3, 4, 5, 6]
    assert nisa.engine.vector.value == 5 and nisa.vector_engine is nisa.engine.vector
    assert nisa.reduce_cmd.load_reduce.value == 4 and nisa.dge_mode.none.value == 3
    assert nisa.nc_version.gen3.value == 3 and nisa.oob_mode.skip.value == 1
    assert nisa.constants.engine is nisa.engine


def test_dtypes_are_strings_that_numpy_takes() -> None:
    for name in ("float32", "bfloat16", "int8", "uint16", "float16", "float8_e5m2"):
        dtype = getattr(nl, name)
        assert dtype == name and np.dtype(dtype).name == name
    assert np.dtype(nl.bool_) == np.bool_


def test_imprecise_floats_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """NKI_PRECISE_FP=0 would store every narrow float as float32; 1 is what this does."""
    kernel = nkisim.simulate(lambda x: nl.load(x) and None)
    monkeypatch.setenv("NKI_PRECISE_FP", "0")
    with pytest.raises(NkiNotImplementedError, match="NKI_PRECISE_FP=0"):
        kernel(np.zeros((2, 2), np.float32))
    monkeypatch.setenv("NKI_PRECISE_FP", "1")
    monkeypatch.setenv("NKI_SIMULATOR", "1")
    kernel(np.zeros((2, 2), np.float32))


def test_a_narrow_float_is_really_rounded_f38() -> None:
    """F38: bfloat16 holds 8 bits of 1 + 2^-9."""

    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nl.load(x, dtype=nl.bfloat16))
        return out

    assert nkisim.simulate(kernel)(np.full((1, 1), 1 + 2.0**-9, np.float32))[0, 0] == 1.0


def test_outside_a_kernel_instructions_say_so() -> None:
    with pytest.raises(NkiValidationError, match="no kernel is running"):
        nl.zeros((2, 2), nl.float32)


def test_the_package_is_light() -> None:
    """`import nkisim`, and installing it, load NumPy and ml_dtypes only."""
    code = (
        "import sys, nkisim; nkisim.install(); import nki.language, nki.isa, nki.collectives\n"
        "heavy = {'torch', 'matplotlib', 'jax', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_public_names() -> None:
    for name in nkisim.__all__:
        assert not isinstance(getattr(nkisim, name), types.ModuleType), name
