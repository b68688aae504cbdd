"""OpenVINO: MatMul and ScaledDotProductAttention nodes over a stateful cache.

The graph has all the copies of the layer, and is written so that the CPU plugin recognises its
fused attention with an own cache. That cache grows by the new tokens at each call, as in OpenVINO's
language models, and is cut back to the row's length when it has grown by `GROWTH` of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from openvino import opset15 as ops
from openvino.op.util import Variable, VariableInfo

from tkg.bench.check import Answer
from tkg.bench.inputs import Call, one_of_many
from tkg.bench.peers import CannotRun, Setup

GROWTH = 0.01
_PRECISION = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class OpenVino:
    """One compiled model; a run is one call of every copy."""

    def __init__(self, setup: Setup) -> None:
        call = self._call = setup.call
        self.calls_per_run = setup.copies
        self._first = int(call["pos_ids"][0, 0])
        precision = _PRECISION[call["X"].dtype.name]
        core = openvino.Core()
        # Told f16 where the processor has none, the plugin would take bf16.
        no_f16 = "FP16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {
            "INFERENCE_NUM_THREADS": setup.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32" if precision == "f16" and no_f16 else precision,
            "KV_CACHE_PRECISION": precision,
        }
        self._graph = Graph(call, setup.copies)
        compiled = core.compile_model(self._graph.model(), "CPU", settings)
        self._request = compiled.create_infer_request()
        x = call["X"].astype(np.float32)
        for index in range(setup.copies):
            self._request.set_tensor(f"x.{index}", openvino.Tensor(x))
        rows = np.arange(len(x), dtype=np.int32)
        self._request.set_tensor("rows", openvino.Tensor(rows))
        self._grown = 0
        self._reset()

    def _reset(self) -> None:
        """Cut the caches back to their length before the first call."""
        for state in self._request.query_state():
            cache = self._call[f"{state.name[0]}_cache"][:, :, : self._first]
            state.state = openvino.Tensor(np.ascontiguousarray(cache, np.float32))
        self._grown = 0

    def settle(self) -> None:
        if self._grown > GROWTH * self._first:
            self._reset()
            self.run()  # takes the caches over into the plugin's own layout

    def run(self) -> None:
        self._request.infer()
        self._grown += self._call["X"].shape[1]

    def answer(self) -> Answer:
        self._reset()
        self.run()
        out = self._request.get_output_tensor(0).data
        states = {state.name: state for state in self._request.query_state()}
        k, v = (
            states[f"{which}.0"].state.data[:, :, self._first :].transpose(0, 2, 1, 3)
            for which in "KV"
        )
        return Answer(out.reshape(-1, out.shape[-1]).copy(), k.copy(), v.copy())


def build(setup: Setup) -> OpenVino:
    """The contestant; see `Contestant`."""
    if "sink" in setup.call:
        raise CannotRun("ScaledDotProductAttention fused with its cache has no sink")
    return OpenVino(setup)


class Graph:
    """The graph of so many copies of a layer; float32 at its edges."""

    def __init__(self, call: Call, copies: int) -> None:
        self._call = call
        self._batch, self._tokens, self._hidden = call["X"].shape
        self._kv, _, self._d = call["V_cache"].shape[1:]
        self._q = call["W_out"].shape[0] // self._d
        self._rows = _named(ops.parameter([-1], np.int32), "rows")
        self._inputs: list[Any] = [self._rows]
        self._sinks: list[Any] = []
        self.kept: list[np.ndarray] = []  # 16-bit constants stay in the arrays' memory
        self._results = [ops.result(self._layer(index)) for index in range(copies)]

    def model(self) -> Any:
        """The whole of it."""
        make: Any = openvino.Model  # its stubs name another class of the same name
        return make(self._results, self._sinks, self._inputs, "blocks")

    def _layer(self, index: int) -> Any:
        call = self._call
        x = _named(ops.parameter(list(call["X"].shape), np.float32), f"x.{index}")
        self._inputs.append(x)
        y = self._norm(x, call["rmsnorm_X_gamma"], call["rmsnorm_X_eps"])
        y = self._linear(y, "qkv", index)
        y = ops.reshape(y, [self._batch, self._tokens, self._q + 2 * self._kv, self._d], False)
        q, k, v = ops.variadic_split(y, 2, [self._q, self._kv, self._kv]).outputs()
        name = "rmsnorm_QK_pre_rope"
        if f"{name}_eps" in call:
            q = self._norm(q, call[f"{name}_W_Q"], call[f"{name}_eps"])
            k = self._norm(k, call[f"{name}_W_K"], call[f"{name}_eps"])
        # The fused attention's scale is 1 / sqrt(d); the rest goes into q.
        q = ops.multiply(q, np.float32(call["softmax_scale"] * self._d**0.5))
        q, k, v = (ops.transpose(part, [0, 2, 1, 3]) for part in (q, k, v))
        q, k = self._rope(q), self._rope(k)
        k, v = (self._shared(self._cached(w, index, t)) for w, t in (("K", k), ("V", v)))
        y = ops.scaled_dot_product_attention(q, k, v, causal=self._tokens > 1)
        y = ops.transpose(y, [0, 2, 1, 3])
        y = ops.reshape(y, [self._batch, self._tokens, self._q * self._d], False)
        return self._linear(y, "out", index)

    def _norm(self, x: Any, weight: np.ndarray, eps: float) -> Any:
        mean = ops.reduce_mean(ops.power(x, np.float32(2)), [-1], keep_dims=True)
        root = ops.sqrt(ops.add(mean, np.float32(eps)))
        normed = ops.multiply(x, ops.divide(np.float32(1), root))
        return ops.multiply(normed, weight.astype(np.float32))

    def _linear(self, x: Any, which: str, index: int) -> Any:
        self.kept.append(one_of_many(self._call[f"W_{which}"], index))
        weight = _constant(self.kept[-1])
        y = ops.matmul(x, weight, False, False)
        bias = self._call.get(f"bias_{which}")
        return y if bias is None else ops.add(y, bias.astype(np.float32))

    def _rope(self, x: Any) -> Any:
        cos, sin = (
            np.concatenate([self._call[name]] * 2).transpose(1, 2, 0)[:, None].astype(np.float32)
            for name in ("cos", "sin")
        )
        first, second = ops.split(x, 3, 2).outputs()
        turned = ops.concat([ops.negative(second), first], 3)
        return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))

    def _cached(self, which: str, index: int, new: Any) -> Any:
        """The cache with the new tokens behind it."""
        info = VariableInfo()
        info.data_shape = openvino.PartialShape([self._batch, self._kv, -1, self._d])
        info.data_type = openvino.Type.f32
        info.variable_id = f"{which}.{index}"
        variable = Variable(info)
        nothing = ops.broadcast(np.float32(0), [self._batch, self._kv, 0, self._d])
        past = ops.gather(ops.read_value(nothing, variable), self._rows, 0)
        both = ops.concat([past, new], 2)
        self._sinks.append(ops.assign(both, variable))
        return both

    def _shared(self, cache: Any) -> Any:
        """Each KV head for all query heads of its group; the fused attention copies nothing."""
        group = self._q // self._kv
        if group == 1 or self._kv == 1:  # one KV head is broadcast as it is
            return cache
        ones = np.ones((1, 1, group, 1, 1), np.float32)
        heads = ops.multiply(ops.unsqueeze(cache, [2]), ones)
        return ops.reshape(heads, [0, self._q, -1, self._d], True)


def _named(node: Any, name: str) -> Any:
    node.output(0).set_names({name})
    return node


def _constant(weight: np.ndarray) -> Any:
    if weight.dtype.name == "float32":
        return ops.constant(weight)
    bits = weight.view(np.uint16)
    kind = openvino.Type.bf16 if weight.dtype.name == "bfloat16" else openvino.Type.f16
    return ops.convert(ops.constant(openvino.Tensor(bits, weight.shape, kind)), np.float32)
