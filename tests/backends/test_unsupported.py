"""What the cpu backend refuses: every reason at once, who else could, and nothing touched."""

from __future__ import annotations

import numpy as np
import pytest

import tkg
from tests.calls import BACKENDS, Call, checksums
from tkg.testing.case import Case, ProjectionCase

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cpu out")


def refusal(call: Call) -> tkg.Unsupported:
    before = checksums(call)
    with pytest.raises(tkg.Unsupported) as caught:
        tkg.attention_block_tkg(**call, backend="cpu")
    assert checksums(call) == before
    others = caught.value.alternatives
    assert "reference" in others and "cpu" not in others
    assert tuple(tkg.explain(**call).backends["cpu"]) == caught.value.reasons["cpu"]
    tkg.attention_block_tkg(**call, backend="reference")
    return caught.value


def test_sizes_past_the_limits() -> None:
    case = Case(name="big", d_head=514, tokens=129, lengths=(1,), capacity=130, hidden=8, q_heads=1)
    text = str(refusal(case.inputs()))
    for part in ("d_head", "512", "514", "S_tkg", "128", "129"):
        assert part in text


def test_the_limits_themselves_are_fine() -> None:
    case = Case(name="big", d_head=512, tokens=128, lengths=(1,), capacity=130, hidden=8, q_heads=1)
    tkg.attention_block_tkg(**case.inputs(), backend="cpu")


@pytest.mark.parametrize("name", ["W_qkv", "W_out"])
def test_weights_whose_rows_are_not_contiguous(name: str) -> None:
    call = Case(name="strided").inputs()
    call[name] = np.asfortranarray(call[name])
    text = str(refusal(call))
    assert name in text
    assert "ascontiguousarray" in text


@pytest.mark.parametrize("name", ["K_cache", "V_cache"])
def test_caches_whose_innermost_axis_is_not_contiguous(name: str) -> None:
    call = Case(name="strided").inputs()
    wide = np.repeat(call[name], 2, axis=-1)
    call[name] = wide[..., ::2]
    assert name in str(refusal(call))


def test_every_reason_is_given() -> None:
    call = Case(name="strided", d_head=514, hidden=8, q_heads=1).inputs()
    for name in ("W_qkv", "W_out"):
        call[name] = np.asfortranarray(call[name])
    assert len(refusal(call).reasons["cpu"]) == 3


def test_projection() -> None:
    call = ProjectionCase(name="strided").inputs()
    call["weight"] = np.asfortranarray(call["weight"])
    with pytest.raises(tkg.Unsupported, match="weight.*contiguous"):
        tkg.output_projection_tkg(**call, backend="cpu")


def test_nothing_falls_back() -> None:
    """The default for arrays on the CPU is the cpu backend, and it refuses under its own name."""
    call = Case(name="strided").inputs()
    call["W_qkv"] = np.asfortranarray(call["W_qkv"])
    with pytest.raises(tkg.Unsupported, match="cpu"):
        tkg.attention_block_tkg(**call)
