"""Collectives over simulated ranks, against NumPy on the list of all ranks' arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nkisim.collectives as nccl
import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiNotImplementedError, NkiValidationError
from nkisim.collectives import ReplicaGroup
from nkisim.enums import PSUM, SBUF, SHARED_HBM
from nkisim.errors import NkiHazardError
from nkisim.kernel import Run, jit, run_ranks
from tests.nkisim.harness import empty, records, tile

RNG = np.random.default_rng(8)
DATA = RNG.integers(-50, 50, (4, 8, 6)).astype(np.float32)
ALL = ReplicaGroup([[0, 1, 2, 3]])
PAIRS = ReplicaGroup([[2, 0], [1, 3]])
Body = Callable[..., Any]


def launch(body: Body, ranks: int = 4, lnc: int = 1, data: Any = DATA) -> list[Run]:
    return run_ranks(jit(body)[lnc], [((data[rank],), {}) for rank in range(ranks)])


def results(body: Body, **how: Any) -> list[Any]:
    return [run.result for run in launch(body, **how)]


def refused(
    body: Body, *words: str, error: type[Exception] = NkiValidationError, **how: Any
) -> None:
    with pytest.raises(error) as caught:
        launch(body, **how)
    for word in words:
        assert word in str(caught.value)


def output(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return empty(shape, dtype, SHARED_HBM)


def through(call: Callable[[Any, Any], Any], shape: tuple[int, ...], memory: Any) -> Body:
    """A kernel that applies `call(srcs, dsts)` to its input, in HBM or by way of SBUF."""

    def body(x: Any) -> Any:
        out = output(shape)
        if memory is SHARED_HBM:
            call([x], [out])
            return out
        src, dst = empty(x.shape), empty(shape)
        nisa.dma_copy(src, x)
        call([src], [dst])
        nisa.dma_copy(out, dst)
        return out

    return body


MEMORIES = (SHARED_HBM, SBUF)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(
    "op, expected", ((nl.add, np.sum), (nl.minimum, np.min), (nl.maximum, np.max))
)
def test_all_reduce(memory: Any, op: Any, expected: Any) -> None:
    body = through(lambda s, d: nccl.all_reduce(s, d, ALL, op), (8, 6), memory)
    for result in results(body):
        np.testing.assert_array_equal(result, expected(DATA, axis=0))


def test_all_reduce_is_made_in_float32() -> None:
    """1 + 2^-8 + 2^-8: in bfloat16 steps the small ones vanish."""
    data = np.array([1, 2.0**-8, 2.0**-8, 0], np.float32).reshape(4, 1, 1)

    def body(x: Any) -> Any:
        low, out = output((1, 1), "bfloat16"), output((1, 1), "bfloat16")
        nisa.dma_copy(low, x)
        nccl.all_reduce([low], [out], ALL, nl.add)
        return out

    assert {float(result[0, 0]) for result in results(body, data=data)} == {1 + 2.0**-7}


def test_all_reduce_of_several_tensors_f27() -> None:
    def body(x: Any) -> Any:
        outs = (output((8, 3)), output((8, 3)))
        nccl.all_reduce([x[:, :3], x[:, 3:]], list(outs), PAIRS, nl.add, name="reduce")
        return outs

    runs = launch(body)
    for rank, run in enumerate(runs):
        total = DATA[rank] + DATA[rank ^ 2]
        np.testing.assert_array_equal(run.result[0], total[:, :3])
        np.testing.assert_array_equal(run.result[1], total[:, 3:])
    assert records(runs[0])[-1].name == "reduce"


@pytest.mark.parametrize("memory", MEMORIES)
def test_all_gather_in_the_groups_order(memory: Any) -> None:
    body = through(lambda s, d: nccl.all_gather(s, d, PAIRS, 0), (16, 6), memory)
    for rank, result in enumerate(results(body)):
        order = [2, 0] if rank in (0, 2) else [1, 3]
        np.testing.assert_array_equal(result, np.concatenate(DATA[order]))


def test_all_gather_along_the_free_dimension_of_sbuf() -> None:
    body = through(lambda s, d: nccl.all_gather(s, d, ALL, 1), (8, 24), SBUF)
    for result in results(body):
        np.testing.assert_array_equal(result, np.concatenate(DATA, axis=1))


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("op, expected", ((nl.add, np.sum), (nl.maximum, np.max)))
def test_reduce_scatter(memory: Any, op: Any, expected: Any) -> None:
    body = through(lambda s, d: nccl.reduce_scatter(s, d, ALL, 0, op), (2, 6), memory)
    total = expected(DATA, axis=0)
    for rank, result in enumerate(results(body)):
        np.testing.assert_array_equal(result, total[2 * rank : 2 * rank + 2])


def test_all_to_all() -> None:
    body = through(lambda s, d: nccl.all_to_all(s, d, ALL, 0), (8, 6), SHARED_HBM)
    parts = DATA.reshape(4, 4, 2, 6)
    for rank, result in enumerate(results(body)):
        np.testing.assert_array_equal(result.reshape(4, 2, 6), parts[:, rank])


def test_collective_permute() -> None:
    def body(x: Any) -> Any:
        out = output((8, 6))
        nisa.dma_copy(out, tile(np.full((8, 6), 7.0, np.float32)))
        nccl.collective_permute([x], [out], [(0, 2), (2, 1)])
        return out

    first, second, third, fourth = results(body)
    np.testing.assert_array_equal(third, DATA[0])
    np.testing.assert_array_equal(second, DATA[2])
    assert (first == 7).all() and (fourth == 7).all()


def test_ring_passes_every_ranks_data_around() -> None:
    """Each step sends what came last; the register names the rank whose data that is."""
    ring = ReplicaGroup([[3, 1, 0, 2]])

    def body(x: Any) -> Any:
        out, names = output((4, 8, 6)), output((4, 1), "int32")
        now, name = x, empty((1, 1), "int32")
        for step in range(4):
            nisa.dma_copy(out[step], now)
            owner = nccl.collective_permute_implicit_current_processing_rank_id(step, ring)
            nisa.register_store(name, owner)
            nisa.dma_copy(names[step : step + 1], name)
            received = output((8, 6))
            nccl.collective_permute_implicit([[now]], [[received]], ring)
            now = received
        return out, names

    for rank, (held, names) in enumerate(results(body)):
        owners = names[:, 0].tolist()
        assert owners[0] == rank and sorted(owners) == [0, 1, 2, 3]
        np.testing.assert_array_equal(held, DATA[owners])


def test_ring_with_reduction_and_two_channels() -> None:
    def body(x: Any) -> Any:
        outs = (output((8, 3)), output((8, 3)))
        sources = [[x[:, :3]], [x[:, 3:]]]
        nccl.collective_permute_implicit_reduce(
            sources, sources, [[outs[0]], [outs[1]]], ALL, nl.add, channel_ids=[0, 1]
        )  # fmt: skip
        return outs

    for rank, (left, right) in enumerate(results(body)):
        np.testing.assert_array_equal(np.concatenate([left, right], 1), 2 * DATA[rank - 1])


def test_rank_id_is_a_register() -> None:
    def body(x: Any) -> Any:
        name, out = empty((1, 1), "int32"), output((1, 1), "int32")
        nisa.register_store(name, nccl.rank_id())
        nisa.dma_copy(out, name)
        return out

    assert [int(result[0, 0]) for result in results(body)] == [0, 1, 2, 3]


def test_two_cores_a_rank_see_the_result_at_once() -> None:
    """LNC=2: both programs call; the second reads what the first core of its rank has stored."""

    def body(x: Any) -> Any:
        me = nl.program_id(0)
        gathered, out = output((4, 8, 6)), output((2, 2, 8, 6))
        nccl.all_gather([x], [gathered.reshape((32, 6))], ALL, 0)
        nisa.dma_copy(out[me], gathered[2 * me : 2 * me + 2])
        return out

    runs = launch(body, lnc=2)
    for run in runs:
        np.testing.assert_array_equal(run.result.reshape(4, 8, 6), DATA)
    gathers = [next(r for r in records(runs[0], core) if r.op == "all_gather") for core in range(8)]
    assert {gather.work["meeting"] for gather in gathers} == {gathers[0].work["meeting"]}
    assert gathers[0].work["members"] == tuple(range(8))
    assert [gather.work["moves"] for gather in gathers] == [True, False] * 4


# -- rules and disagreements ----------------------------------------------------------------------


def test_ranks_must_agree() -> None:
    def different_op(x: Any) -> None:
        op = nl.add if running_rank() == 0 else nl.maximum
        nccl.all_reduce([x], [output((8, 6))], ALL, op)

    def one_is_absent(x: Any) -> None:
        if running_rank() != 2:
            nccl.all_reduce([x], [output((8, 6))], ALL, nl.add)

    refused(different_op, "all_reduce", "add", "maximum", "must agree", error=NkiHazardError)
    refused(one_is_absent, "deadlock", "all_reduce", error=NkiHazardError)


def running_rank() -> int:
    from nkisim import running

    return running.current().rank


def test_uninitialised_source() -> None:
    def body(x: Any) -> None:
        nccl.all_reduce([output((8, 6))], [output((8, 6))], ALL, nl.add)

    refused(body, "srcs[0]", "48 of 48", error=NkiHazardError)


def two(memory: Any) -> tuple[list[Any], list[Any]]:
    tiles = [tile(DATA[0], buffer=memory), tile(DATA[0], buffer=memory)]
    return tiles, [empty((8, 6), buffer=memory) for _ in tiles]


loose: Any = nccl  # for calls that a type checker would refuse

RULES: dict[str, tuple[Body, str]] = {
    "priority": (lambda x: nccl.all_reduce([x], [x], ALL, nl.add, priority=1), "priority"),
    "no list": (lambda x: nccl.all_reduce(x, [x], ALL, nl.add), "srcs"),
    "lengths": (lambda x: nccl.all_reduce([x], [x, x], ALL, nl.add), "dsts"),
    "op": (lambda x: nccl.all_reduce([x], [x], ALL, nl.multiply), "op"),
    "mixed memories": (lambda x: nccl.all_reduce([x], [empty((8, 6))], ALL, nl.add), "dsts[0]"),
    "PSUM": (lambda x: nccl.all_reduce([empty((8, 6), buffer=PSUM)], [x], ALL, nl.add), "srcs[0]"),
    "two in SBUF": (lambda x: nccl.all_reduce(*two(SBUF), ALL, nl.add), "srcs"),
    "dtype": (lambda x: nccl.all_reduce([x], [output((8, 6), "bfloat16")], ALL, nl.add), "dsts"),
    "shape": (lambda x: nccl.all_reduce([x], [output((6, 8))], ALL, nl.add), "dsts"),
    "no group": (lambda x: loose.all_reduce([x], [x], [[0, 1]], nl.add), "replica_group"),
    "not in the group": (
        lambda x: nccl.all_reduce([x], [x], ReplicaGroup([[1, 2, 3]]), nl.add), "replica_group",
    ),
    "rank that does not exist": (
        lambda x: nccl.all_reduce([x], [x], ReplicaGroup([[0, 1, 2, 3, 4]]), nl.add), "rank 4",
    ),
    "gather along 1 in HBM": (
        lambda x: nccl.all_gather([x], [output((8, 24))], ALL, 1), "collective_dim",
    ),
    "gather shape": (lambda x: nccl.all_gather([x], [output((8, 6))], ALL, 0), "dsts"),
    "gather of 3 dimensions in SBUF": (
        lambda x: nccl.all_gather([empty((2, 2, 2))], [empty((8, 2, 2))], ALL, 0), "2 dimensions",
    ),
    "scatter along 1": (
        lambda x: nccl.reduce_scatter([x], [output((8, 6))], ALL, 1, nl.add), "collective_dim",
    ),
    "scatter of 7 rows": (
        lambda x: nccl.reduce_scatter([x[:7]], [output((1, 6))], ALL, 0, nl.add), "7 rows",
    ),
    "all_to_all in SBUF": (lambda x: nccl.all_to_all(*one(SBUF), ALL, 0), "SBUF"),
    "permute in SBUF": (lambda x: nccl.collective_permute(*one(SBUF), [(0, 1)]), "SBUF"),
    "permute of two": (lambda x: nccl.collective_permute([x, x], [x, x], [(0, 1)]), "exactly one"),
    "permute twice": (lambda x: nccl.collective_permute([x], [x], [(0, 1), (2, 1)]), "pairs"),
    "channels": (
        lambda x: nccl.collective_permute_implicit([[x]], [[x]], ALL, channel_ids=[1]),
        "channel_ids",
    ),
}  # fmt: skip


def one(memory: Any) -> tuple[list[Any], list[Any]]:
    srcs, dsts = two(memory)
    return srcs[:1], dsts[:1]


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    body, word = RULES[rule]
    error = NkiNotImplementedError if rule == "priority" else NkiValidationError
    refused(body, word, "test_collectives.py", error=error)


def test_private_operands_with_two_cores() -> None:
    def body(x: Any) -> None:
        nccl.all_reduce([tile(DATA[0])], [empty((8, 6))], ALL, nl.add)

    refused(body, "srcs[0]", "nl.shared_hbm", lnc=2)


@pytest.mark.parametrize("groups", ([], [[0, 1], [1, 2]], [[]]))
def test_groups_are_disjoint_lists(groups: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="groups"):
        ReplicaGroup(groups)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nki.collectives.broadcast"):
        _ = nccl.broadcast  # pyright: ignore


@pytest.mark.parametrize("name", ("all_gather_v", "all_to_all_v"))
def test_not_simulated_fails_by_name(name: str) -> None:
    def body(x: Any) -> None:
        getattr(nccl, name)([x], [x], ALL, x)

    refused(body, f"nki.collectives.{name}", error=NkiNotImplementedError)
