"""Calls in the kernels' form, and running them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tkg.backends.neuron.launch import launch
from tkg.contract import dtypes
from tkg.contract.arrays import Array, index_values
from tkg.contract.block import BlockCall, Linear, QKNorm
from tkg.contract.cost import Call
from tkg.contract.errors import Unsupported
from tkg.contract.output import BlockOutput
from tkg.contract.projection import ProjectionCall


def attention_block(call: BlockCall) -> BlockOutput:
    """Run a block call; updates the caches in place if it says so."""
    padded = np.zeros(call.batch, bool) if call.positions is None else call.positions[:, 0] < 0
    arguments = block_arguments(call, padded)
    out, k_new, v_new = _launch(call, "attention_block_tkg", call.block.lnc, arguments)
    if padded.any():
        out = without_rows(out, padded, call)
    if call.slot_ids is not None:
        return BlockOutput(out)
    stored = call.cache.k.numpy().dtype
    k_new = (k_new if k_new.ndim == 4 else k_new[None]).transpose(2, 3, 0, 1).copy().view(stored)
    v_new = v_new.transpose(0, 2, 1, 3).copy().view(stored)
    k_new[padded] = 0
    v_new[padded] = 0
    return BlockOutput(out, k_new, v_new)


def block_arguments(call: BlockCall, padded: np.ndarray) -> dict[str, Any]:
    """The kernel's arguments. Padded rows become harmless ones: zeros that attend to nothing and
    write nothing; their output is cleared afterwards."""
    block, cache = call.block, call.cache
    x = call.x.numpy()
    if padded.any():
        x = np.where(padded[:, None, None], np.zeros((), x.dtype), x)
    arguments: dict[str, Any] = {
        "X": x,
        "K_cache": _codes(cache.k),
        "V_cache": _codes(cache.v),
        "X_hidden_dim_actual": block.hidden_dim_actual,
        "cos": _array(call.cos),
        "sin": _array(call.sin),
        "rope_contiguous_layout": block.rope != "interleaved",
        "K_cache_transposed": cache.transposed,
        "sink": _array(block.sink),
        "softmax_scale": block.softmax_scale,
        "attention_scale": block.attention_scale,
        "sliding_window": block.sliding_window or 0,
        "skip_attention": block.skip_attention,
        "transposed_out": block.transposed_out,
    }
    if block.input_norm is not None:
        arguments["rmsnorm_X_enabled"] = True
        arguments["rmsnorm_X_eps"] = block.input_norm.eps
        arguments["rmsnorm_X_gamma"] = _array(block.input_norm.weight)
    arguments |= _norm("pre_rope", block.pre_rope_norm) | _norm("post_rope", block.post_rope_norm)
    arguments |= _linear("qkv", block.qkv)
    if block.out is not None:
        arguments |= _linear("out", block.out)
    return arguments | _cache_arguments(call, padded)


def _cache_arguments(call: BlockCall, padded: np.ndarray) -> dict[str, Any]:
    """Which slots exist, count, and are written."""
    cache = call.cache
    arguments: dict[str, Any] = {}
    if cache.block_table is not None:
        arguments["active_blocks_table"] = cache.block_table.numpy()
    if cache.scale is not None:
        arguments["k_scale"] = np.full((1, 1), cache.scale.k, np.float32)
        arguments["v_scale"] = np.full((1, 1), cache.scale.v, np.float32)
    if call.mask is not None:
        arguments |= _mask_arguments(call, call.mask.numpy())
    else:
        assert call.positions is not None
        arguments["pos_ids"] = np.where(padded[:, None], 0, call.positions).astype(np.int32)
    if call.slot_ids is not None:
        slots = np.where(padded[:, None], -1, index_values(call.slot_ids))
        arguments |= {"update_cache": True, "kv_cache_update_idx": slots.astype(np.int32)}
    return arguments


def _mask_arguments(call: BlockCall, mask: np.ndarray) -> dict[str, Any]:
    """The mask as bytes. For a block cache: no more blocks than it speaks of, and as many positions
    as those blocks have."""
    cache = call.cache
    mask = np.ascontiguousarray(mask).view(np.uint8)
    if cache.block_table is None:
        return {"attention_mask": mask}
    block_len = cache.geometry.length
    columns = max(1, -(-call.prior // block_len))
    missing = max(0, columns * block_len - len(mask))
    parts = (mask[: call.prior], np.zeros((missing, *mask.shape[1:]), np.uint8), mask[call.prior :])
    return {
        "attention_mask": np.concatenate(parts) if missing else mask,
        "active_blocks_table": np.ascontiguousarray(cache.block_table.numpy()[:, :columns]),
    }


def _array(array: Array | None) -> np.ndarray | None:
    return None if array is None else array.numpy()


def _codes(array: Array) -> np.ndarray:
    """The array; its bytes where they are float8_e4m3fn, of which NeuronCore-v3 knows nothing."""
    values = array.numpy()
    return values.view(np.uint8) if array.dtype == dtypes.FLOAT8_E4M3FN else values


def _scale(array: Array | None) -> np.ndarray | None:
    return None if array is None else array.numpy().astype(np.float32)


def _norm(place: str, norm: QKNorm | None) -> dict[str, Any]:
    if norm is None:
        return {}
    name = f"rmsnorm_QK_{place}"
    return {
        f"{name}_enabled": True,
        f"{name}_eps": norm.eps,
        f"{name}_W_Q": _array(norm.q_weight),
        f"{name}_W_K": _array(norm.k_weight),
    }


def _linear(place: str, linear: Linear) -> dict[str, Any]:
    return {
        f"W_{place}": _codes(linear.weight),
        f"bias_{place}": _array(linear.bias),
        f"quantization_type_{place}": linear.quantization,
        f"weight_dequant_scale_{place}": _scale(linear.weight_scale),
        f"input_dequant_scale_{place}": _scale(linear.input_scale),
    }


def without_rows(out: np.ndarray, padded: np.ndarray, call: BlockCall) -> np.ndarray:
    """The output with zeros in the padded rows of the batch."""
    out = out.copy()
    rows = np.repeat(padded, call.tokens)
    if call.block.out is None:
        out[padded] = 0
    elif call.block.transposed_out:
        out[..., rows] = 0
    else:
        out[rows] = 0
    return out


def output_projection(call: ProjectionCall) -> np.ndarray:
    """Run a projection call."""
    linear = call.projection
    arguments = {
        "attention": call.attention.numpy(),
        "weight": _codes(linear.weight),
        "bias": _array(linear.bias),
        "quantization_type": linear.quantization,
        "weight_scale": _scale(linear.weight_scale),
        "input_scale": _scale(linear.input_scale),
        "TRANSPOSE_OUT": call.transposed_out,
    }
    return _launch(call, "output_projection_tkg", call.lnc, arguments)


def _launch(call: Call, kernel: str, lnc: int, arguments: dict[str, Any]) -> Any:
    """What the kernel returns.

    Raises:
        Unsupported: SBUF cannot hold its tiles, which only laying them out tells. Nothing has been
            written.
    """
    try:
        return launch(kernel, lnc, arguments)
    except AssertionError as error:
        text = str(error).partition(";")[0]
        if not text.startswith("SbufManager: "):
            raise
        reason = f"SBUF cannot hold the kernel's tiles: {text.removeprefix('SbufManager: ')}"
        raise Unsupported(call.operation, {"neuron": [reason]}) from error
