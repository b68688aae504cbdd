"""Tensors whose memory does not hold their values: a later step treats them as a first one does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import tkg
from tests.calls import BACKENDS

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cpu out")

HEADS = tkg.Heads(4, 2, 16)
POSITIONS = torch.tensor([[3], [7]], dtype=torch.int32)


def layer() -> tkg.AttentionBlock:
    torch.manual_seed(0)
    return tkg.AttentionBlock(heads=HEADS, qkv=tkg.Linear(torch.randn(24, 128) / 5), backend="cpu")


def cache() -> tkg.KVCache:
    return tkg.KVCache(torch.zeros(2, 2, 32, 16), torch.zeros(2, 2, 32, 16))


def stepped(x: torch.Tensor) -> tuple[tkg.AttentionBlock, tkg.KVCache]:
    """A layer that has taken a step over a cache."""
    made, own = layer(), cache()
    made(x, own, POSITIONS)
    return made, own


def outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except (RuntimeError, TypeError, ValueError) as error:
        return type(error)


def _zero(x: torch.Tensor) -> torch.Tensor:
    """Zeros that torch keeps no memory for."""
    return torch._efficientzerotensor(  # pyright: ignore[reportPrivateImportUsage]
        x.shape, dtype=x.dtype
    )


STRANGE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "negated when read": torch._neg_view,  # pyright: ignore[reportPrivateImportUsage]
    "negated by conjugation": lambda x: (
        torch.complex(x, -x).conj().imag.as_strided(x.shape, x.stride())
    ),
    "zero without memory": _zero,
    "on no device": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_hidden_states(name: str) -> None:
    x = torch.randn(2, 1, 24)
    used, own = stepped(x)
    strange = STRANGE[name](x)
    want = outcome(lambda: layer()(strange, cache(), POSITIONS))
    got = outcome(lambda: used(strange, own, POSITIONS))
    assert torch.equal(got, want) if isinstance(want, torch.Tensor) else got == want


@pytest.mark.parametrize("name", STRANGE)
def test_strange_operands_of_a_projection(name: str) -> None:
    x, weight = torch.randn(2, 24), torch.randn(24, 8)
    used = tkg.Projection(tkg.Linear(weight), backend="cpu")
    used(x)
    strange = STRANGE[name](x)
    want = outcome(lambda: tkg.Projection(tkg.Linear(weight), backend="cpu")(strange))
    got = outcome(lambda: used(strange))
    assert torch.equal(got, want) if isinstance(want, torch.Tensor) else got == want


def test_under_modes_that_make_other_tensors() -> None:
    x = torch.randn(2, 1, 24)
    used, own = stepped(x)
    want = layer()(x, cache(), POSITIONS)
    got = torch.func.functionalize(lambda x: used(x, own, POSITIONS))(x)
    assert got.shape == want.shape  # there, torch's own numpy() does not give a tensor's values
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = used(x, own, POSITIONS)
    assert type(fake).__name__ == "FakeTensor" and fake.shape == want.shape


@pytest.mark.parametrize("replace", ["data", "set_"])
def test_a_cache_tensor_that_gets_other_memory(replace: str) -> None:
    x = torch.randn(2, 1, 24)
    used, own = stepped(x)
    k = own.k.source
    fresh = torch.zeros_like(k)
    if replace == "data":
        k.data = fresh
    else:
        k.set_(fresh)
    used(x, own, POSITIONS)
    assert k[0, :, 3].any() and k[1, :, 7].any()


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copied_cache_is_written_itself(library: str, copied: Callable[[Any], Any]) -> None:
    x = torch.randn(2, 1, 24)
    used, own = stepped(x)
    positions = POSITIONS
    if library == "numpy":
        used = tkg.AttentionBlock(
            heads=HEADS, qkv=tkg.Linear(np.ones((24, 128), np.float32)), backend="cpu"
        )
        own, x, positions = (
            tkg.KVCache(np.zeros((2, 2, 32, 16), np.float32), np.zeros((2, 2, 32, 16), np.float32)),
            x.numpy(),
            positions.numpy(),
        )
        used(x, own, positions)
    other = copied(own)
    used(x, other, positions + 1)
    assert other.k.source[0, :, 4].any() and not own.k.source[0, :, 4].any()
