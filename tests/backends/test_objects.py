"""The object API: the same answers as the drop-in call, with less to say."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import tkg
from tests import oracle
from tests.calls import Call, cores, failures, run, same_bits
from tests.variants import assert_same, paged
from tkg.testing.budgets import check_block
from tkg.testing.case import PADDED, Case
from tkg.testing.placed import back, device_of, on, own_caches
from tkg.testing.verify import computes


def linear(call: Call, which: str) -> tkg.Linear:
    return tkg.Linear(
        call[f"W_{which}"],
        call.get(f"bias_{which}"),
        call.get(f"quantization_type_{which}", tkg.QuantizationType.NONE),
        call.get(f"weight_dequant_scale_{which}"),
        call.get(f"input_dequant_scale_{which}"),
    )


def head_norm(call: Call, place: str) -> tkg.QKNorm | None:
    prefix = f"rmsnorm_QK_{place}_rope"
    if not call.get(f"{prefix}_enabled"):
        return None
    q_weight, k_weight = (call.get(f"{prefix}_W_{which}") for which in "QK")
    return tkg.QKNorm(q_weight, k_weight, call[f"{prefix}_eps"])


def block_of(case: Case, call: Call, backend: str) -> tkg.AttentionBlock:
    norm = None
    if case.eps is not None:
        norm = tkg.RMSNorm(call.get("rmsnorm_X_gamma"), case.eps)
    return tkg.AttentionBlock(
        heads=tkg.Heads(case.q_heads, case.kv_heads, case.d_head),
        qkv=linear(call, "qkv"),
        out=linear(call, "out") if "W_out" in call else None,
        input_norm=norm,
        pre_rope_norm=head_norm(call, "pre"),
        rope=case.rope,
        post_rope_norm=head_norm(call, "post"),
        sink=call.get("sink"),
        softmax_scale=case.softmax_scale,
        sliding_window=case.window,
        hidden_dim_actual=case.hidden_actual,
        lnc=cores(backend),
        backend=backend,
    )


def cache_of(call: Call, scale: tkg.KVScale | None = None) -> tkg.KVCache:
    return tkg.KVCache(
        call["K_cache"],
        call["V_cache"],
        transposed=call.get("K_cache_transposed", False),
        block_table=call.get("active_blocks_table"),
        scale=scale,
    )


def stepped(
    case: Case, call: Call, backend: str, scale: tkg.KVScale | None = None
) -> tuple[Any, Any, Any]:
    """One step of a layer, on copies of the caches: its output, and K and V after it."""
    mine = on(backend, own_caches(call))
    cache = cache_of(mine, scale)
    rope = (mine["cos"], mine["sin"]) if case.rope else None
    y = block_of(case, mine, backend)(mine["X"], cache, mine["pos_ids"], rope=rope)
    return back((y, cache.k.source, cache.v.source))


CASES = (
    Case(name="plain", kv_heads=2, tokens=3),
    Case(name="everything", dtype="bfloat16", bias_qkv=True, bias_out=True, sink=True, window=9),
    Case(name="norms", pre_norm=1e-6, post_norm=1e-5, rope="interleaved", cache="transposed"),
    Case(name="row", qkv="ROW", out="ROW", hidden=160, hidden_actual=150),
    Case(name="static", qkv="STATIC", out="STATIC", three_scales=True),
    Case(name="no-projection", projection=None, tokens=2),
    Case(name="padded", lengths=(PADDED, 9, 0)),
    Case(name="no-rope", rope=None, eps=None, softmax_scale=0.5),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_as_the_call(backend: str, case: Case) -> None:
    call = case.inputs()
    out, K, V = run(backend, call)
    y, k, v = stepped(case, call, backend)
    assert same_bits(y.reshape(out.shape), out)
    if case.projection is not None:
        assert y.shape == (case.batch, case.tokens, case.hidden)
    assert same_bits(k, K)
    assert same_bits(v, V)


@pytest.mark.parametrize("tokens", [1, 6])
def test_a_paged_cache_is_written_through_its_table(backend: str, tokens: int) -> None:
    """New tokens may cross into the next page, wherever that is."""
    case = Case(name="through", kv_heads=2, tokens=tokens, lengths=(30, 7))
    flat = case.inputs()
    out, K, V = run(backend, flat)
    call = paged(flat, block_len=8)
    y, k, v = stepped(case, call, backend)
    assert_same(backend, y.reshape(out.shape), out)
    want = run(backend, call)
    assert same_bits(k, want[1])
    assert same_bits(v, want[2])


@pytest.mark.parametrize("entry", [-1, 99])
@pytest.mark.parametrize("position", [6, 7, 8])
def test_a_new_token_needs_a_page(backend: str, entry: int, position: int) -> None:
    """Also the last slot of a page, whose number is -1 in page -1."""
    weight, x = (on(backend, np.ones(shape, np.float32)) for shape in ((24, 96), (1, 1, 24)))
    layer = tkg.AttentionBlock(
        heads=tkg.Heads(4, 1, 16), qkv=tkg.Linear(weight), lnc=cores(backend), backend=backend
    )
    k, v = (on(backend, np.zeros((4, 4, 1, 16), np.float32)) for _ in "kv")
    table = on(backend, np.array([[0, entry, entry]], np.int32))
    cache = tkg.KVCache(k, v, block_table=table)
    with pytest.raises(ValueError, match=rf"cache.block_table .* got {entry} at \[0, "):
        layer(x, cache, on(backend, np.array([[position]], np.int32)), validate=True)
    assert not back(k).any() and not back(v).any()


@pytest.mark.parametrize("layout", ["flat", "block"])
def test_a_padded_row_writes_nothing(backend: str, layout: str) -> None:
    """It is one by its first position, whatever stands behind it."""
    case = Case(name="padded", tokens=3, lengths=(PADDED, 9))
    call = case.inputs()
    call = call if layout == "flat" else paged(call, block_len=8)
    call["pos_ids"] = np.array([[-1, 4, 5], [9, 10, 11]], call["pos_ids"].dtype)
    if layout == "block":
        call["active_blocks_table"][0] = 2**32 - 1  # it has no pages
    y, k, v = stepped(case, call, backend)
    assert not y[0].any()
    for before, after in ((call["K_cache"], k), (call["V_cache"], v)):
        changed = (before.view(np.uint8) != after.view(np.uint8)).any(axis=-1)
        assert changed.sum() == 3


@pytest.mark.parametrize("fp8", ["float8_e4m3", "float8_e4m3fn"])
@pytest.mark.parametrize("projection", ["rows", None])
def test_the_scale_of_an_fp8_cache_is_folded_in(backend: str, fp8: str, projection: Any) -> None:
    """The output is that of a float32 cache that holds the dequantised values."""
    case = Case(name="fold", cache_dtype=fp8, projection=projection, lengths=(50, 3, PADDED))
    call = case.inputs(invalid=0.0)
    y, _, _ = stepped(case, call, backend, tkg.KVScale.quantize(37.0, 71.0))
    # The caller's own folding, in the drop-in call, against the float64 oracle.
    folded = call | {"softmax_scale": case.d_head**-0.5 / 37.0}
    if projection is not None:
        folded["W_out"] = call["W_out"].astype(np.float64) / 71.0
    want = oracle.attention_block(folded).out / (1.0 if projection is not None else 71.0)
    np.testing.assert_allclose(y.reshape(want.shape), want, rtol=0, atol=3e-6 * np.abs(want).max())
    assert not y[2].any()
    y2, _, _ = stepped(case, call, backend, tkg.KVScale.dequantize(1 / 37.0, 1 / 71.0))
    np.testing.assert_allclose(y2, y, rtol=0, atol=3e-6 * np.abs(want).max())


def test_decoding_step_by_step(backend: str) -> None:
    """Prompt and steps through one cache, against the oracle on the whole sequence at once."""
    case = Case(name="sequence", dtype="bfloat16", kv_heads=2, tokens=12, lengths=(0, 0))
    call = case.inputs(invalid=0.0)
    truth = oracle.attention_block(call)
    mine = on(backend, call)
    block = block_of(case, mine, backend)
    zeroed = tkg.KVCache.flat(batch=2, capacity=64, kv_heads=2, d_head=32)
    cache = tkg.KVCache(on(backend, zeroed.k.source), on(backend, zeroed.v.source))
    outs = []
    for part in (slice(0, 5), *(slice(s, s + 1) for s in range(5, 12))):
        positions = np.arange(12, dtype=np.int32)[None, part].repeat(2, 0)
        rope = on(backend, tkg.rope_tables(positions, 32))
        y = block(mine["X"][:, part], cache, on(backend, positions), rope=rope)
        outs.append(back(y))
    got = np.concatenate(outs, axis=1).reshape(truth.out.shape)
    caches = back((cache.k.source, cache.v.source))
    assert not failures(check_block(call, (got, *caches), truth, computes(backend)))


def test_the_cache_makers() -> None:
    flat = tkg.KVCache.flat(batch=3, capacity=10, kv_heads=2, d_head=8)
    assert flat.k.numpy().shape == flat.v.numpy().shape == (3, 2, 10, 8)
    assert flat.k.numpy().dtype == ml_dtypes.bfloat16
    turned = tkg.KVCache.flat(
        batch=3, capacity=10, kv_heads=2, d_head=8, dtype="float16", transposed=True
    )
    assert turned.k.numpy().shape == (3, 2, 8, 10)
    assert turned.v.numpy().shape == (3, 2, 10, 8)
    table = np.zeros((3, 5), np.int32)
    block = tkg.KVCache.block(
        num_blocks=7, block_len=4, kv_heads=2, d_head=8, block_table=table, dtype="float32"
    )
    assert block.k.numpy().shape == (7, 4, 2, 8)
    for cache in (flat, turned, block):
        assert not cache.k.numpy().astype(np.float32).any()
        assert not np.shares_memory(cache.k.numpy(), cache.v.numpy())


def test_rope_tables_are_the_formula() -> None:
    positions = np.array([[0, 1, 1000], [-1, 5, 6]], np.int32)
    cos, sin = tkg.rope_tables(positions, 6, base=500.0)
    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == (3, 2, 3)
    for i in range(3):
        for b, s in np.ndindex(2, 3):
            angle = max(int(positions[b, s]), 0) * 500.0 ** (-2 * i / 6)
            assert cos[i, b, s] == pytest.approx(np.cos(angle), abs=1e-7)
            assert sin[i, b, s] == pytest.approx(np.sin(angle), abs=1e-7)
    own, _ = tkg.rope_tables(positions, 6, inv_freq=np.array([1.0, 0.5, 0.25]))
    assert own[2, 0, 2] == pytest.approx(np.cos(250.0), abs=1e-6)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7), (200, 7)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_projection_of_any_leading_shape(backend: str, shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    weight = rng.standard_normal((7, 22)).astype(numpy_dtype)
    bias = rng.standard_normal((1, 22)).astype(np.float32)
    x = rng.standard_normal(shape).astype(numpy_dtype)
    linear = tkg.Linear(on(backend, weight), on(backend, bias))
    y = back(tkg.Projection(linear, backend=backend, lnc=cores(backend))(on(backend, x)))
    assert y.dtype == numpy_dtype
    assert y.shape == (*shape[:-1], 22)
    want = x.astype(np.float64) @ weight.astype(np.float64) + bias[0]
    rtol = 2**-8 if dtype == "bfloat16" else 1e-6
    np.testing.assert_allclose(y.astype(np.float64), want, rtol=rtol, atol=4e-6)


def test_torch_layers(backend: str) -> None:
    case = Case(name="torch", kv_heads=2, lengths=(3, 8))
    call = case.inputs(invalid=0.0)
    want = run(backend, call)[0]
    device = device_of(backend) or "cpu"
    tensors = {
        k: torch.from_numpy(v).to(device) if isinstance(v, np.ndarray) else v
        for k, v in call.items()
        if k != "kv_cache_update_idx"
    }
    cache = tkg.KVCache(tensors["K_cache"], tensors["V_cache"])
    rope = tkg.rope_tables(tensors["pos_ids"], 32)
    y = block_of(case, tensors, backend)(tensors["X"], cache, tensors["pos_ids"], rope=rope)
    assert isinstance(y, torch.Tensor)
    np.testing.assert_allclose(back(y).reshape(want.shape), want, rtol=0, atol=1e-5)
    project = tkg.Projection(tkg.Linear(tensors["W_out"]), backend=backend, lnc=cores(backend))
    assert project(torch.ones(2, 128, device=device)).shape == (2, 128)
