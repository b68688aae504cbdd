"""Arrays on a device: a call is described without looking at their values, unless it is told to.

torch's meta device stands for a GPU here: its tensors have shapes and no values, so that whoever
reads one fails.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tkg
from tests.calls import Call
from tkg.contract.arrays import Array
from tkg.contract.block import BlockCall
from tkg.testing.case import Case


def on_meta(call: Call) -> Call:
    return {name: meta(v) if isinstance(v, np.ndarray) else v for name, v in call.items()}


def meta(array: np.ndarray) -> Any:
    if array.dtype.name == "float8_e4m3":
        return tkg.Float8E4M3(torch.empty(array.shape, dtype=torch.uint8, device="meta"))
    return torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), device="meta")


def block_case(**fields: Any) -> Call:
    shapes = {"lengths": (20, 7), "cache": "block", "block_len": 16, "cache_dtype": "float8_e4m3"}
    return Case(name="device", **(shapes | fields)).inputs()


@pytest.mark.parametrize(
    "fields",
    [{}, {"visible": "causal"}, {"projection": "static", "dtype": "bfloat16"}, {"cache": "flat"}],
    ids=str,
)
def test_a_call_is_described_without_its_values(fields: dict[str, Any]) -> None:
    call = tkg.describe(tkg.attention_block_tkg, **on_meta(block_case(**fields)))
    assert isinstance(call, BlockCall)
    assert call.device == "meta"
    assert call.start is None and call.slots is None
    assert call.cache.scale is not None
    assert isinstance(call.cache.scale.k, Array)


def test_shapes_are_checked_all_the_same() -> None:
    call = on_meta(block_case())
    call["pos_ids"] = call["pos_ids"][:1]
    with pytest.raises(ValueError, match="pos_ids must have shape"):
        tkg.describe(tkg.attention_block_tkg, **call)


def test_validate_reads_the_values() -> None:
    call = on_meta(block_case())
    with pytest.raises(NotImplementedError, match="meta"):
        tkg.describe(tkg.attention_block_tkg, **call, validate=True)


def test_no_backend_takes_such_arrays() -> None:
    with pytest.raises(tkg.Unsupported, match="works on no arrays on meta"):
        tkg.attention_block_tkg(**on_meta(block_case()))


def test_rope_tables_stay_where_the_positions_are() -> None:
    positions = torch.zeros((2, 3), dtype=torch.int32, device="meta")
    for inverse in (None, torch.zeros(32, device="meta")):
        for table in tkg.rope_tables(positions, 64, inv_freq=inverse):
            assert table.device.type == "meta"
            assert table.shape == (32, 2, 3) and table.dtype == torch.float32
