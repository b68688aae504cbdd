"""The rows of the benchmark: what their names mean, and which are made."""

from __future__ import annotations

import pytest

from tkg.bench import workloads
from tkg.bench.workloads import DTYPES, QUICK, WORKLOADS, Row


@pytest.mark.parametrize(
    ("name", "hidden", "q", "kv", "d"),
    [  # the models' config.json on Hugging Face, heads divided by 8 for a rank
        ("smollm2", 576, 9, 3, 64),
        ("qwen3-0.6b", 1024, 16, 8, 128),
        ("llama3-8b-tp8", 4096, 4, 1, 128),
        ("llama3-8b", 4096, 32, 8, 128),
        ("gpt-oss-tp8", 2880, 8, 1, 64),
    ],
)
def test_a_workload_has_its_models_shape(name: str, hidden: int, q: int, kv: int, d: int) -> None:
    case = WORKLOADS[name]
    assert (case.hidden, case.q_heads, case.kv_heads, case.d_head) == (hidden, q, kv, d)
    assert case.window is None and case.hidden_actual is None
    assert case.sink == case.bias_out == (name == "gpt-oss-tp8")
    assert (case.pre_norm is not None) == (name == "qwen3-0.6b")


def test_the_context_counts_the_new_tokens() -> None:
    case = Row("tiny", context=50, tokens=4, cache="block").case(3)
    assert case.lengths == (46, 46, 46)
    assert case.s_ctx == case.capacity == 64  # whole pages of 16
    assert case.cache == "block" and case.block_len == 16


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_is_what_the_call_is_made_of(dtype: str) -> None:
    call = Row("tiny", dtype, context=33).case(1).inputs()
    weights, caches = call["W_qkv"].dtype.name, call["V_cache"].dtype.name
    assert weights == call["W_out"].dtype.name
    assert (weights == "float8_e4m3") == dtype.startswith("fp8")
    assert (caches == "float8_e4m3") == dtype.endswith("kv8")
    if not dtype.startswith("fp8"):
        assert {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[dtype] == weights


def test_rows_are_all_combinations() -> None:
    made = workloads.rows(["tiny"], ["bf16", "fp32"], [1, 4], [64, 128], ([1, 4], ["flat"]))
    assert len(made) == len(set(made)) == 16
    assert made[0] == Row("tiny", "bf16", 1, 64, 1, "flat")
    assert made[-1] == Row("tiny", "fp32", 4, 128, 4, "flat")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((["gpt-5"], ["bf16"], [1], [64], ([1], ["flat"])), "workload must be one of.*'gpt-5'"),
        ((["tiny"], ["int4"], [1], [64], ([1], ["flat"])), "dtype must be one of.*'int4'"),
        ((["tiny"], ["bf16"], [1], [64], ([1], ["round"])), "cache must be one of.*'round'"),
        ((["tiny"], ["bf16"], [0], [64], ([1], ["flat"])), "batch must be at least 1; got 0"),
        ((["tiny"], ["bf16"], [1], [64], ([0], ["flat"])), "s-tkg must be at least 1; got 0"),
        ((["tiny"], ["bf16"], [1], [4], ([4], ["flat"])), "context must be at least 5; got 4"),
    ],
)
def test_a_wrong_choice_says_so(arguments: tuple, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        workloads.rows(*arguments)


def test_the_quick_rows_are_different_ones() -> None:
    assert len(set(QUICK)) == len(QUICK)
    assert all(row.workload in WORKLOADS and row.dtype in DTYPES for row in QUICK)
