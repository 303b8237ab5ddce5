// SPDX-License-Identifier: Apache-2.0
// Keys of calls: everything that the Python code of an op may depend on. A key contains the op, the device of the tensors, the shape,
// strides, dtype and alignment of each tensor, the value or identity of each other argument, the number of threads and the
// instruction set, under autocast its dtype and whether it caches casts, and if a tensor requires a gradient, which of them do and
// whether gradients are recorded. On CUDA devices the key contains in any case whether gradients are recorded, and whether cuBLAS may
// compute in TF32. No call has a key under dispatch and function modes, tracers, functorch, forward-mode AD, the profiler and
// deterministic algorithms, nor while oneDNN is switched off, nor with tensors on several devices or on other devices than CPU and
// CUDA, or with subclasses of Tensor other than Parameter.
#pragma once
#include <Python.h>
#include <pybind11/pybind11.h>

#include <cstring>

#include "core/dlpack_table.h"
#include "core/team.h"
#include "core/isa.h"

namespace fastds::plans {

namespace py = pybind11;

constexpr int kMaxTensors = 32;
constexpr int kMaxKey = 384;  // words
constexpr int64_t kAlignment = 64;

// Classes and functions of torch, set once by initialize().
struct Torch {
    const dlpack::ExchangeApi* api = nullptr;
    PyTypeObject *tensor = nullptr, *parameter = nullptr;
    // functions without arguments
    PyObject *grad_enabled, *num_threads, *dispatch_modes, *function_modes, *functorch, *tracing, *deterministic;
    PyObject* onednn_enabled;
    PyObject *any_autocast_enabled, *autocast_cache_enabled;
    PyObject *autocast_enabled, *autocast_dtype, *cpu, *cuda;  // functions of the device's name, and these names
    PyObject* cublas_tf32;
    PyObject *profiler_module, *profiler_name, *forward_ad_module, *forward_ad_name;  // attributes of modules
    PyObject *empty_strided, *empty_names, *is_neg, *requires_grad, *is_leaf, *is_view, *view_as, *table_key;
    PyTypeObject *dtype = nullptr;
    int suspended = 0;  // number of open blocks that change how ops decide
};

inline Torch& torch() {
    static Torch instance;
    return instance;
}

inline uint64_t mix(uint64_t h, uint64_t v) {
    h ^= v + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
    return h * 0xff51afd7ed558ccdull;
}

// The key of a call and the tensors among its arguments.
struct Key {
    int64_t words[kMaxKey];
    int length = 0;
    dlpack::Tensor tensors[kMaxTensors];
    PyObject* objects[kMaxTensors];
    int count = 0;
    PyObject* held[64];
    int held_count = 0;
    dlpack::Device device{0, 0};  // of the tensors, of type 0 before there are any
    bool tracked = false;  // gradients are recorded, and a tensor requires one

    bool add(int64_t word) {
        if (length == kMaxKey) return false;
        words[length++] = word;
        return true;
    }
    bool hold(PyObject* object) {
        if (held_count == 64) return false;
        held[held_count++] = object;
        return add(reinterpret_cast<int64_t>(object));
    }
    uint64_t hash() const {
        uint64_t h = length;
        for (int i = 0; i < length; ++i) h = mix(h, words[i]);
        return h;
    }
};

enum Tag : int64_t { kNone = 1, kBool, kInt, kFloat, kObject, kTuple, kList, kTensor, kGradients, kRequired, kAutocast, kDevice };

// Returns 1 if the values of a tensor are stored negated (torch.Tensor.is_neg), 0 if they are not, or -1 with a Python error
// set. In torch only views of complex memory are stored negated, and their strides are even. Other tensors need no call of torch.
inline int is_negated(PyObject* object, const dlpack::Tensor& t) {
    for (int k = 0; k < t.ndim; ++k)
        if (t.shape[k] > 1 && t.strides[k] % 2 != 0) return 0;
    py::object result = py::reinterpret_steal<py::object>(PyObject_CallOneArg(torch().is_neg, object));
    return result ? PyObject_IsTrue(result.ptr()) : -1;
}

inline bool add_tensor(Key& key, PyObject* object) {
    if (key.count == kMaxTensors) return false;
    dlpack::Tensor& t = key.tensors[key.count];
    if (torch().api->describe(object, &t) != 0) {
        PyErr_Clear();
        return false;
    }
    if (key.count == 0) {
        if (t.device.type != dlpack::kCpu && t.device.type != dlpack::kCuda) return false;
        key.device = t.device;
    } else if (t.device.type != key.device.type || t.device.index != key.device.index) {
        return false;
    }
    // A tensor without memory is a zero tensor of torch, or its storage was freed.
    if (t.byte_offset != 0 || t.ndim > 8 || t.data == nullptr) return false;
    const int negated = is_negated(object, t);
    if (negated != 0) {
        PyErr_Clear();
        return false;
    }
    key.objects[key.count++] = object;
    if (key.length + 5 + 2 * t.ndim > kMaxKey) return false;
    key.add(kTensor);
    key.add((int64_t(t.dtype.code) << 32) | (int64_t(t.dtype.bits) << 16) | t.ndim);
    for (int k = 0; k < t.ndim; ++k) {
        key.add(t.shape[k]);
        key.add(t.strides[k]);
    }
    return key.add(reinterpret_cast<intptr_t>(t.data) % kAlignment);
}

// Appends an argument to the key. Returns false if calls with such an argument have no plan.
inline bool add_argument(Key& key, PyObject* object) {
    if (object == Py_None) return key.add(kNone);
    PyTypeObject* type = Py_TYPE(object);
    if (type == torch().tensor || type == torch().parameter) return add_tensor(key, object);
    if (type == &PyBool_Type) return key.add(kBool) && key.add(object == Py_True);
    if (type == &PyLong_Type) {
        int overflow = 0;
        const int64_t value = PyLong_AsLongLongAndOverflow(object, &overflow);
        return overflow == 0 && key.add(kInt) && key.add(value);
    }
    if (type == &PyFloat_Type) {
        const double value = PyFloat_AS_DOUBLE(object);
        int64_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return key.add(kFloat) && key.add(bits);
    }
    if (type == &PyUnicode_Type || type == torch().dtype) return key.add(kObject) && key.hold(object);
    if (type == &PyTuple_Type || type == &PyList_Type) {
        const Py_ssize_t size = PySequence_Fast_GET_SIZE(object);
        if (!key.add(type == &PyList_Type ? kList : kTuple) || !key.add(size)) return false;
        for (Py_ssize_t k = 0; k < size; ++k)
            if (!add_argument(key, PySequence_Fast_GET_ITEM(object, k))) return false;
        return true;
    }
    return false;
}

// Returns the truth of function() or function(argument).
inline bool is_true(PyObject* function, PyObject* argument = nullptr) {
    PyObject* result = argument == nullptr ? PyObject_CallNoArgs(function) : PyObject_CallOneArg(function, argument);
    const bool truth = result == nullptr || PyObject_IsTrue(result) != 0;
    if (result == nullptr) PyErr_Clear();
    Py_XDECREF(result);
    return truth;
}

inline int64_t call_for_int(PyObject* function) {
    PyObject* result = PyObject_CallNoArgs(function);
    const int64_t value = result == nullptr ? -1 : PyLong_AsLongLong(result);
    if (PyErr_Occurred()) PyErr_Clear();
    Py_XDECREF(result);
    return value;
}

// Returns whether an attribute is true (a flag) or not negative (a level).
inline bool attribute_is_set(PyObject* object, PyObject* name, bool level) {
    PyObject* value = PyObject_GetAttr(object, name);
    if (value == nullptr) {
        PyErr_Clear();
        return true;
    }
    const bool set = level ? PyLong_AsLong(value) >= 0 : PyObject_IsTrue(value) != 0;
    Py_DECREF(value);
    return set;
}

// Returns whether a mode, transform, tracer or setting may observe the operations of an op or change how it computes.
inline bool is_observed() {
    Torch& t = torch();
    return is_true(t.dispatch_modes) || is_true(t.function_modes) || is_true(t.functorch) || is_true(t.tracing) ||
           is_true(t.deterministic) || !is_true(t.onednn_enabled) ||
           attribute_is_set(t.profiler_module, t.profiler_name, false) ||
           attribute_is_set(t.forward_ad_module, t.forward_ad_name, true);
}

// Appends the device of the tensors to the key if it is a CUDA device, and the settings that matter there: ops may choose a kernel
// by whether gradients are recorded, even if no tensor requires one.
inline bool add_device(Key& key) {
    if (key.device.type == dlpack::kCpu) return true;
    return key.add(kDevice) && key.add(key.device.type) && key.add(key.device.index) && key.add(is_true(torch().cublas_tf32)) &&
           key.add(is_true(torch().grad_enabled));
}

// Appends the state of autocast to the key if autocast is on for the device of the tensors. Autocast of other devices does not
// change the call.
inline bool add_autocast(Key& key) {
    Torch& t = torch();
    PyObject* name = key.device.type == dlpack::kCuda ? t.cuda : t.cpu;
    if (!is_true(t.any_autocast_enabled) || !is_true(t.autocast_enabled, name)) return true;
    PyObject* dtype = PyObject_CallOneArg(t.autocast_dtype, name);
    if (dtype == nullptr) {
        PyErr_Clear();
        return false;
    }
    const bool added = key.add(kAutocast) && key.add(is_true(t.autocast_cache_enabled)) && key.hold(dtype);
    Py_DECREF(dtype);  // torch holds all dtypes
    return added;
}

// Appends to the key which tensors require a gradient, and, if gradients are recorded, which of these are leaves and no views. Inside
// an autograd function no gradients are recorded, but ops may choose another kernel for tensors that require one. The attribute
// is_leaf of a view is not read: torch locks a mutex for it, and another thread may hold this mutex while it waits for the GIL, in
// the first operation of torch that records the leaf.
inline bool add_gradients(Key& key) {
    const bool recorded = is_true(torch().grad_enabled);
    int64_t required = 0, leaves = 0;
    for (int k = 0; k < key.count; ++k) {
        if (!attribute_is_set(key.objects[k], torch().requires_grad, false)) continue;
        required |= int64_t{1} << k;
        if (!recorded || is_true(torch().is_view, key.objects[k])) continue;
        if (attribute_is_set(key.objects[k], torch().is_leaf, false)) leaves |= int64_t{1} << k;
    }
    key.tracked = recorded && required != 0;
    return required == 0 || (key.add(recorded ? kGradients : kRequired) && key.add(required) && key.add(leaves));
}

// Builds the key of a call. args[0] is the owner of the plan (an Op, a backend or a function), and the other elements of args are
// the arguments of the call.
inline bool make_key(Key& key, PyObject* const* args, Py_ssize_t n) {
    key.add(scope_threads() > 0 ? scope_threads() : call_for_int(torch().num_threads));
    key.add(static_cast<int64_t>(isa()));
    if (!key.hold(args[0])) return false;
    for (Py_ssize_t k = 1; k < n; ++k)
        if (!add_argument(key, args[k])) return false;
    return key.count > 0 && add_device(key) && add_autocast(key) && add_gradients(key);
}

}  // namespace fastds::plans
