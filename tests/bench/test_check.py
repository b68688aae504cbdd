"""A right answer passes, a wrong one does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tkg.bench import inputs
from tkg.bench.check import Answer, Expected
from tkg.bench.peers import Setup, find
from tkg.bench.workloads import Row
from tkg.testing.budgets import check_block
from tkg.testing.placed import own_caches
from tkg.testing.verify import block_truth, computes

ROW = Row("tiny", "bf16", batch=4, context=40, tokens=2, cache="block")


def answered(row: Row, name: str) -> tuple[Expected, Answer]:
    """What a contestant answers to a batch of twice the distinct rows."""
    peer = find(name)
    few = inputs.distinct(row)
    if not peer.ours:
        few = inputs.plain(few, peer.computes_in(row.dtype))
    many = inputs.repeated(few, 2)
    answer = peer.builder()(Setup(many, 2, 2)).answer()
    return Expected(few, computes("cpu") if peer.ours else "same dtype"), answer


def verdict(expected: Expected, answer: Answer) -> dict[str, bool]:
    return {check.what: check.ok for check in expected.judge(answer)}


@pytest.mark.parametrize("name", ["tkg", "torch"])
def test_a_right_answer_passes(name: str) -> None:
    expected, answer = answered(ROW, name)
    assert verdict(expected, answer) == {"out": True, "K": True, "V": True, "caches": True}


def spoiled(array: np.ndarray, index: tuple[int, ...], by: float) -> np.ndarray:
    wrong = array.copy()
    wrong[index] = wrong[index] + wrong.dtype.type(by)
    return wrong


SPOILERS: dict[str, Callable[[Answer], Answer]] = {
    "one number of the last row": lambda a: replace(a, out=spoiled(a.out, (-1, 3), 1.0)),
    "a NaN in the last row": lambda a: replace(a, out=spoiled(a.out, (-1, 0), np.nan)),
    "an infinity": lambda a: replace(a, out=spoiled(a.out, (2, 1), np.inf)),
    "a new K of the last row": lambda a: replace(a, k=spoiled(a.k, (-1, 0, 0, 2), 0.5)),
    "a new V": lambda a: replace(a, v=spoiled(a.v, (0, 1, 1, 0), 0.5)),
    "two tokens exchanged": lambda a: replace(a, out=a.out[[1, 0, *range(2, len(a.out))]]),
    "a stray write": lambda a: replace(a, strays=1),
}


@pytest.mark.parametrize("name", ["tkg", "torch"])
@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_wrong_answer_does_not_pass(name: str, spoil: str) -> None:
    expected, answer = answered(ROW, name)
    assert not all(verdict(expected, SPOILERS[spoil](answer)).values())


def test_a_write_to_a_wrong_slot_is_a_stray() -> None:
    from tkg.bench.peers.ours import Ours

    call = inputs.distinct(ROW)
    ours = Ours(Setup(call, 1, 1))
    ours._slots = ours._slots[::-1].copy()  # the rows' tokens go to each other's slots
    answer = ours.answer()
    assert not all(verdict(Expected(call, "float32"), answer).values())
    ours._sets[0][1].v.source[-1, -1, 0, 0] = 7.0
    assert ours.answer().strays == 1


@pytest.mark.parametrize("workload", ["tiny-norm", "tiny-sink"])
def test_the_budgets_are_those_of_the_test_suite(workload: str) -> None:
    """One KV head at a time gives the same bounds as all of them at once."""
    import tkg

    call = inputs.distinct(Row(workload, "bf16", batch=2, context=50, tokens=3))
    out, K, V = tkg.attention_block_tkg(**own_caches(call), backend="cpu")
    whole = {c.what: c for c in check_block(call, (out, K, V), block_truth(call))}
    expected = Expected(call, "float32")
    answer = Answer(out, expected.truth.k_new, expected.truth.v_new)
    ours = {c.what: c for c in expected.judge(answer)}
    assert ours["out"].budget == pytest.approx(whole["out"].budget, rel=1e-12)
    assert ours["out"].error == pytest.approx(whole["out"].error, rel=1e-12)
