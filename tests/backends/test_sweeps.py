"""Every value of one size at a time, past the next tile, block and split of any kernel."""

from __future__ import annotations

from typing import Any

import pytest

from tests import oracle
from tests.calls import block_checks, failures, projection_check, unless_documented
from tests.short import swept
from tkg.testing.case import Case, ProjectionCase


def right(backend: str, **fields: Any) -> bool:
    sizes: dict[str, Any] = {"name": "sweep", "hidden": 8, "d_head": 8, "q_heads": 2, "kv_heads": 1}
    call = Case(**(sizes | fields)).inputs()
    return not failures(block_checks(backend, call, oracle.attention_block(call)))


def wrong_ones(values: Any, is_right: Any) -> list[int]:
    """Of some values, those that went wrong: the message of a failed sweep. A value past a
    documented limit is not wrong if it is refused."""
    wrong = []
    for value in values:
        with unless_documented():
            if not is_right(value):
                wrong.append(value)
    return wrong


@pytest.mark.parametrize("cache", ["flat", "transposed", "block"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_every_length(backend: str, cache: str, tokens: int) -> None:
    lengths = tuple(swept([*range(140), *range(250, 262), *range(508, 520)]))
    assert right(backend, lengths=lengths, capacity=528, cache=cache, tokens=tokens)


@pytest.mark.parametrize("tokens", [1, 2, 3, 6])
def test_every_window(backend: str, tokens: int) -> None:
    """Windows that begin at every place of a tile of 64, and at its ends."""

    def is_right(window: int) -> bool:
        return right(backend, lengths=(140, 64), capacity=160, tokens=tokens, window=window)

    assert not wrong_ones(swept([*range(1, 12), *range(58, 82), *range(126, 148)]), is_right)


def test_every_number_of_tokens(backend: str) -> None:
    def is_right(tokens: int) -> bool:
        return right(backend, lengths=(21, 0), tokens=tokens, capacity=160, q_heads=3)

    assert not wrong_ones(swept([*range(1, 36), 63, 64, 65, 127, 128]), is_right)


@pytest.mark.parametrize("cache", ["flat", "transposed"])
def test_every_head_size(backend: str, cache: str) -> None:
    def is_right(d_head: int) -> bool:
        style = "half" if d_head % 4 else "interleaved"
        return right(backend, d_head=d_head, lengths=(19,), cache=cache, rope=style)

    assert not wrong_ones(swept([*range(2, 150, 2), 254, 256, 258, 510, 512]), is_right)


def test_every_group(backend: str) -> None:
    def is_right(group: int) -> bool:
        return right(backend, q_heads=2 * group, kv_heads=2, lengths=(19, 70), capacity=80)

    assert not wrong_ones(swept(range(1, 40)), is_right)


def test_every_block_length(backend: str) -> None:
    def is_right(block_len: int) -> bool:
        capacity = 90 // block_len * block_len
        sizes = {"block_len": block_len, "capacity": capacity, "tokens": 2}
        return right(backend, lengths=(40, 3), cache="block", **sizes)

    assert not wrong_ones(swept(range(1, 46)), is_right)


def test_every_hidden_size(backend: str) -> None:
    def is_right(hidden: int) -> bool:
        return right(backend, hidden=hidden, lengths=(9,), hidden_actual=(hidden + 1) // 2)

    assert not wrong_ones(swept([*range(1, 140), 511, 512, 513, 1024, 1025]), is_right)


def test_every_batch(backend: str) -> None:
    def is_right(batch: int) -> bool:
        return right(backend, lengths=tuple(range(batch)), d_head=16, hidden=32)

    assert not wrong_ones(swept(range(1, 36)), is_right)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["NONE", "STATIC", "ROW"])
def test_every_projection_size(backend: str, dtype: str, quantization: Any) -> None:
    def is_right(size: int) -> bool:
        case = ProjectionCase(
            name="sweep",
            d_head=size,
            heads=1 + size % 3,
            hidden=1 + 7 * size % 131,
            batch=1 + size % 19,
            dtype=dtype,
            quantization=quantization,
        )
        call = case.inputs()
        return projection_check(backend, call, oracle.output_projection(call)).ok

    assert not wrong_ones(swept([*range(1, 132), 511, 512, 513, 600]), is_right)
