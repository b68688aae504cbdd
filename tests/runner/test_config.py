"""config.json's many spellings, and RoPE's scalings against transformers'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.runner.tiny_models import LINEAR, LLAMA3, SIZES
from tkg.runner.errors import ModelError
from tkg.runner.huggingface_config import model_config
from tkg.runner.rope import inverse_frequencies

LLAMA = {**SIZES, "model_type": "llama", "tie_word_embeddings": False}
ROUNDING = 2.0**-20
"""transformers computes frequencies in float32, with at most 16 roundings of 2^-24 in a row."""


@pytest.mark.parametrize("scaling", [LLAMA3, LINEAR], ids=["llama3", "linear"])
def test_scaled_frequencies_are_those_of_transformers(scaling: dict[str, Any]) -> None:
    config = transformers.LlamaConfig(**{**SIZES, "head_dim": 64, "rope_parameters": scaling})
    want, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
    assert factor == 1.0
    got = inverse_frequencies(64, scaling["rope_theta"], scaling)
    np.testing.assert_allclose(got, want.numpy(), rtol=ROUNDING)
    assert not np.allclose(got, inverse_frequencies(64, scaling["rope_theta"]), rtol=0.5)


def test_old_and_new_spelling_of_rope_agree() -> None:
    new = model_config({**LLAMA, "rope_parameters": LLAMA3})
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    old = model_config({**LLAMA, "rope_theta": 500.0, "rope_scaling": scaling})
    older = {**scaling, "type": scaling["rope_type"]}
    del older["rope_type"]
    oldest = model_config({**LLAMA, "rope_theta": 500.0, "rope_scaling": older})
    np.testing.assert_array_equal(new.inv_freq, old.inv_freq)
    np.testing.assert_array_equal(new.inv_freq, oldest.inv_freq)
    plain = model_config({**LLAMA, "rope_theta": 500.0, "rope_scaling": None})
    np.testing.assert_allclose(plain.inv_freq, 500.0 ** (-np.arange(8) / 8), rtol=1e-15)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"model_type": "llama", "sliding_window": 9}, (None, None)),
        ({"model_type": "mistral", "sliding_window": 9}, (9, 9)),
        ({"model_type": "mistral", "sliding_window": None}, (None, None)),
        ({"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": False}, (None, None)),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 9,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            (None, 9),
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (9, None),
        ),
    ],
)
def test_windows(changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert model_config({**LLAMA, **changes}).windows == windows


def test_heads_share_the_hidden_size_unless_told() -> None:
    own = {key: value for key, value in LLAMA.items() if key != "head_dim"}
    assert model_config(own).heads.d_head == 24
    assert model_config({**own, "num_key_value_heads": None}).heads.kv == 4
    with pytest.raises(ModelError, match="head_dim is missing"):
        model_config({**own, "model_type": "qwen3"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3"}, "model_type must be llama or mistral or .*; got 'gemma3'"),
        ({"model_type": None}, "model_type must be .*; got None"),
        ({"model_type": "qwen3_moe"}, "model_type must be .*; got 'qwen3_moe'"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu; got 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config .* 'gptq'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "default, linear or llama3.*yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "default, linear or llama3.*dynam"),
        ({"rope_scaling": {"type": "linear"}}, "RoPE scaling needs 'factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1.0; got 0.5"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "96"}, "hidden_size must be a positive integer; got '96'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer; got 0"),
        ({"num_key_value_heads": 3}, "query heads must be a multiple of KV heads"),
        ({"rms_norm_eps": None}, "rms_norm_eps is missing"),
        ({"layer_types": ["full_attention"]}, "layer_types must have 2 entries; got 1"),
        ({"layer_types": ["full_attention", "linear"]}, "layer_types must be full_.* got 'linear'"),
    ],
)
def test_what_is_not_known_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model_config({**LLAMA, **changes})
