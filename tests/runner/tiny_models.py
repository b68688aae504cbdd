"""Small random models, made by transformers and saved as users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 288
CONTEXT = 256
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 0.05,
    "initializer_range": 0.2,
    "eos_token_id": 1,
    "bos_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
WINDOWED = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": LINEAR}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", WINDOWED),
    "qwen3": ("Qwen3", {}),
}
"""Name to transformers' class prefix and what differs from `SIZES`."""

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "the cat sat on the mat while other cats were walking around and nobody was speaking"
SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]


def make(family: str, seed: int = 0) -> Any:  # transformers' classes are found by name
    """A random float32 model; norms and biases are random too, so that none can be left out."""
    prefix, changes = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                value.normal_(std=0.5)
    return model


def save(model: Any, folder: Path) -> Path:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tokenizer() -> Tokenizer:
    """A byte-level BPE of `VOCABULARY` tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([WORDS] * 9, trainer)
    assert made.get_vocab_size() == VOCABULARY
    return made


def logits(model: Any, tokens: list[int], precision: torch.dtype) -> np.ndarray:
    """transformers' logits `[len(tokens), vocabulary]` of one pass without a cache."""
    with torch.no_grad():
        out = model.to(precision)(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    model.to(torch.float32)
    return out


def hidden(model: Any, tokens: list[int]) -> np.ndarray:
    """transformers' float64 states after the last norm, `[len(tokens), hidden]`."""
    with torch.no_grad():
        out = model.to(torch.float64).model(torch.tensor([tokens]), use_cache=False)
    return out.last_hidden_state[0].numpy()


def round_weights(model: Any, dtype: str) -> np.ndarray:
    """Round a model's matrices to `dtype` in place; returns the rounded output layer, float64.

    float8: each row of a projection has a scale that maps its largest value to 240. The embedding
    is bfloat16, so that a tied output layer is another matrix than the embedding.
    """
    head = model.get_output_embeddings().weight.detach().clone()
    for name, value in model.named_parameters():
        if value.ndim == 2:
            table = "embed_tokens" in name
            kept = "bfloat16" if table and dtype == "float8" else dtype
            value.data = _rounded(value.data, kept)
    return _rounded(head, dtype).double().numpy()


def _rounded(matrix: torch.Tensor, dtype: str) -> torch.Tensor:
    if dtype != "float8":
        return matrix.to(getattr(torch, dtype)).float()
    scale = matrix.abs().amax(1, keepdim=True) / 240
    # Below 240 torch's float8_e4m3fn has the same values as float8_e4m3.
    return (matrix / scale).clamp(-240, 240).to(torch.float8_e4m3fn).float() * scale


GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "norm": "output_norm",
    "lm_head": "output",
}


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection, in each head reordered as llama.cpp's converter does for llama: the
    halves (0..d/2, d/2..d) become neighbours (0, d/2, 1, d/2 + 1, ...)."""
    d_head = len(rows) // heads
    order = [half * (d_head // 2) + i for i in range(d_head // 2) for half in (0, 1)]
    index = [head * d_head + i for head in range(heads) for i in order]
    return rows[index]


def write_gguf(
    model: Any,
    path: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write a model as a GGUF file of its architecture, with matrices of type `kind`.

    `changes` overrides metadata by key; `None` leaves a key out.
    """
    config = model.config
    architecture = "llama" if config.model_type == "mistral" else config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**_metadata(config, architecture), **(changes or {})}.items():
        _add(writer, key, value)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = value.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            query = "q_proj" in name
            values = permuted(
                values, config.num_attention_heads if query else config.num_key_value_heads
            )
        matrix = values.ndim == 2
        raw = gguf.quants.quantize(values, kind) if matrix else values
        writer.add_tensor(_gguf_name(name), raw, raw_dtype=kind if matrix else None)
    divisors = _rope_divisors(model)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(config: Any, architecture: str) -> dict[str, Any]:
    sizes = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "rope.dimension_count": config.head_dim,
    }
    if config.rope_parameters["rope_type"] == "linear":
        sizes["rope.scaling.type"] = "linear"
        sizes["rope.scaling.factor"] = float(config.rope_parameters["factor"])
    if getattr(config, "sliding_window", None):
        sizes["attention.sliding_window"] = config.sliding_window
    own = json.loads(tokenizer().to_str())
    tokens = sorted(own["model"]["vocab"], key=own["model"]["vocab"].__getitem__)
    return {f"{architecture}.{key}": value for key, value in sizes.items()} | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in own["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": CHAT,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None or key == "general.architecture":
        return
    adders = {str: "add_string", bool: "add_bool", int: "add_uint32", float: "add_float32"}
    getattr(writer, adders.get(type(value), "add_array"))(key, value)


def _gguf_name(name: str) -> str:
    parts = name.removeprefix("model.").split(".")
    layer = f"blk.{parts[1]}." if parts[0] == "layers" else ""
    return f"{layer}{GGUF_NAMES[parts[-2]]}.{parts[-1]}"


def _rope_divisors(model: Any) -> np.ndarray | None:
    """What llama.cpp's converter stores for llama3 scaling: plain over scaled frequencies."""
    rope = model.config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    d_head = model.config.head_dim
    plain = rope["rope_theta"] ** (-np.arange(0, d_head, 2) / d_head)
    return (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
