"""Every peer gives the right answer to every kind of row that it takes."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from tkg.bench import inputs
from tkg.bench.check import Expected
from tkg.bench.peers import PEERS, CannotRun, Setup, find
from tkg.bench.workloads import DTYPES, Row
from tkg.testing.verify import computes


def built(name: str, row: Row, copies: int = 3) -> tuple[Any, Expected]:
    peer = find(name)
    few = inputs.distinct(row)
    if not peer.ours:
        few = inputs.plain(few, peer.computes_in(row.dtype))
    many = inputs.repeated(few, row.batch // inputs.distinct_rows(row))
    return peer.builder()(Setup(many, copies, 2)), Expected(
        few, computes("cpu") if peer.ours else "same dtype"
    )


def worst(name: str, row: Row) -> float:
    """Share of its budget that a contestant uses, after some runs."""
    contestant, expected = built(name, row)
    for _ in range(5):
        contestant.settle()
        contestant.run()
    return max(check.used for check in expected.judge(contestant.answer()))


EAGER = ("tkg", "torch", "onnxruntime", "openvino")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EAGER)
def test_every_dtype(name: str, dtype: str) -> None:
    assert worst(name, Row("tiny", dtype, batch=2, context=70)) <= 1.0


@pytest.mark.parametrize("workload", ["tiny-norm", "tiny-one-head", "tiny-sink"])
@pytest.mark.parametrize("name", EAGER)
def test_every_kind_of_layer(name: str, workload: str) -> None:
    row = Row(workload, "bf16", batch=8, context=49, cache="block")
    if (name, workload) == ("openvino", "tiny-sink"):
        with pytest.raises(CannotRun, match="sink"):
            built(name, row)
    else:
        assert worst(name, row) <= 1.0


@pytest.mark.parametrize("workload", ["tiny", "tiny-sink"])
@pytest.mark.parametrize("name", ["tkg", "torch"])
def test_several_new_tokens(name: str, workload: str) -> None:
    assert worst(name, Row(workload, "fp32", batch=3, context=60, tokens=4)) <= 1.0


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_several_new_tokens_of_a_graph(name: str) -> None:
    assert worst(name, Row("tiny", "fp32", context=60, tokens=4)) <= 1.0


def test_onnxruntime_takes_several_tokens_of_one_row_only() -> None:
    with pytest.raises(CannotRun, match="batch of one row"):
        built("onnxruntime", Row("tiny", "fp32", batch=2, context=60, tokens=4))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # its own
def test_torch_compile() -> None:
    assert worst("torch.compile", Row("tiny", "bf16", batch=2, context=40)) <= 1.0


def test_without_a_compiler_torch_compile_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotRun, match=r"needs a C\+\+ compiler"):
        built("torch.compile", Row("tiny", "bf16", context=40))


def test_the_cache_of_openvino_stays_near_its_length() -> None:
    contestant, _ = built("openvino", Row("tiny", "fp32", context=201), copies=1)
    lengths = []
    for _ in range(12):
        contestant.settle()
        contestant.run()
        state = contestant._request.query_state()[0].state
        lengths.append(state.data.shape[2])
    assert min(lengths) >= 201
    assert max(lengths) <= 204  # 200 slots, one new token a run, 1 %


def test_a_graph_keeps_every_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """If equal copies were merged, all their outputs would be the same."""
    for name in ("onnxruntime", "openvino"):
        contestant, _ = built(name, Row("tiny", "fp32", context=40), copies=4)
        contestant.run()
        if name == "openvino":
            request = contestant._request
            outs = [request.get_output_tensor(i).data for i in range(4)]
        else:
            outs = [value.numpy() for value in contestant._binding.get_outputs()[2::3]]
        assert len({out.tobytes() for out in outs}) == 4, name
        assert all(np.isfinite(out).all() for out in outs)


def test_the_list_of_peers() -> None:
    assert [peer.name for peer in PEERS if peer.ours] == ["tkg"]
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    with pytest.raises(ValueError, match="peer must be one of.*'jax'"):
        find("jax")


def test_an_absent_peer_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnx" else real(name)
    )
    assert find("onnxruntime").absent() == "install onnx: pip install onnxruntime onnx"
    assert find("torch").absent() is None
    assert find("tkg").absent() is None
