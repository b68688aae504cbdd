"""`tkg profile`: what it prints, whom it refuses, and the figures behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import nkisim
from nkisim.chips import TRN2
from tkg.backends import neuron
from tkg.cli import profile_figures, profile_run
from tkg.cli.commands import commands
from tkg.cli.profile_run import LAYERS, Profiled, Shape, run_case, run_shape
from tkg.contract.cost import Call
from tkg.testing.case import Case
from tkg.testing.cases import find

TINY = Case(name="tiny", hidden=256, q_heads=4, kv_heads=1, d_head=32, dtype="bfloat16")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, "tiny", TINY)


def profile(*arguments: str, code: int = 0) -> str:
    done = CliRunner(env={"NO_COLOR": "1"}).invoke(commands, ["profile", *arguments])
    assert done.exit_code == code, done.output
    return re.sub(r"\s+", " ", done.output)


def tiny_profile(*arguments: str, code: int = 0) -> str:
    return profile("--workload", "tiny", "--context", "256", *arguments, code=code)


def spoil(monkeypatch: pytest.MonkeyPatch, least_context: int = 0) -> list[int]:
    """The neuron backend's output is wrong, and in the returned list are the contexts it saw."""
    right = neuron.attention_block
    seen: list[int] = []

    def wrong(call: Call) -> Any:
        seen.append(call.context)  # pyright: ignore[reportAttributeAccessIssue]
        result = right(call)  # pyright: ignore[reportArgumentType]
        factor = 1.5 if seen[-1] >= least_context else 1.0
        return replace(result, out=(result.out * factor).astype(result.out.dtype))

    monkeypatch.setattr(neuron, "attention_block", wrong)
    return seen


def numbers(figures: profile_figures.Figures) -> Iterator[tuple[str, int, int, int]]:
    for tensor in (*figures.tensors, figures.total):
        yield tensor.tensor, tensor.read, tensor.written, tensor.least


# -- the command --------------------------------------------------------------------------------


def test_a_shape() -> None:
    text = tiny_profile("--batch", "2")
    shape = Shape(TINY, "bf16", 2, 256)
    found = profile_figures.figures(*of(run_shape(shape)))
    assert text.startswith("tiny bf16 B=2 S_tkg=1 S_ctx=256 flat cache, 1 core answer: right (")
    assert f"time {found.modelled:,.1f} critical path: " in text
    assert f"DMA bound {found.dma_bound:,.1f} " in text
    assert f"busiest engine {found.engine_bound:,.1f} {found.engine}: " in text
    assert f"time / bound {found.ratio:.2f} " in text
    for tensor, read, written, least in numbers(found):
        read, written = (f"{count:,}" if count else "-" for count in (read, written))
        assert f"{tensor} {read} {written} {least:,} " in text
    for word in ("Tensor", "Vector", "DMA data", "SBUF high water", "PSUM high water", "modelled"):
        assert word in text
    assert "nothing here was measured on a device" in text


def of(profiled: Profiled) -> tuple[Call, nkisim.Report]:
    return profiled.call, profiled.report


@pytest.mark.parametrize("cache", ["transposed", "block"])
@pytest.mark.parametrize("dtype", ["bf16", "fp8", "bf16-kv8", "fp8-static"])
def test_layouts_and_formats(cache: str, dtype: str) -> None:
    text = tiny_profile("--cache", cache, "--dtype", dtype, "--s-tkg", "2", "--lnc", "2")
    of_32 = " of 32" if cache == "block" else ""
    assert f"tiny {dtype} B=1 S_tkg=2 S_ctx=256 {cache}{of_32} cache, 2 cores" in text
    assert "Tensor (core 1)" in text and "answer: right" in text


def test_a_named_case() -> None:
    text = profile("--case", "sink")
    assert text.startswith("sink, 1 core answer: right (")
    assert " sink 2,048 - 16 128.000 " in text  # 4 heads in float32, for each of 128 partitions
    assert " W_out 65,536 - 65,536 1.000 " in text


def test_a_named_projection() -> None:
    text = profile("--case", "projection-gpt-oss", "--lnc", "2")
    assert text.startswith("projection-gpt-oss, 2 cores answer: right (out used ")


def test_a_case_whose_layout_says_how_many_cores() -> None:
    assert profile("--case", "transposed-out-lnc2").startswith("transposed-out-lnc2, 2 cores ")


def test_without_a_name_it_is_a_layer_of_llama() -> None:
    text = profile("--context", "128")
    assert text.startswith("llama3-8b-tp8 bf16 B=1 S_tkg=1 S_ctx=128 flat cache, 1 core")


def test_the_simulators_own_report() -> None:
    assert "findings: none" in tiny_profile("--full")
    assert "findings" not in tiny_profile()


def test_files(tmp_path: Path) -> None:
    trace, timeline, memory = (tmp_path / "new" / n for n in ("t.json", "t.png", "m.svg"))
    text = tiny_profile(
        *("--trace", str(trace), "--timeline", str(timeline), "--memory-map", str(memory))
    )
    assert json.loads(trace.read_text())["traceEvents"]
    assert timeline.read_bytes().startswith(b"\x89PNG")
    assert memory.read_text().startswith("<?xml")
    for path in (trace, timeline, memory):
        assert f"wrote {path}" in text


@pytest.mark.parametrize(
    "what", [["--case", "sink"], ["--workload", "tiny", "--context", "256"]], ids=" ".join
)
def test_a_wrong_answer_is_exit_code_1(
    what: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch)
    trace = tmp_path / "trace.json"
    text = profile(*what, "--trace", str(trace), code=1)
    assert "answer: WRONG: out used" in text
    assert "DMA bound" not in text and not trace.exists()


def test_a_long_context_is_checked_at_a_shorter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shape.checkable, "__defaults__", (4 * 128,))
    seen = spoil(monkeypatch, least_context=256)
    text = tiny_profile()
    assert seen == [128, 256]
    assert "answer: right (" in text and "checked at S_ctx=128" in text
    spoil(monkeypatch)
    assert "checked at S_ctx=128" in tiny_profile(code=1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--workload", "llama9"], "workload must be one of smollm2"),
        (["--case", "llama9"], "'llama9'"),
        (["--case", "sink", "--workload", "tiny"], "leave out --workload"),
        (["--case", "sink", "--s-tkg", "1", "--batch", "1"], "leave out --batch, --s-tkg"),
        (["--case", "transposed-out-lnc2", "--lnc", "1"], "lnc must be 2 for transposed-out-lnc2"),
        (["--dtype", "bf8"], "dtype must be one of fp32, fp16, bf16"),
        (["--context", "4", "--s-tkg", "4"], "context must be above s-tkg = 4"),
        (["--cache", "block", "--context", "100"], "multiple of block-len = 32; got 100"),
        (["--cache", "round"], "round"),
        (["--case", "hidden-1", "--lnc", "2"], "neuron: on two cores X's H must be even"),
    ],
)
def test_a_wrong_request_is_exit_code_2(arguments: list[str], text: str) -> None:
    assert text in profile(*arguments, code=2)


def test_pictures_need_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "'tkg[bench]'" in tiny_profile("--timeline", str(tmp_path / "t.png"), code=2)


def test_a_machine_with_neuron_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tkg.cli.profile.simulated", lambda: False)
    assert "AWS's NKI is installed" in tiny_profile(code=2)


# -- runs and checks ----------------------------------------------------------------------------


def test_every_row_of_a_repeated_batch_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(TINY, batch=8, context=128)
    monkeypatch.setattr(profile_run, "DRAWN_ELEMENTS", 2 * 32 * 128)
    assert shape.distinct() == 2
    right = neuron.attention_block
    assert run_shape(shape).right

    def last_row_wrong(call: Any) -> Any:
        result = right(call)
        result.out[-1] *= -1
        return result

    monkeypatch.setattr(neuron, "attention_block", last_row_wrong)
    assert not run_shape(shape).right


def test_a_slot_that_must_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    right = neuron.attention_block

    def strays(call: Any) -> Any:
        result = right(call)
        call.cache.k.numpy()[..., 3] += 1
        return result

    monkeypatch.setattr(neuron, "attention_block", strays)
    checks = run_shape(Shape(TINY, context=128, cache="transposed")).checks
    assert [check.what for check in checks if not check.ok] == ["caches"]


def test_the_context_that_can_be_checked() -> None:
    shape = Shape(TINY, context=4096, cache="block")
    assert shape.checkable(2**20) == shape
    assert shape.checkable(4 * 1024).context == 1024
    assert shape.checkable(1).context == 32  # a block stays whole


def test_a_run_that_is_not_checked_has_no_checks() -> None:
    assert run_shape(Shape(TINY, context=128), check=False).checks == ()


def test_observers_are_gone_after_a_refusal() -> None:
    from nkisim.kernel import on_report

    before = list(on_report)
    with pytest.raises(profile_run.tkg.Unsupported):
        run_case(find("hidden-1"), lnc=2)
    assert on_report == before


# -- figures ------------------------------------------------------------------------------------


def test_the_dma_bound_is_bytes_by_rate() -> None:
    """16 engines of 23 GB/s a core; the HBM stack of two cores gives 716 GB/s."""
    assert profile_figures.dma_bytes_per_us(TRN2, 1) == pytest.approx(368e3)
    assert profile_figures.dma_bytes_per_us(TRN2, 2) == pytest.approx(716e3)
    for lnc, rate in ((1, 368e3), (2, 716e3)):
        found = profile_figures.figures(*of(run_shape(Shape(TINY, context=128), lnc)))
        assert found.dma_bound == pytest.approx(found.total.least / rate)
        assert found.ratio == found.modelled / max(found.dma_bound, found.engine_bound)
        assert found.ratio > 1.0


def test_the_least_bytes_are_those_of_the_arrays() -> None:
    shape = Shape(TINY, batch=2, context=128)
    found = profile_figures.figures(*of(run_shape(shape)))
    least = {tensor.tensor: tensor.least for tensor in found.tensors}
    assert least == {
        "X": 2 * 256 * 2,
        "rmsnorm_X_gamma": 256 * 4,
        "W_qkv": 256 * 6 * 32 * 2,
        "cos": 16 * 2 * 4,
        "sin": 16 * 2 * 4,
        "K_cache": 2 * 128 * 32 * 2 + 2 * 32 * 2,
        "V_cache": 2 * 128 * 32 * 2 + 2 * 32 * 2,
        "pos_ids": 2 * 4,
        "kv_cache_update_idx": 2 * 4,
        "W_out": 128 * 256 * 2,
        "out": 2 * 256 * 2,
    }
    assert found.total.least == sum(least.values())


@pytest.mark.parametrize(
    "name", ["no-update", "skip-attention", "row-128", "gpt-oss-20b-tp8", "fp8-cache-transposed"]
)
def test_only_tensors_of_the_call_are_moved(name: str) -> None:
    found = profile_figures.figures(*of(run_case(find(name))))
    assert all(tensor.least for tensor in found.tensors if tensor.read + tensor.written)
    assert found.total.times <= 1.02
    assert found.tensors == tuple(sorted(found.tensors, key=lambda t: -(t.read + t.written)))
