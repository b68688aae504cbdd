"""torch tensors in, torch tensors out, no copies of the caches on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tkg
from tests.calls import BACKENDS, Call, on_cores, project, run, run_as_is
from tkg.testing import placed
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.cases import CASES, PROJECTION_CASES
from tkg.testing.placed import own_caches


def tensors(backend: str, call: Call) -> Call:
    """The call with torch tensors (or `Float8E4M3`) on the memory of its NumPy arrays.

    For a backend that lives on a device, they are there.
    """
    device = placed.device_of(backend) or "cpu"
    return {
        name: placed.tensor(value, device) if isinstance(value, np.ndarray) else value
        for name, value in call.items()
    }


def bits(value: Any) -> np.ndarray:
    """The bytes of a tensor or array."""
    return np.ascontiguousarray(placed.back(value)).reshape(-1).view(np.uint8)


def memory(value: Any) -> int:
    return (value.bits if isinstance(value, tkg.Float8E4M3) else value).data_ptr()


SOME = [case for case in CASES if {"smoke", "edge"} & case.tags]


@pytest.mark.repeats
@pytest.mark.parametrize("case", SOME, ids=str)
def test_same_bits_as_numpy_and_in_place(backend: str, case: Case) -> None:
    call = case.inputs()
    want = run(backend, call)
    given = tensors(backend, own_caches(call))
    got = run_as_is(backend, given)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(bits(ours), bits(theirs))
    assert isinstance(got[0], torch.Tensor)
    assert str(got[0].dtype) == f"torch.{case.dtype}"
    assert tuple(got[0].shape) == want[0].shape
    if case.update:
        for name, cache in (("K_cache", got[1]), ("V_cache", got[2])):
            assert cache is given[name]
            assert memory(cache) == memory(given[name])


@pytest.mark.repeats
@pytest.mark.parametrize("case", PROJECTION_CASES, ids=str)
def test_projection_has_the_same_bits_as_numpy(backend: str, case: ProjectionCase) -> None:
    call = case.inputs()
    want = project(backend, call)
    got = tkg.output_projection_tkg(**on_cores(backend, tensors(backend, call)), backend=backend)
    assert isinstance(got, torch.Tensor)
    assert tuple(got.shape) == want.shape
    np.testing.assert_array_equal(bits(got), bits(want))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3", "float8_e4m3fn"])
def test_the_update_is_seen_through_other_views(backend: str, dtype: str) -> None:
    call = tensors(backend, Case(name="views", cache_dtype=dtype).inputs(invalid=0.0))
    raw = getattr(call["V_cache"], "bits", call["V_cache"])
    alias = raw.view(torch.uint8)
    before = alias.clone()
    address = raw.data_ptr()
    run_as_is(backend, call)
    changed = torch.argwhere((alias != before).any(-1))
    assert changed.tolist() == [[0, 0, 37], [1, 0, 5]]
    assert raw.data_ptr() == address


def test_new_tokens_in_fp8_come_back_wrapped(backend: str) -> None:
    case = Case(name="wrapped", cache_dtype="float8_e4m3", update=False)
    _, k, v = run_as_is(backend, tensors(backend, case.inputs()))
    assert isinstance(k, tkg.Float8E4M3)
    assert isinstance(v, tkg.Float8E4M3)
    case = Case(name="wrapped", cache_dtype="float8_e4m3fn", update=False)
    _, k, _ = run_as_is(backend, tensors(backend, case.inputs()))
    assert k.dtype == torch.float8_e4m3fn


def test_parameters_that_require_gradients_are_taken(backend: str) -> None:
    call = tensors(backend, Case(name="parameters").inputs())
    want = run_as_is(backend, call)[0]
    call["W_qkv"] = torch.nn.Parameter(call["W_qkv"])
    call["X"] = call["X"].clone().requires_grad_()
    got = run_as_is(backend, call)[0]
    assert not got.requires_grad
    assert torch.equal(got, want)


def test_strided_tensors(backend: str) -> None:
    call = tensors(backend, Case(name="strided").inputs())
    want = run_as_is(backend, call)[0]
    call["X"] = call["X"].repeat_interleave(2, dim=-1)[..., ::2]
    call["W_qkv"] = torch.cat([call["W_qkv"]] * 2, dim=1)[:, : call["W_qkv"].shape[1]]
    assert not call["X"].is_contiguous()
    got = run_as_is(backend, call)[0]
    assert torch.equal(got, want)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cpu out")
def test_a_linear_layers_weight_needs_its_copy_on_the_cpu_backend() -> None:
    """torch keeps [out, in]; its transpose is a view whose rows are not contiguous."""
    call = tensors("cpu", Case(name="linear").inputs())
    call["W_out"] = call["W_out"].t().contiguous().t()
    want = tkg.attention_block_tkg(**call, backend="reference")[0]
    with pytest.raises(tkg.Unsupported, match="W_out.*contiguous") as caught:
        tkg.attention_block_tkg(**call, backend="cpu")
    assert caught.value.alternatives == ("reference", "neuron")
    call["W_out"] = call["W_out"].contiguous()
    got = tkg.attention_block_tkg(**call, backend="reference")[0]
    assert torch.equal(got, want)


def test_attention_is_torchs(backend: str) -> None:
    """W_qkv cut down to what scaled_dot_product_attention is given: no norm, no RoPE."""
    case = Case(name="sdpa", eps=None, rope=None, projection=None, x_rms=1.0, kv_heads=2, tokens=3)
    call = case.inputs(invalid=0.0)
    out, _, _ = run(backend, call)
    qkv = torch.from_numpy(call["X"] @ call["W_qkv"])
    q, k, v = (t.unflatten(-1, (-1, 32)).transpose(1, 2) for t in qkv.split([128, 64, 64], -1))
    for row, length in enumerate(case.lengths):
        keys, values = (
            torch.cat([torch.from_numpy(call[name][row, :, :length]), new[row]], dim=1)
            for name, new in (("K_cache", k), ("V_cache", v))
        )
        mask = torch.ones(3, length + 3, dtype=torch.bool).tril(length)
        want = torch.nn.functional.scaled_dot_product_attention(
            q[row], keys.repeat_interleave(2, 0), values.repeat_interleave(2, 0), mask
        )
        got = torch.from_numpy(out[row]).transpose(1, 2)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
