"""Scalar registers: allocate, move, load, store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiValidationError
from nkisim.enums import PRIVATE_HBM, PSUM, SBUF
from nkisim.errors import NkiHazardError
from nkisim.registers import VirtualRegister
from tests.nkisim.harness import empty, execute, observe, records, tile, values_of

DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32")


def refused(
    body: Callable[..., Any], *words: str, error: type[Exception] = NkiValidationError
) -> None:
    with pytest.raises(error) as caught:
        execute(body)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("buffer", (SBUF, PRIVATE_HBM))
def test_load_and_store_keep_the_value(dtype: str, buffer: Any) -> None:
    limits = np.iinfo(dtype)

    def body() -> Any:
        results = []
        for number in (limits.min, 1, limits.max):
            register, out = nisa.register_alloc(), empty((1, 1), dtype, buffer)
            nisa.register_load(register, tile(np.array([[number]], dtype), buffer=buffer))
            nisa.register_store(out, register)
            results.append(int(values_of(out)[0, 0]))
        return results

    assert execute(body) == [limits.min, 1, limits.max]


def test_float32_is_kept_by_its_bits() -> None:
    def body() -> Any:
        register, out, bits = nisa.register_alloc(), empty((1, 1)), empty((1, 1), "uint32")
        nisa.register_load(register, tile(np.array([[-1.5]], np.float32)))
        nisa.register_store(out, register)
        nisa.register_store(bits, register)
        return float(values_of(out)[0, 0]), int(values_of(bits)[0, 0])

    assert execute(body) == (-1.5, 0xBFC00000)


def test_move_copies_the_present_value() -> None:
    def body() -> Any:
        first, second, out = nisa.register_alloc(3), nisa.register_alloc(), empty((1, 2), "int32")
        nisa.register_move(second, first)
        nisa.register_move(first, 10)
        nisa.register_store(out[:, 0:1], first)
        nisa.register_store(out[:, 1:2], second)
        return values_of(out)

    assert execute(body).tolist() == [[10, 3]]


def test_store_keeps_the_low_bits() -> None:
    def body() -> Any:
        out, byte = empty((1, 1), "uint32"), empty((1, 1), "int8")
        nisa.register_store(out, nisa.register_alloc(-1))
        nisa.register_store(byte, nisa.register_alloc(0x180))
        return int(values_of(out)[0, 0]), int(values_of(byte)[0, 0])

    assert execute(body) == (2**32 - 1, -128)


def test_load_at_a_run_time_index() -> None:
    def body() -> Any:
        table, out = tile(np.arange(10, dtype=np.int32), buffer=PRIVATE_HBM), empty((1, 1), "int32")
        register = nisa.register_alloc(7)
        nisa.register_load(register, table.ap([[1, 1]], scalar_offset=register))
        nisa.register_store(out, register)
        return int(values_of(out)[0, 0])

    assert execute(body) == 7


def test_f20_while_loop_counts_down() -> None:
    """The loop of the migration guide: store, subtract on an engine, load."""

    def body() -> Any:
        condition, rounds = tile(np.array([[5]], np.int32)), []
        register = nisa.register_alloc(5)

        def step(counter: VirtualRegister) -> VirtualRegister:
            rounds.append(1)
            nisa.register_store(condition, counter)
            nisa.tensor_scalar(condition, condition, nl.add, -1)
            nisa.register_load(counter, condition)
            return counter

        nl.while_loop(register, step)
        return len(rounds)

    assert execute(body) == 5


def test_f44_a_loop_counter_is_frozen() -> None:
    counter = VirtualRegister(3, frozen=True)
    for error in (AssertionError, NkiValidationError):
        refused(lambda: nisa.register_move(counter, 1), "register_move", "counter", error=error)
        load = lambda: nisa.register_load(counter, tile(np.ones((1, 1), np.int32)))  # noqa: E731
        refused(load, "register_load", "counter", error=error)
    assert counter.value == 3


def test_records() -> None:
    def body() -> None:
        register = nisa.register_alloc()
        nisa.register_load(register, tile(np.ones((1, 1), np.int32)))
        nisa.register_move(register, 4)
        nisa.register_store(empty((1, 1), "int32"), register)

    load, move, store = records(observe(body))
    assert [r.op for r in (load, move, store)] == [
        "register_load",
        "register_move",
        "register_store",
    ]
    assert {r.engine for r in (load, move, store)} == {nisa.engine.sync}
    assert [len(r.reads) for r in (load, move, store)] == [1, 0, 0]
    assert [len(r.writes) for r in (load, move, store)] == [0, 0, 1]


def load(value: Any) -> None:
    nisa.register_load(nisa.register_alloc(), value)


loose: Any = nisa  # for calls that a type checker would refuse

RULES = {
    "alloc with a tensor": (
        lambda: loose.register_alloc(tile(np.ones((1, 1), np.int32))), ("register_load",),
    ),
    "alloc with a float": (lambda: loose.register_alloc(1.5), ("register_alloc", "1.5")),
    "alloc of 33 bits": (lambda: nisa.register_alloc(2**32), ("register_alloc", "32 bits")),
    "move of a float": (lambda: loose.register_move(nisa.register_alloc(), 2.0), ("src", "2.0")),
    "move to a number": (lambda: loose.register_move(3, 2), ("dst", "3")),
    "move of nothing": (
        lambda: nisa.register_move(nisa.register_alloc(), nisa.register_alloc()),
        ("never written",),
    ),
    "load of two": (lambda: load(tile(np.ones((1, 2), np.int32))), ("src", "2 elements")),
    "load of a half": (lambda: load(tile(np.ones((1, 1), np.float16))), ("src", "float16")),
    "load from PSUM": (lambda: load(tile(np.ones((1, 1), np.int32), buffer=PSUM)), ("PSUM",)),
    "load of a number": (lambda: load(4), ("src", "4")),
    "store of a number": (lambda: loose.register_store(empty((1, 1), "int32"), 4), ("src", "4")),
    "store of nothing": (
        lambda: nisa.register_store(empty((1, 1), "int32"), nisa.register_alloc()),
        ("never written",),
    ),
    "store to a half": (
        lambda: nisa.register_store(empty((1, 1), "float16"), nisa.register_alloc(4)), ("dst",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    body, words = RULES[rule]
    refused(body, "test_sequencer.py", *words)


def test_load_of_uninitialised_memory() -> None:
    refused(lambda: load(empty((1, 1), "int32")), "register_load", error=NkiHazardError)


def test_f69_old_name_is_unknown() -> None:
    def body() -> None:
        loose.register_move(nisa.register_alloc(), imm=42)

    refused(body, "imm", error=TypeError)
