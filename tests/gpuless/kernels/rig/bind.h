// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <pybind11/pybind11.h>

#include "core/arguments.h"
#include "rig/params.h"

namespace fastds {

namespace py = pybind11;

namespace rig_bind {

template <class T>
T* at(intptr_t address) {
    return static_cast<T*>(to_pointer(address));
}

}  // namespace rig_bind

inline void register_rig(py::module_& m) {
    using namespace rig_bind;
    m.def("transpose", [](intptr_t x, intptr_t y, int dtype, int rows, int columns, bool sync) {
        transpose_cuda(to_pointer(x), to_pointer(y), dtype, rows, columns, sync);
    });
    m.def("row_sum", [](intptr_t x, intptr_t y, int dtype, int rows, int n, int threads, int shared_bytes) {
        row_sum_cuda(to_pointer(x), at<float>(y), dtype, rows, n, threads, shared_bytes);
    });
    m.def("read", [](intptr_t x, intptr_t y, int threads, int shift, bool vector) {
        read_cuda(at<float>(x), at<float>(y), threads, shift, vector);
    });
    m.def("shared_overrun", [](intptr_t y, int n) { shared_overrun_cuda(at<float>(y), n); });
    m.def("stale_shared", [](intptr_t y, int blocks) { stale_shared_cuda(at<float>(y), blocks); });
    m.def("barrier", [](intptr_t y, int threads, int kind) { barrier_cuda(at<int>(y), threads, kind); });
    m.def("collectives", [](intptr_t x, intptr_t y) { collectives_cuda(at<int>(x), at<int>(y)); });
    m.def("product", [](intptr_t a, intptr_t b, intptr_t y, bool half, bool leaves) {
        product_cuda(to_pointer(a), to_pointer(b), at<float>(y), half, leaves);
    });
    m.def("copy_ahead", [](intptr_t x, intptr_t y, int tiles, int missing, int mistake) {
        copy_ahead_cuda(to_pointer(x), to_pointer(y), tiles, missing, mistake);
    });
    m.def("specialized", [](intptr_t x, intptr_t y, int tiles, int mistake) {
        specialized_cuda(to_pointer(x), to_pointer(y), tiles, mistake);
    });
    m.def("named", [](intptr_t x, intptr_t y, int mistake) { named_cuda(at<int>(x), at<int>(y), mistake); });
    m.def("matrices", [](intptr_t a, intptr_t b, intptr_t y) { matrices_cuda(to_pointer(a), to_pointer(b), at<float>(y)); });
    m.def("banks", [](intptr_t x, intptr_t y, int stride, int bytes) {
        banks_cuda(at<float>(x), at<float>(y), stride, bytes);
    });
    m.def("atomics", [](intptr_t x, intptr_t integers, intptr_t maximum, intptr_t sum, int blocks, int threads) {
        atomics_cuda(at<float>(x), at<int>(integers), at<float>(maximum), at<double>(sum), blocks, threads);
    });
    m.def("order", [](intptr_t counter, intptr_t y, int blocks, int threads) {
        order_cuda(at<int>(counter), at<int>(y), blocks, threads);
    });
}

}  // namespace fastds
