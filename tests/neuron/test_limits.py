"""What the machine's sizes allow: right at the limit, and one past it refused in words."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import tkg
from tests.calls import Call, block_checks, checksums, failures, projection_check, run, same_bits
from tkg.backends import registry
from tkg.testing.case import Case, ProjectionCase
from tkg.testing.verify import block_truth, projection_truth


def case(**fields: Any) -> Case:
    shapes = {"dtype": "bfloat16", "q_heads": 1, "d_head": 16, "capacity": 8, "lengths": (3,)}
    return Case(name="limits", **(shapes | fields))


AT = {
    "d_head": {"d_head": 512},
    "d_head in two parts": {"d_head": 254},
    "rows": {"lengths": (3,) * 512, "cache": "block", "block_len": 8},
    "rows of three tokens": {"lengths": (3,) * 45, "tokens": 3},
    "tokens": {"tokens": 128, "capacity": 192},
    "query columns of the partitions": {"q_heads": 64, "tokens": 2},
    "more query heads than partitions": {"q_heads": 150, "tokens": 2},
    "more query columns": {"q_heads": 6, "kv_heads": 2, "tokens": 48, "capacity": 96},
    "more sums than PSUM holds": {"q_heads": 26, "lengths": (3,) * 128},
    "sums in banks that are not full": {"q_heads": 27, "lengths": (3,) * 120},
}


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("fields", AT.values(), ids=AT)
def test_the_limits_themselves_are_fine(fields: dict[str, Any], lnc: int) -> None:
    call = case(dtype="float32", **fields).inputs() | {"lnc": lnc}
    assert not failures(block_checks("neuron", call, block_truth(call)))


PAST = {
    "d_head is n * m with n up to 4 and m up to 128; this is 262": {"d_head": 262},
    "B * S_tkg is at most 512; this is 513": {"lengths": (3,) * 513},
    "B * S_tkg is at most 512; this is 515": {"lengths": (3,) * 5, "tokens": 103, "capacity": 128},
    "S_tkg is at most 128; this is 130": {"tokens": 130, "capacity": 192},
}  # fmt: skip


@pytest.mark.parametrize("reason", PAST)
def test_one_past_the_limit_is_refused(reason: str) -> None:
    call = case(**PAST[reason]).inputs()
    with pytest.raises(tkg.Unsupported) as caught:
        run("neuron", call)
    assert caught.value.reasons["neuron"] == (reason,)
    assert tuple(tkg.explain(**call).backends["neuron"]) == (reason,)


def test_a_cache_of_more_slots_than_float32_counts() -> None:
    call = case(d_head=2).inputs()
    refusal = "the slots of all KV heads are at most 16777215; this is 16777216"
    for slots, reasons in ((1 << 24, (refusal,)), ((1 << 24) - 1, ())):
        caches = (np.zeros((1, 1, slots, 2), call["K_cache"].dtype) for _ in range(2))
        found = tkg.explain(**(call | dict(zip(("K_cache", "V_cache"), caches, strict=True))))
        assert tuple(found.backends["neuron"]) == reasons


def test_every_reason_is_given() -> None:
    fields = {"d_head": 262, "lengths": (3,) * 5, "tokens": 110, "capacity": 128, "hidden": 31}
    with pytest.raises(tkg.Unsupported) as caught:
        run("neuron", case(**fields).inputs() | {"lnc": 2})
    text = str(caught.value)
    output = "the output's H must be a multiple of lnc = 2; this is 31"
    for part in ("d_head", "B * S_tkg", "X's H must be even; this is 31", output):
        assert part in text
    assert caught.value.alternatives == ("reference", "cpu")


def test_more_than_sbuf_holds_is_refused_and_nothing_is_written() -> None:
    """A prime block length is one run, here of 1009 slots a partition."""
    call = case(d_head=128, cache="block", block_len=1009, capacity=1009, dtype="float32").inputs()
    before = checksums(call)
    with pytest.raises(tkg.Unsupported, match="neuron: SBUF cannot hold.*bytes") as caught:
        tkg.attention_block_tkg(**call, backend="neuron")
    assert caught.value.alternatives == ("reference", "cpu")
    assert checksums(call) == before


LARGE: dict[str, dict[str, Any]] = {
    "64 heads of 128": {"q_heads": 64, "kv_heads": 8, "d_head": 128, "hidden": 1000},
    "40 heads of 128, float32 W_out": {"q_heads": 40, "kv_heads": 8, "d_head": 128, "hidden": 1000,
                                       "out_dtype": "float32"},
}  # fmt: skip


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("fields", LARGE.values(), ids=LARGE)
def test_large_weights_are_taken_in_smaller_blocks(fields: dict[str, Any], lnc: int) -> None:
    call = case(**fields).inputs() | {"lnc": lnc}
    assert not failures(block_checks("neuron", call, block_truth(call)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_projection_of_16384_features(dtype: str) -> None:
    large = ProjectionCase(
        name="limits", d_head=128, heads=128, batch=65, hidden=128, dtype=dtype, bias=True
    )
    call = large.inputs()
    assert projection_check("neuron", call, projection_truth(call)).ok


def test_calls_from_several_threads() -> None:
    calls = [case(lengths=(n, 7 - n), d_head=32).inputs() for n in range(4)]
    expected = [run("neuron", call) for call in calls]
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        results[number] = run("neuron", calls[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, wanted in enumerate(expected):
        assert all(same_bits(a, b) for a, b in zip(results[number], wanted, strict=True))


def test_arrays_that_are_not_contiguous() -> None:
    """Weights and caches with strides of their own; the caches are updated through them."""
    call = case(lengths=(3, 5), d_head=32, hidden=64).inputs()
    wanted = run("neuron", call)
    strided: Call = call | {name: np.asfortranarray(call[name]) for name in ("W_qkv", "W_out", "X")}
    for name in ("K_cache", "V_cache"):
        wide = np.zeros((*call[name].shape[:-1], 64), call[name].dtype)
        wide[..., ::2] = call[name]
        strided[name] = wide[..., ::2]
    got = tkg.attention_block_tkg(**strided, backend="neuron")
    assert got[1] is strided["K_cache"]
    for a, b in zip(got, wanted, strict=True):
        assert same_bits(np.ascontiguousarray(a), b)


def test_the_backend_is_in_the_table() -> None:
    assert dict(registry.status())["neuron"] is None
