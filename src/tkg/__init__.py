"""The attention block of LLM token generation, one call with one meaning on every machine."""

from tkg.api import attention_block_tkg, describe, output_projection_tkg
from tkg.backends.cpu import get_num_threads, set_num_threads
from tkg.contract.arrays import ArraySpec, Float8E4M3
from tkg.contract.block import Heads, Linear, QKNorm, RMSNorm
from tkg.contract.cache import KVCache
from tkg.contract.errors import Unsupported
from tkg.contract.quantization import KVScale, QuantizationType
from tkg.explain import Explanation, explain
from tkg.layer import AttentionBlock, Projection, rope_tables

__version__ = "0.1.0"

__all__ = [
    "ArraySpec",
    "AttentionBlock",
    "Explanation",
    "Float8E4M3",
    "Heads",
    "KVCache",
    "KVScale",
    "Linear",
    "Projection",
    "QKNorm",
    "QuantizationType",
    "RMSNorm",
    "Unsupported",
    "attention_block_tkg",
    "describe",
    "explain",
    "get_num_threads",
    "output_projection_tkg",
    "rope_tables",
    "set_num_threads",
]
