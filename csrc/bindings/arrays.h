// NumPy arrays and torch tensors as memory.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

#include "core/calls.h"

namespace tkg {

namespace nb = nanobind;

// An attribute whose name is interned once; a C string would become a Python one each time.
#define TKG_ATTRIBUTE(object, name)                                         \
    ([](nb::handle of) {                                                    \
        static PyObject* const interned = PyUnicode_InternFromString(name); \
        return nb::getattr(of, nb::handle(interned));                       \
    }(object))

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

constexpr int kWritable = 0x400;  // of ArrayInterface::flags

// A NumPy array's memory; `__array_interface__` would build a dict each time. Valid while the array
// lives.
class View {
public:
    explicit View(nb::handle array) : capsule_(TKG_ATTRIBUTE(array, "__array_struct__")) {
        void* p = PyCapsule_GetPointer(capsule_.ptr(), nullptr);
        if (!p) throw nb::python_error();
        interface_ = static_cast<const ArrayInterface*>(p);
    }
    Address address() const { return reinterpret_cast<Address>(interface_->data); }
    int axes() const { return interface_->nd; }
    std::int64_t size(int axis) const { return interface_->shape[axis]; }
    // In elements.
    std::int64_t stride(int axis) const { return bytes(axis) / interface_->itemsize; }
    std::int64_t bytes(int axis) const { return interface_->strides[axis]; }
    bool writable() const { return interface_->flags & kWritable; }

private:
    nb::object capsule_;
    const ArrayInterface* interface_;
};

// Where an array's first element is; 0 for None.
inline Address address(nb::handle array) { return array.is_none() ? 0 : View(array).address(); }

// All about an array but its address: what was checked of it holds for every array of its form.
class Form {
public:
    // Of a NumPy array, of a torch tensor on the host, or of None.
    explicit Form(nb::handle array) : type_(nb::borrow(array.type())) {
        if (array.is_none()) return;
        dtype_ = TKG_ATTRIBUTE(array, "dtype");
        numpy_ = nb::hasattr(array, "__array_struct__");
        if (!numpy_) {
            shape_ = TKG_ATTRIBUTE(array, "shape");
            strides_ = TKG_ATTRIBUTE(array, "stride")();
            return;
        }
        const View view(array);
        for (int axis = 0; axis < view.axes(); ++axis) {
            sizes_.push_back(view.size(axis));
            sizes_.push_back(view.bytes(axis));
        }
    }

    // Where the first element of an array of this form is (0 for None). False: it has another form,
    // or is to be written and cannot be.
    bool find(nb::handle array, Address& address, bool write = false) const {
        address = 0;
        if (!array.type().is(type_)) return false;
        if (array.is_none()) return true;
        const nb::object dtype = TKG_ATTRIBUTE(array, "dtype");
        // An array that was pickled has a dtype of its own, which equals NumPy's.
        if (!dtype.is(dtype_) && !dtype.equal(dtype_)) return false;
        return numpy_ ? find_numpy(array, address, write) : find_torch(array, address);
    }

private:
    bool find_numpy(nb::handle array, Address& address, bool write) const {
        const View view(array);
        if (2 * static_cast<std::size_t>(view.axes()) != sizes_.size()) return false;
        for (int axis = 0; axis < view.axes(); ++axis)
            if (view.size(axis) != sizes_[2 * axis] || view.bytes(axis) != sizes_[2 * axis + 1])
                return false;
        address = view.address();
        return view.writable() || !write;
    }

    // Not of a tensor whose memory holds something else than its values, or that has none.
    bool find_torch(nb::handle array, Address& address) const {
        if (!TKG_ATTRIBUTE(array, "shape").equal(shape_)) return false;
        if (!TKG_ATTRIBUTE(array, "is_cpu").is(nb::bool_(true))) return false;
        if (!TKG_ATTRIBUTE(array, "stride")().equal(strides_)) return false;
        if (!TKG_ATTRIBUTE(array, "is_neg")().is(nb::bool_(false))) return false;
        address = nb::cast<Address>(TKG_ATTRIBUTE(array, "data_ptr")());
        return address != 0;
    }

    nb::object type_, dtype_;
    bool numpy_ = false;
    std::vector<std::int64_t> sizes_;  // of a NumPy array: size and stride in bytes of each axis
    nb::object shape_, strides_;       // of a tensor
};

}  // namespace tkg
