"""The launch as a kernel sees it, sizes of the hardware, printing."""

from __future__ import annotations

import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiValidationError, Options, set_options
from nkisim.enums import MemoryRegion, nc_version
from nkisim.tensor import NkiTensor
from tests.nkisim.harness import execute, tile


def test_one_program_and_two_f29_f74() -> None:
    """F29: kernel[2] has two programs; F74: the axes default to 0."""

    def kernel() -> tuple[int, int, int]:
        assert nl.program_id() == nl.program_id(0) == nl.program_id(axis=0)
        assert nl.num_programs() == nl.num_programs(0) == nl.num_programs(axes=[0])
        return nl.program_id(0), nl.num_programs(), nl.program_ndim()

    assert execute(kernel) == (0, 1, 0)
    assert execute(kernel, lnc=2) == (0, 2, 1)


def test_each_program_has_its_id() -> None:
    def kernel() -> NkiTensor:
        out = nl.ndarray((2, 4), nl.int32, buffer=nl.shared_hbm)
        mine = nl.full((1, 4), nl.program_id(0) + 10, nl.int32)
        nl.store(out[nl.ds(nl.program_id(0), 1)], mine)
        return out

    assert execute(kernel, lnc=2).tolist() == [[10] * 4, [11] * 4]


@pytest.mark.parametrize("ask", [lambda: nl.program_id(1), lambda: nl.num_programs([0, 1])])
def test_a_launch_has_one_axis(ask: object) -> None:
    with pytest.raises(NkiValidationError, match="one axis"):
        execute(ask)  # type: ignore[arg-type]


def test_sizes_f57() -> None:
    """F57 and TS: the documented constants, and the relations between the others."""
    sizes = nl.tile_size
    assert (sizes.pmax, sizes.gemm_stationary_fmax, sizes.gemm_moving_fmax) == (128, 128, 512)
    assert (sizes.psum_bank_fmax, sizes.psum_fmax, sizes.psum_bank_fmax_bytes) == (512, 512, 2048)
    assert sizes.bn_stats_fmax == 512
    assert sizes.sbuf_fmax_bytes == 4 * sizes.sbuf_fmax == sizes.total_available_sbuf_size
    assert sizes.sbuf_size_bytes >= 128 * sizes.sbuf_fmax_bytes
    assert sizes.psum_min_align % 4 == 0 and sizes.sbuf_min_align >= 1


def test_sizes_are_the_running_targets() -> None:
    def kernel() -> tuple[int, nc_version]:
        return nl.tile_size.sbuf_fmax_bytes, nisa.get_nc_version()

    assert execute(kernel, target="trn2") == (208 * 1024, nc_version.gen3)
    assert execute(kernel, target="trn1") == (176 * 1024, nc_version.gen2)
    assert nisa.get_nc_sub_version() == 0


def test_outside_a_kernel_they_are_the_default_targets() -> None:
    before = set_options(target="trn1")
    try:
        assert nl.tile_size.sbuf_fmax_bytes == 176 * 1024
        assert nisa.get_nc_version() is nc_version.gen2
    finally:
        set_options(target=before.target)
    assert nl.tile_size.sbuf_fmax_bytes == 208 * 1024
    assert Options().target == "trn2"


def test_the_environment_names_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    assert nisa.get_nc_version() is nc_version.gen2
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn9")
    with pytest.raises(ValueError, match="target: no chip 'trn9'"):
        nisa.get_nc_version()


def test_a_bank_may_be_kept_for_transposes_f25(monkeypatch: pytest.MonkeyPatch) -> None:
    """F25: 8 banks, or 7 with the variable on trn2 and later."""
    assert nl.tile_size.psum_num_banks == 8
    monkeypatch.setenv("NKI_DMA_TRANSPOSE_AS_PE_TRANSPOSE", "true")
    assert execute(lambda: nl.tile_size.psum_num_banks) == 7
    assert execute(lambda: nl.tile_size.psum_num_banks, target="trn1") == 8


def test_questions_about_a_buffer() -> None:
    answers = {
        buffer: (nl.is_hbm(buffer), nl.is_sbuf(buffer), nl.is_psum(buffer), nl.is_on_chip(buffer))
        for buffer in MemoryRegion
    }
    assert answers == {
        nl.sbuf: (False, True, False, True),
        nl.psum: (False, False, True, True),
        nl.private_hbm: (True, False, False, False),
        nl.shared_hbm: (True, False, False, False),
    }
    assert nl.hbm is nl.private_hbm


def test_device_print_f46(capsys: pytest.CaptureFixture[str]) -> None:
    """F46: HBM and SBUF, any rank; at once, to the standard output."""

    def kernel(a: NkiTensor) -> None:
        nl.device_print("one row:", a[0])
        nl.device_print("tile:", tile(np.array([[1.5, 2.5]], np.float32)))

    execute(kernel, np.array([[1, 2], [3, 4]], np.int32))
    assert capsys.readouterr().out == "one row: [1 2]\ntile: [[1.5 2.5]]\n"


def test_device_print_refuses() -> None:
    with pytest.raises(NkiValidationError, match="device_print: print_prefix"):
        execute(lambda: nl.device_print(3, tile(np.zeros((1, 1)), "float32")))  # type: ignore[arg-type]
    with pytest.raises(NkiValidationError, match="device_print: tensor"):
        execute(lambda: nl.device_print("p", nl.zeros((1, 1), nl.float32, buffer=nl.psum)))
