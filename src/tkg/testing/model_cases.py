"""Cases with the attention shapes of published models.

A "rank" is one device's share under tensor parallelism (TP): query and KV heads divided by the
number of devices, hidden size whole. Shapes are from the models' `config.json` on Hugging Face.
Contexts are short enough for a continuous-integration run; the "bench" cases have long ones.
"""

from __future__ import annotations

from dataclasses import replace

from tkg.testing.case import PADDED, Case

_CI = frozenset({"ci", "model"})
_BENCH = frozenset({"bench", "model"})

LLAMA3_8B_RANK = Case(
    name="llama3-8b-tp8",  # meta-llama/Meta-Llama-3-8B: 32 q, 8 kv heads
    tags=_CI | {"smoke"},
    hidden=4096,
    q_heads=4,
    d_head=128,
    lengths=(200, 37, PADDED, 0),
    capacity=256,
    rope_base=500000.0,
    dtype="bfloat16",
)

LLAMA3_70B_RANK = Case(
    name="llama3-70b-tp8",  # meta-llama/Meta-Llama-3-70B: 64 q, 8 kv heads
    tags=_CI,
    hidden=8192,
    q_heads=8,
    d_head=128,
    lengths=(97,),
    capacity=128,
    cache="block",
    rope_base=500000.0,
    dtype="bfloat16",
)

LLAMA3_8B = Case(
    name="llama3-8b",
    tags=_BENCH,
    hidden=4096,
    q_heads=32,
    kv_heads=8,
    d_head=128,
    lengths=(1023,),
    capacity=1024,
    rope_base=500000.0,
    dtype="bfloat16",
)

QWEN2 = Case(
    name="qwen2-1.5b",  # Qwen/Qwen2-1.5B: bias on Q, K and V
    tags=_CI,
    hidden=1536,
    q_heads=12,
    kv_heads=2,
    d_head=128,
    lengths=(130, 61),
    capacity=192,
    eps=1e-6,
    rope_base=1000000.0,
    bias_qkv=True,
    dtype="bfloat16",
    small_dtype="bfloat16",
)

QWEN3 = Case(
    name="qwen3-0.6b",  # Qwen/Qwen3-0.6B: RMSNorm of each head before RoPE
    tags=_CI | {"smoke"},
    hidden=1024,
    q_heads=16,
    kv_heads=8,
    d_head=128,
    lengths=(75,),
    capacity=96,
    eps=1e-6,
    pre_norm=1e-6,
    rope_base=1000000.0,
    dtype="bfloat16",
    small_dtype="bfloat16",
)

GEMMA3 = Case(
    name="gemma3-1b",  # google/gemma-3-1b: d_head 256, query_pre_attn_scalar 256, window 512
    tags=_CI,
    hidden=1152,
    q_heads=4,
    kv_heads=1,
    d_head=256,
    lengths=(600, 90),
    capacity=640,
    window=512,
    eps=1e-6,
    pre_norm=1e-6,
    softmax_scale=256**-0.5,
    dtype="bfloat16",
    small_dtype="bfloat16",
)

GPT_OSS_RANK = Case(
    name="gpt-oss-20b-tp8",  # openai/gpt-oss-20b: 64 q, 8 kv heads, H = 2880 padded to 3072
    tags=_CI | {"smoke"},
    hidden=3072,
    hidden_actual=2880,
    q_heads=8,
    kv_heads=1,
    d_head=64,
    lengths=(190, 128, 3),
    capacity=256,
    window=128,
    sink=True,
    bias_qkv=True,
    bias_out=True,
    rope_base=150000.0,
    dtype="bfloat16",
    small_dtype="bfloat16",
)

SMOLLM2 = Case(
    name="smollm2-135m",  # HuggingFaceTB/SmolLM2-135M: H is no multiple of 128, odd group 3
    tags=_CI | {"smoke"},
    hidden=576,
    q_heads=9,
    kv_heads=3,
    d_head=64,
    lengths=(140,),
    capacity=160,
    rope_base=100000.0,
)

MODEL_CASES: tuple[Case, ...] = (
    LLAMA3_8B_RANK,
    replace(
        LLAMA3_8B_RANK,
        name="llama3-8b-tp8-fp8",
        tags=_CI,
        qkv="ROW",
        out="ROW",
        cache="block",
        cache_dtype="float8_e4m3",
    ),
    replace(LLAMA3_8B_RANK, name="llama3-8b-tp8-8k", tags=_BENCH, lengths=(8191,), capacity=8192),
    LLAMA3_70B_RANK,
    replace(LLAMA3_70B_RANK, name="llama3-70b-tp8-8k", tags=_BENCH, lengths=(8175,), capacity=8192),
    LLAMA3_8B,
    replace(LLAMA3_8B, name="llama3-8b-batch-8", lengths=(500, 1, 1023, 700, 64, 900, 333, 2)),
    QWEN2,
    QWEN3,
    GEMMA3,
    replace(
        GEMMA3, name="gemma3-1b-global", lengths=(70,), capacity=96, window=None, rope_base=1e6
    ),
    GPT_OSS_RANK,
    SMOLLM2,
    replace(SMOLLM2, name="smollm2-135m-bf16-block", dtype="bfloat16", cache="block"),
    replace(
        SMOLLM2, name="smollm2-135m-prompt", tags=_CI, tokens=40, lengths=(0, 50), capacity=160
    ),
    replace(SMOLLM2, name="smollm2-135m-1k", tags=_BENCH, lengths=(1000,), capacity=1024),
)
