// The Python module `_core`: a layer and a projection in the core's form, made once, and the
// operations on them. Python owns every array: it keeps those of a layer alive as long as the
// layer, and those of a step until the call returns.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "bindings/arrays.h"
#include "bindings/repeat.h"
#include "bindings/repeated_call.h"
#include "core/calls.h"
#include "core/machine.h"
#include "core/panels.h"
#include "core/team.h"
#include "core/variant.h"
#include "core/workspace.h"

using namespace tkg;

namespace {

void set_isa_or_throw(const std::string& name) {
    if (!set_isa(name.c_str()))
        throw std::invalid_argument("the instruction set must be one of: " +
                                    std::string(runnable_isas()) + "; got " + name);
}

CacheView cache_view(nb::handle array) {
    const View view(array);
    return {view.address(), view.stride(0), view.stride(1), view.stride(2), view.stride(3)};
}

void linear(Linear* self, nb::handle weight, DType dtype, std::int64_t in, nb::handle bias,
            nb::handle column_scale, float input_scale) {
    const View view(weight);
    new (self) Linear{view.address(), dtype, in, view.size(1), view.stride(0)};
    self->bias = address(bias);
    self->column_scale = address(column_scale);
    self->input_scale = input_scale;
}

// Replaces a projection's weight by panels of it, in `memory`; leaves it as it is and returns false
// where the kernels could not use them.
bool use_panels(Linear& self, nb::handle memory) {
    const Address panels = address(memory);
    const nb::gil_scoped_release release;
    if (!pack_panels(self, panels)) return false;
    self.weight = panels;
    self.panels = true;
    return true;
}

// Over an array of float32, which is overwritten.
double read_bandwidth(nb::handle memory, int repeats) {
    const View view(memory);
    float* const data = reinterpret_cast<float*>(view.address());
    const nb::gil_scoped_release release;
    return measure_read_bandwidth(data, view.size(0), repeats);
}

void norm(Norm* self, nb::handle weight, float eps) { new (self) Norm{address(weight), eps}; }

// What attends to what: `start` [batch], or a mask [S_ctx, batch, q_heads, tokens] of single bytes.
void set_visibility(Step& step, nb::handle start, nb::handle mask) {
    step.start = address(start);
    if (mask.is_none()) return;
    const View view(mask);
    step.mask = view.address();
    for (int axis = 0; axis < 4; ++axis) step.mask_strides[axis] = view.stride(axis);
}

void set_block_table(Step& step, nb::handle table, std::int64_t block_len) {
    if (table.is_none()) return;
    const View view(table);
    step.block_table = view.address();
    step.table_columns = view.size(1);
    step.block_len = block_len;
}

void step(Step* self, nb::handle x, DType x_dtype, nb::handle cos, nb::handle sin, nb::handle k,
          nb::handle v, DType cache_dtype, float k_scale, float v_scale, nb::handle block_table,
          std::int64_t block_len, std::int64_t prior, nb::handle start, nb::handle mask,
          nb::handle slots, float softmax_scale, float attention_scale, nb::handle k_new,
          nb::handle v_new, nb::handle out) {
    const View tokens(x);
    Step& step = *new (self) Step;
    step.batch = tokens.size(0);
    step.tokens = tokens.size(1);
    step.x = tokens.address();
    step.x_dtype = x_dtype;
    step.x_stride = tokens.size(2);
    step.cos = address(cos);
    step.sin = address(sin);
    step.k = cache_view(k);
    step.v = cache_view(v);
    step.cache_dtype = cache_dtype;
    step.k_scale = k_scale;
    step.v_scale = v_scale;
    set_block_table(step, block_table, block_len);
    step.prior = prior;
    set_visibility(step, start, mask);
    step.slots = address(slots);
    step.softmax_scale = softmax_scale;
    step.attention_scale = attention_scale;
    step.k_new = address(k_new);
    step.v_new = address(v_new);
    step.out = address(out);
}

void attention_block(const Layer& layer, const Step& step) {
    const nb::gil_scoped_release release;
    variant_for(step.x_dtype).attention_block(layer, step, team(), workspace());
}

void repeated_step(RepeatedStep* self, const Layer& layer, const Step& step, nb::handle x,
                   nb::handle k, nb::handle v, nb::handle block_table, nb::handle pos_ids,
                   nb::handle cos, nb::handle sin, nb::handle slots, std::int64_t blocks,
                   std::int64_t row_slots, Indices::Type positions_type, Indices::Type slots_type,
                   nb::object make, nb::object wrap) {
    new (self) RepeatedStep(layer, step, {x, k, v, block_table, pos_ids, cos, sin, slots},
                            {blocks, row_slots, positions_type, slots_type},
                            Outputs(std::move(make), std::move(wrap)));
}

nb::object run_step(const RepeatedStep& self, nb::handle x, nb::handle k, nb::handle v,
                    nb::handle block_table, nb::handle pos_ids, nb::handle cos, nb::handle sin,
                    nb::handle slots) {
    return self.run({x, k, v, block_table, pos_ids, cos, sin, slots});
}

void repeated_call(RepeatedCall* self, const Layer& layer, const Step& step,
                   const nb::dict& arguments, const nb::dict& widened, std::int64_t blocks,
                   std::int64_t row_slots, Indices::Type positions_type, Indices::Type slots_type,
                   nb::object make, nb::object wrap) {
    new (self) RepeatedCall(layer, step, arguments, widened,
                            {blocks, row_slots, positions_type, slots_type},
                            Outputs(std::move(make), std::move(wrap)));
}

// [in, rows, 1, 1] or [D, B, N, S], out 0.
Projection projection_of(const Linear& linear, const View& attention, DType x_dtype) {
    Projection call{linear,
                    attention.address(),
                    attention.size(0),
                    attention.size(1),
                    attention.size(2),
                    attention.size(3)};
    for (int axis = 0; axis < 4; ++axis) call.strides[axis] = attention.stride(axis);
    call.x_dtype = x_dtype;
    return call;
}

void output_projection(const Linear& linear, nb::handle attention, DType x_dtype,
                       bool transposed_out, std::int64_t lnc, nb::handle out) {
    const View view(attention);
    Projection call = projection_of(linear, view, x_dtype);
    call.transposed_out = transposed_out;
    call.lnc = lnc;
    call.out = address(out);
    const nb::gil_scoped_release release;
    variant_for(call.x_dtype).output_projection(call, team(), workspace());
}

void repeated_projection(RepeatedProjection* self, const Linear& linear, nb::handle attention,
                         DType x_dtype, nb::handle x, nb::object make, nb::object wrap) {
    new (self) RepeatedProjection(projection_of(linear, View(attention), x_dtype), x,
                                  Outputs(std::move(make), std::move(wrap)));
}

}  // namespace

NB_MODULE(_core, m) {
    nb::enum_<DType>(m, "DType")
        .value("float32", DType::float32)
        .value("float16", DType::float16)
        .value("bfloat16", DType::bfloat16)
        .value("float8_e4m3", DType::float8_e4m3)
        .value("float8_e4m3fn", DType::float8_e4m3fn);
    nb::enum_<Rope>(m, "Rope")
        .value("none", Rope::none)
        .value("half", Rope::half)
        .value("interleaved", Rope::interleaved);

    nb::class_<Linear>(m, "Linear")
        .def("__init__", &linear, nb::arg("weight"), nb::arg("dtype"), nb::arg("in_features"),
             nb::arg("bias").none(), nb::arg("column_scale").none(), nb::arg("input_scale"))
        .def("panel_bytes",
             [](const Linear& self) { return panel_bytes(self.in, self.out, self.dtype); })
        .def("use_panels", &use_panels, nb::arg("memory"));
    nb::class_<Norm>(m, "Norm").def("__init__", &norm, nb::arg("weight").none(), nb::arg("eps"));
    nb::class_<Layer>(m, "Layer")
        .def(nb::init<>())
        .def_rw("qkv", &Layer::qkv)
        .def_rw("out", &Layer::out)
        .def_rw("input_norm", &Layer::input_norm)
        .def_rw("pre_q", &Layer::pre_q)
        .def_rw("pre_k", &Layer::pre_k)
        .def_rw("post_q", &Layer::post_q)
        .def_rw("post_k", &Layer::post_k)
        .def_rw("q_heads", &Layer::q_heads)
        .def_rw("kv_heads", &Layer::kv_heads)
        .def_rw("d_head", &Layer::d_head)
        .def_rw("rope", &Layer::rope)
        .def(
            "set_sink", [](Layer& layer, nb::handle sink) { layer.sink = address(sink); },
            nb::arg("sink"))
        .def_rw("window", &Layer::window)
        .def_rw("transposed_out", &Layer::transposed_out)
        .def_rw("lnc", &Layer::lnc)
        .def_rw("skip_attention", &Layer::skip_attention);

    nb::class_<Step>(m, "Step").def(
        "__init__", &step, nb::arg("x"), nb::arg("x_dtype"), nb::arg("cos").none(),
        nb::arg("sin").none(), nb::arg("k"), nb::arg("v"), nb::arg("cache_dtype"),
        nb::arg("k_scale"), nb::arg("v_scale"), nb::arg("block_table").none(), nb::arg("block_len"),
        nb::arg("prior"), nb::arg("start").none(), nb::arg("mask").none(), nb::arg("slots").none(),
        nb::arg("softmax_scale"), nb::arg("attention_scale"), nb::arg("k_new").none(),
        nb::arg("v_new").none(), nb::arg("out").none());
    nb::enum_<Indices::Type>(m, "Indices")
        .value("int32", Indices::Type::int32)
        .value("uint32", Indices::Type::uint32)
        .value("int64", Indices::Type::int64);
    nb::class_<RepeatedStep>(m, "RepeatedStep")
        .def("__init__", &repeated_step, nb::arg("layer"), nb::arg("step"), nb::arg("x"),
             nb::arg("k"), nb::arg("v"), nb::arg("block_table").none(), nb::arg("pos_ids"),
             nb::arg("cos").none(), nb::arg("sin").none(), nb::arg("slots").none(),
             nb::arg("blocks"), nb::arg("row_slots"), nb::arg("positions_type"),
             nb::arg("slots_type"), nb::arg("make"), nb::arg("wrap").none())
        .def("__call__", &run_step, nb::arg("x").none(), nb::arg("k"), nb::arg("v"),
             nb::arg("block_table").none(), nb::arg("pos_ids").none(), nb::arg("cos").none(),
             nb::arg("sin").none(), nb::arg("slots").none());
    nb::class_<RepeatedCall>(m, "RepeatedCall")
        .def("__init__", &repeated_call, nb::arg("layer"), nb::arg("step"), nb::arg("arguments"),
             nb::arg("widened"), nb::arg("blocks"), nb::arg("row_slots"), nb::arg("positions_type"),
             nb::arg("slots_type"), nb::arg("make"), nb::arg("wrap").none())
        .def("__call__", &RepeatedCall::run, nb::arg("arguments"));
    nb::list names;
    for (const ArrayArgument& known : kArrayArguments) names.append(known.name);
    m.attr("ARRAY_ARGUMENTS") = nb::tuple(names);

    nb::class_<RepeatedProjection>(m, "RepeatedProjection")
        .def("__init__", &repeated_projection, nb::arg("linear"), nb::arg("attention"),
             nb::arg("x_dtype"), nb::arg("x"), nb::arg("make"), nb::arg("wrap").none())
        .def("__call__", &RepeatedProjection::run, nb::arg("x").none());

    m.def("attention_block", &attention_block, nb::arg("layer"), nb::arg("step"));
    m.def("output_projection", &output_projection, nb::arg("linear"), nb::arg("attention"),
          nb::arg("x_dtype"), nb::arg("transposed_out"), nb::arg("lnc"), nb::arg("out"));
    m.def("isa", [] { return std::string(variant().isa); });
    m.def("rounds_operands", [] { return variant().exact != nullptr; });
    m.def("runnable_isas", [] { return std::string(runnable_isas()); });
    m.def("set_isa", &set_isa_or_throw, nb::arg("name"));
    m.def("get_num_threads", &num_threads);
    m.def("set_num_threads", &set_num_threads, nb::arg("n"));
    m.def("measure_read_bandwidth", &read_bandwidth, nb::arg("memory"), nb::arg("repeats"));
    m.def("measure_fma_rate", &measure_fma_rate, nb::arg("repeats"),
          nb::call_guard<nb::gil_scoped_release>());
}
