"""ONNX Runtime: MatMul and com.microsoft.GroupQueryAttention nodes.

Like a model's, the session's graph has all the copies of the layer; they share the input, and their
caches are bound as inputs and outputs at once, so that the new tokens are written in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from tkg.bench.check import Answer
from tkg.bench.inputs import Call, one_of_many
from tkg.bench.peers import CannotRun, Setup

MICROSOFT = "com.microsoft"
_ONNX_TYPE = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}


class OnnxRuntime:
    """One session; a run is one call of every copy."""

    def __init__(self, setup: Setup) -> None:
        self._call = setup.call
        self.calls_per_run = setup.copies
        graph = Graph(setup.call, setup.copies)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setup.threads
        options.log_severity_level = 3
        options.add_external_initializers(list(graph.big), list(graph.big.values()))
        self._session = onnxruntime.InferenceSession(
            graph.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._binding, self._caches = self._bound(setup)

    def _bound(self, setup: Setup) -> tuple[Any, list[Any]]:
        call, binding, caches = setup.call, self._session.io_binding(), []
        slots = int(call["pos_ids"][0, 0]) + call["X"].shape[1]
        inputs = {
            "x": call["X"],
            "seqlens": np.full(call["X"].shape[0], slots - 1, np.int32),
            "total": np.array(slots, np.int32),
        }
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for index in range(setup.copies):
            for which in "KV":
                value = onnxruntime.OrtValue.ortvalue_from_numpy(call[f"{which}_cache"])
                caches.append(value)
                binding.bind_ortvalue_input(f"{which}.{index}", value)
                binding.bind_ortvalue_output(f"{which}_new.{index}", value)
            shape, dtype = call["X"].shape[:2] + (call["W_out"].shape[1],), call["X"].dtype
            out = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype)
            binding.bind_ortvalue_output(f"out.{index}", out)
        return binding, caches

    def settle(self) -> None:
        pass

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def answer(self) -> Answer:
        self.run()
        out = self._binding.get_outputs()
        first = int(self._call["pos_ids"][0, 0])
        tokens = self._call["X"].shape[1]
        k, v = (
            cache.numpy()[:, :, first : first + tokens].transpose(0, 2, 1, 3)
            for cache in self._caches[:2]
        )
        rows = out[2].numpy()  # K, V, out of the first copy
        return Answer(rows.reshape(-1, rows.shape[-1]), k, v)


def build(setup: Setup) -> OnnxRuntime:
    """The contestant; see `Contestant`."""
    if setup.call["X"].dtype.name not in _ONNX_TYPE:
        raise CannotRun(f"no {setup.call['X'].dtype.name} kernels on a CPU")
    batch, tokens, _ = setup.call["X"].shape
    if batch > 1 and tokens > 1:
        raise CannotRun("GroupQueryAttention: several new tokens only for a batch of one row")
    return OnnxRuntime(setup)


class Graph:
    """The ONNX graph of so many copies of a layer, and its weights."""

    def __init__(self, call: Call, copies: int) -> None:
        self._call = call
        self._copies = copies
        self._type = _ONNX_TYPE[call["X"].dtype.name]
        self._kv, _, self._d = call["V_cache"].shape[1:]
        self._q = call["W_out"].shape[0] // self._d
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []
        self.big: dict[str, Any] = {}
        self._small = self._shared()
        for index in range(copies):
            self._layer(index)

    def model(self) -> onnx.ModelProto:
        """Weights are declared in it and handed over beside it: a file holds 2 GB at most."""
        call, number = self._call, self._type
        batch, tokens, hidden = call["X"].shape
        integer = onnx.TensorProto.INT32
        inputs = [
            helper.make_tensor_value_info("x", number, [batch, tokens, hidden]),
            helper.make_tensor_value_info("seqlens", integer, [batch]),
            helper.make_tensor_value_info("total", integer, []),
        ]
        outputs = []
        cache = call["V_cache"].shape
        out = [batch, tokens, call["W_out"].shape[1]]
        for index in range(self._copies):
            for which in "KV":
                value = helper.make_tensor_value_info
                inputs.append(value(f"{which}.{index}", number, cache))
                outputs.append(value(f"{which}_new.{index}", number, cache))
            outputs.append(helper.make_tensor_value_info(f"out.{index}", number, out))
        graph = helper.make_graph(self._nodes, "block", inputs, outputs, self._tensors)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _weight(self, name: str, array: np.ndarray) -> str:
        """A constant of the graph."""
        self._tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _big_weight(self, name: str, array: np.ndarray) -> str:
        """A constant that is handed over beside the graph."""
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=self._type)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
        self._tensors.append(tensor)
        self.big[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _shared(self) -> dict[str, str]:
        """Small tensors that every copy uses."""
        call = self._call
        names = {"cos": "cos", "sin": "sin"}
        first, tokens = int(call["pos_ids"][0, 0]), call["X"].shape[1]
        for name in names:
            table = np.zeros((first + tokens, self._d // 2), call["X"].dtype)
            table[first:] = call[name][:, 0].T
            self._weight(name, table)
        for name in ("bias_qkv", "bias_out", "sink"):
            if name in call:
                names[name] = self._weight(name, call[name].reshape(-1))
        return names

    def _layer(self, index: int) -> None:
        call, small = self._call, self._small
        gamma = self._weight(f"gamma.{index}", call["rmsnorm_X_gamma"][0])
        y = self._norm("x", gamma, call["rmsnorm_X_eps"], f"normed.{index}")
        y = self._linear(y, "qkv", index)
        query, key, value = y, "", ""
        if "rmsnorm_QK_pre_rope_eps" in call:
            query, key, value = self._separate(y, index)
        past = [f"K.{index}", f"V.{index}", "seqlens", "total", "cos", "sin", "", ""]
        inputs = [query, key, value, *past, small.get("sink", "")]
        outputs = [f"attended.{index}", f"K_new.{index}", f"V_new.{index}"]
        self._nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                inputs if "sink" in small else inputs[:9],
                outputs,
                domain=MICROSOFT,
                num_heads=self._q,
                kv_num_heads=self._kv,
                do_rotary=1,
                scale=float(call["softmax_scale"]),
            )
        )
        self._linear(outputs[0], "out", index)

    def _norm(self, x: str, weight: str, eps: float, output: str) -> str:
        return self._node("SimplifiedLayerNormalization", [x, weight], output, epsilon=float(eps))

    def _linear(self, x: str, which: str, index: int) -> str:
        weight = self._big_weight(
            f"W_{which}.{index}", one_of_many(self._call[f"W_{which}"], index)
        )
        output = f"out.{index}" if which == "out" else f"{which}.{index}"
        bias = self._small.get(f"bias_{which}")
        if bias is None:
            return self._node("MatMul", [x, weight], output)
        return self._node("Add", [self._node("MatMul", [x, weight], f"{output}.0"), bias], output)

    def _separate(self, qkv: str, index: int) -> tuple[str, str, str]:
        """Q, K and V of a layer that normalises the heads of Q and K."""
        call = self._call
        sizes = np.array([self._q, self._kv, self._kv], np.int64) * self._d
        names = [f"{which}.{index}.split" for which in "qkv"]
        split = self._weight(f"sizes.{index}", sizes)
        self._nodes.append(helper.make_node("Split", [qkv, split], names, axis=-1))
        heads = self._weight(f"heads.{index}", np.array([0, 0, -1, self._d], np.int64))
        rows = self._weight(f"rows.{index}", np.array([0, 0, -1], np.int64))
        for place, which in enumerate("QK"):
            name = f"{names[place]}.heads"
            weight = call[f"rmsnorm_QK_pre_rope_W_{which}"][0]
            weight = self._weight(f"{which}_norm.{index}", weight)
            y = self._node("Reshape", [names[place], heads], name)
            y = self._norm(y, weight, call["rmsnorm_QK_pre_rope_eps"], f"{name}.normed")
            names[place] = self._node("Reshape", [y, rows], f"{name}.rows")
        return names[0], names[1], names[2]
