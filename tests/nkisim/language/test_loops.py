"""Loops of the device, loops that unroll, and `no_reorder`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiValidationError
from nkisim.registers import VirtualRegister
from nkisim.tensor import NkiTensor
from tests.nkisim.harness import execute, observe, records, tile, values_of


@pytest.mark.parametrize("name", ["affine_range", "sequential_range", "static_range"])
def test_static_loops_are_pythons_range(name: str) -> None:
    function = getattr(nl, name)

    def body() -> None:
        assert list(function(4)) == [0, 1, 2, 3]
        assert list(function(1, 8, 3)) == [1, 4, 7]
        assert list(function(2, 5)) == [2, 3, 4]

    assert execute(body) is None
    with pytest.raises(NkiValidationError, match=f"{name}: start: .* run time"):
        execute(lambda: function(nisa.register_alloc(3)))


def register(value: int) -> VirtualRegister:
    return nisa.register_alloc(value)


def element(tensor: NkiTensor, at: Any) -> NkiTensor:
    """Element `at` of a (1, n) tensor, known at run time."""
    return tensor.ap([[1, 1], [1, 1]], scalar_offset=at, indirect_dim=1)


def copies(loop: Any, data: np.ndarray) -> np.ndarray:
    """Copy the elements that `loop` visits, zeros elsewhere."""

    def kernel(a: NkiTensor) -> NkiTensor:
        out = nl.zeros(a.shape, a.dtype, buffer=nl.shared_hbm)
        held = nl.ndarray((1, 1), a.dtype)

        def body(i: VirtualRegister) -> None:
            nisa.dma_copy(dst=held, src=element(a, i))
            nisa.dma_copy(dst=element(out, i), src=held)

        loop(body)
        return out

    return execute(kernel, data)


def test_fori_loop_f17() -> None:
    """F17: an upper bound in a register; three elements are copied, the fourth is not."""
    data = np.arange(1, 5, dtype=np.float32)[None]
    got = copies(lambda body: nl.fori_loop(0, register(3), body), data)
    assert got.tolist() == [[1, 2, 3, 0]]
    assert copies(lambda body: nl.fori_loop(3, 3, body), data).tolist() == [[0, 0, 0, 0]]


def test_the_counter_advances_by_step_f81() -> None:
    """F81: 0 to 7 by 2 is 0, 2, 4, 6."""
    data = np.arange(1, 8, dtype=np.float32)[None]
    got = copies(lambda body: nl.fori_loop(register(0), register(7), body, step=2), data)
    assert got.tolist() == [[1, 0, 3, 0, 5, 0, 7]]


def ranged(*bounds: Any) -> Any:
    def loop(body: Any) -> None:
        with pytest.warns(DeprecationWarning, match="nl.dynamic_range is deprecated"):
            counters = nl.dynamic_range(*bounds)
        for i in counters:
            body(i)

    return loop


def test_dynamic_range_warns_and_works() -> None:
    data = np.arange(1, 5, dtype=np.float32)[None]
    assert copies(ranged(2), data).tolist() == [[1, 2, 0, 0]]
    assert copies(lambda body: ranged(register(1), register(4), 2)(body), data).tolist() == [
        [0, 2, 0, 4]
    ]


@pytest.mark.parametrize("deprecated", [True, False])
def test_the_counter_is_read_only_f44(deprecated: bool) -> None:
    """F44: a register, which the kernel may read and not write (AWS: AssertionError)."""

    def body() -> None:
        def write(i: VirtualRegister) -> None:
            assert isinstance(i, VirtualRegister)
            nisa.register_move(i, 5)

        ranged(2)(write) if deprecated else nl.fori_loop(0, 2, write)

    with pytest.raises(AssertionError, match="register_move"):
        execute(body)


@pytest.mark.parametrize("start", [0, 1, 5])
def test_while_loop_tests_first_f17_f20(start: int) -> None:
    """F17: register 0 runs the body 0 times; F20: counter 5 runs it 5 times."""

    def kernel(count: NkiTensor, value: NkiTensor) -> np.ndarray:
        left, step, total = nl.load(count), nl.load(value), nl.zeros((1, 1), nl.float32)
        one = nl.full((1, 1), 1, nl.int32)
        condition = nisa.register_alloc()
        nisa.register_load(condition, left)

        def body(r: VirtualRegister) -> VirtualRegister:
            nisa.tensor_tensor(total, total, step, nl.add)
            nisa.tensor_tensor(left, left, one, nl.subtract)
            nisa.register_load(r, left)
            return r

        nl.while_loop(condition, body)
        assert condition.value == start, "passed by value"
        return values_of(total)

    got = execute(kernel, np.array([[start]], np.int32), np.array([[2.5]], np.float32))
    assert got[0, 0] == 2.5 * start


def test_while_register_warns_and_works_f20() -> None:
    def body() -> int:
        count, one = nl.full((1, 1), 5, nl.int32), nl.full((1, 1), 1, nl.int32)
        condition, rounds = register(5), 0
        with pytest.warns(DeprecationWarning, match="while"):
            while condition:
                nisa.tensor_tensor(count, count, one, nl.subtract)
                nisa.register_load(condition, count)
                rounds += 1
        return rounds

    run = observe(body)
    assert run.result == 5
    assert [r.op for r in records(run)].count("branch") == 6


def test_a_device_loop_leaves_a_branch_a_round() -> None:
    def body() -> None:
        held = nl.zeros((1, 1), nl.float32)

        def inner(_: VirtualRegister) -> None:
            nl.fori_loop(0, 2, lambda _: nisa.memset(held, 1.0))

        nl.fori_loop(0, 3, inner)
        nl.copy(held)

    executed = records(observe(body))
    branches = [r for r in executed if r.op == "branch"]
    assert len(branches) == 3 + 3 * 2
    assert {r.engine for r in branches} == {nisa.engine.sync}
    depth = [len(r.loop) for r in executed if r.op in ("memset", "tensor_copy")]
    assert depth == [0] + [2] * 6 + [0]


@pytest.mark.parametrize(
    ("loop", "word"),
    [
        (lambda: nl.fori_loop(0, 4, lambda i: None, step=0), "step"),
        (lambda: nl.fori_loop(0, 4, lambda i: None, step=register(1)), "step"),  # type: ignore[arg-type]
        (lambda: nl.while_loop(3, lambda r: r), "init"),  # type: ignore[arg-type]
        (lambda: nl.while_loop(register(1), lambda r: None), "result"),  # type: ignore[arg-type]
    ],
)
def test_what_device_loops_refuse(loop: Any, word: str) -> None:
    with pytest.raises(NkiValidationError, match=word):
        execute(loop)


def test_no_reorder_f87() -> None:
    """F87: `with nl.no_reorder():`, static loops inside it, and itself inside a device loop."""

    def body() -> np.ndarray:
        x = tile(np.zeros((4, 4), np.float32))
        with nl.no_reorder():
            for _ in nl.static_range(2):
                nisa.tensor_scalar(x, x, nl.add, 1.0)

        def inner(_: VirtualRegister) -> None:
            with nl.no_reorder():
                nisa.tensor_scalar(x, x, nl.add, 1.0)

        nl.fori_loop(0, 3, inner)
        return values_of(x)

    assert (execute(body) == 5).all()


@pytest.mark.parametrize("name", ["fori_loop", "while_loop", "dynamic_range"])
def test_no_device_loop_inside_no_reorder(name: str) -> None:
    loops: dict[str, Any] = {
        "fori_loop": lambda: nl.fori_loop(0, 2, lambda i: None),
        "while_loop": lambda: nl.while_loop(register(0), lambda r: r),
        "dynamic_range": lambda: ranged(2)(lambda i: None),
    }

    def body() -> None:
        with nl.no_reorder():
            loops[name]()

    with pytest.raises(NkiValidationError, match=f"{name}: no_reorder"):
        execute(body)


def test_accesses_before_and_after_a_device_loop_f43() -> None:
    """F43: a tile written before the loop, read in it, and written again after it."""

    def body() -> tuple[np.ndarray, np.ndarray]:
        x, total = nl.full((4, 4), 3.0, nl.float32), nl.zeros((4, 4), nl.float32)
        nl.fori_loop(0, 2, lambda _: nisa.tensor_tensor(total, total, x, nl.add))
        nisa.memset(x, 9.0)
        return values_of(total), values_of(x)

    run = observe(body)
    assert (run.result[0] == 6).all() and (run.result[1] == 9).all()
    assert not run.report.program.findings
