// The Python module `_core`: plain call structures with settable fields, and the operations on
// them. Python owns and keeps alive every array whose address it puts into a field.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

#include <array>
#include <stdexcept>
#include <string>

#include "core/calls.h"
#include "core/machine.h"
#include "core/team.h"
#include "core/variant.h"
#include "core/workspace.h"

namespace nb = nanobind;
using namespace tkg;

namespace {

Workspace& workspace() {
    thread_local Workspace mine;
    return mine;
}

void attention_block(const Layer& layer, const Step& step) {
    const nb::gil_scoped_release release;
    variant().attention_block(layer, step, team(), workspace());
}

void output_projection(const Projection& call) {
    const nb::gil_scoped_release release;
    variant().output_projection(call, team(), workspace());
}

void set_isa_or_throw(const std::string& name) {
    if (!set_isa(name.c_str()))
        throw std::invalid_argument("the instruction set must be one of: " +
                                    std::string(runnable_isas()) + "; got " + name);
}

void set_threads_or_throw(int threads) {
    if (threads < 1)
        throw std::invalid_argument("set_num_threads: n must be at least 1; got " +
                                    std::to_string(threads));
    set_num_threads(threads);
}

// NumPy's array interface, C side (numpy.org/doc/stable/reference/arrays.interface.html).
struct ArrayInterface {
    int two;
    int nd;
    char typekind;
    int itemsize;
    int flags;
    Py_intptr_t* shape;
    Py_intptr_t* strides;
    void* data;
    PyObject* descr;
};

// Where a NumPy array's first element is; `__array_interface__` would build a dict each time.
Address address(nb::handle array) {
    const nb::object capsule = nb::getattr(array, "__array_struct__");
    void* p = PyCapsule_GetPointer(capsule.ptr(), nullptr);
    if (!p) throw nb::python_error();
    return reinterpret_cast<Address>(static_cast<ArrayInterface*>(p)->data);
}

template <auto Member, class Class>
void bind_strides(nb::class_<Class>& target, const char* name) {
    target.def_prop_rw(
        name,
        [](const Class& self) {
            const auto& s = self.*Member;
            return std::array<std::int64_t, 4>{s[0], s[1], s[2], s[3]};
        },
        [](Class& self, const std::array<std::int64_t, 4>& strides) {
            for (int i = 0; i < 4; ++i) (self.*Member)[i] = strides[static_cast<std::size_t>(i)];
        });
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
        .def(nb::init<>())
        .def_rw("weight", &Linear::weight)
        .def_rw("dtype", &Linear::dtype)
        .def_rw("in_features", &Linear::in)
        .def_rw("out_features", &Linear::out)
        .def_rw("row_stride", &Linear::row_stride)
        .def_rw("bias", &Linear::bias)
        .def_rw("column_scale", &Linear::column_scale)
        .def_rw("input_scale", &Linear::input_scale);
    nb::class_<Norm>(m, "Norm")
        .def(nb::init<>())
        .def_rw("weight", &Norm::weight)
        .def_rw("eps", &Norm::eps);
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
        .def_rw("sink", &Layer::sink)
        .def_rw("window", &Layer::window)
        .def_rw("transposed_out", &Layer::transposed_out)
        .def_rw("lnc", &Layer::lnc)
        .def_rw("skip_attention", &Layer::skip_attention);
    nb::class_<CacheView>(m, "CacheView")
        .def(nb::init<>())
        .def_rw("data", &CacheView::data)
        .def_rw("outer_stride", &CacheView::outer_stride)
        .def_rw("slot_stride", &CacheView::slot_stride)
        .def_rw("head_stride", &CacheView::head_stride)
        .def_rw("d_stride", &CacheView::d_stride);
    nb::class_<Step> step(m, "Step");
    step.def(nb::init<>())
        .def_rw("batch", &Step::batch)
        .def_rw("tokens", &Step::tokens)
        .def_rw("x", &Step::x)
        .def_rw("x_dtype", &Step::x_dtype)
        .def_rw("x_stride", &Step::x_stride)
        .def_rw("cos", &Step::cos)
        .def_rw("sin", &Step::sin)
        .def_rw("k", &Step::k)
        .def_rw("v", &Step::v)
        .def_rw("cache_dtype", &Step::cache_dtype)
        .def_rw("block_len", &Step::block_len)
        .def_rw("block_table", &Step::block_table)
        .def_rw("table_columns", &Step::table_columns)
        .def_rw("k_scale", &Step::k_scale)
        .def_rw("v_scale", &Step::v_scale)
        .def_rw("prior", &Step::prior)
        .def_rw("start", &Step::start)
        .def_rw("mask", &Step::mask)
        .def_rw("slots", &Step::slots)
        .def_rw("k_new", &Step::k_new)
        .def_rw("v_new", &Step::v_new)
        .def_rw("softmax_scale", &Step::softmax_scale)
        .def_rw("attention_scale", &Step::attention_scale)
        .def_rw("out", &Step::out);
    bind_strides<&Step::mask_strides>(step, "mask_strides");
    nb::class_<Projection> projection(m, "Projection");
    projection.def(nb::init<>())
        .def_rw("linear", &Projection::linear)
        .def_rw("attention", &Projection::attention)
        .def_rw("d_head", &Projection::d_head)
        .def_rw("batch", &Projection::batch)
        .def_rw("heads", &Projection::heads)
        .def_rw("tokens", &Projection::tokens)
        .def_rw("x_dtype", &Projection::x_dtype)
        .def_rw("transposed_out", &Projection::transposed_out)
        .def_rw("lnc", &Projection::lnc)
        .def_rw("out", &Projection::out);
    bind_strides<&Projection::strides>(projection, "strides");

    m.def("address", &address, nb::arg("array"));
    m.def("attention_block", &attention_block, nb::arg("layer"), nb::arg("step"));
    m.def("output_projection", &output_projection, nb::arg("call"));
    m.def("isa", [] { return std::string(variant().isa); });
    m.def("runnable_isas", [] { return std::string(runnable_isas()); });
    m.def("set_isa", &set_isa_or_throw, nb::arg("name"));
    m.def("get_num_threads", &num_threads);
    m.def("set_num_threads", &set_threads_or_throw, nb::arg("n"));
    m.def("measure_read_bandwidth", &measure_read_bandwidth, nb::arg("bytes"), nb::arg("repeats"),
          nb::call_guard<nb::gil_scoped_release>());
    m.def("measure_fma_rate", &measure_fma_rate, nb::arg("repeats"),
          nb::call_guard<nb::gil_scoped_release>());
}
