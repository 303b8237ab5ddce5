// SPDX-License-Identifier: Apache-2.0
// Address, shape, strides, dtype and device of a torch.Tensor through the C exchange API of DLPack, without headers of torch.
//
// torch.Tensor.__dlpack_c_exchange_api__ (torch 2.10 or newer) is a capsule with the table DLPackExchangeAPI of DLPack 1.x. The
// structs below declare its layout: see https://dmlc.github.io/dlpack/latest/c_api.html.
#pragma once
#include <Python.h>
#include <stdint.h>

namespace fastds::dlpack {

constexpr uint32_t kMajor = 1;
constexpr int32_t kCpu = 1, kCuda = 2;

struct Device {
    int32_t type, index;
};

struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements
    uint64_t byte_offset;
};

struct Header {
    uint32_t major, minor;
    Header* older;
};

// Members of the table that are not used here are declared as plain function pointers.
struct ExchangeApi {
    Header header;
    void (*allocate)();
    void (*export_managed)();
    void (*import_managed)();
    int (*describe)(void* object, Tensor* out);  // borrows the memory of `object`; nonzero with a Python error set on failure
    int (*current_stream)(int32_t device_type, int32_t device_index, void** out);
};

// Returns the table of a tensor class, or null where the class has none or one of another major version.
inline const ExchangeApi* find_table(PyObject* tensor_class) {
    PyObject* capsule = PyObject_GetAttrString(tensor_class, "__dlpack_c_exchange_api__");
    if (capsule == nullptr) {
        PyErr_Clear();
        return nullptr;
    }
    auto* api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);  // the table is static
    if (api == nullptr) PyErr_Clear();
    return api != nullptr && api->header.major == kMajor && api->describe != nullptr ? api : nullptr;
}

}  // namespace fastds::dlpack
