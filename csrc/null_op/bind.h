// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/arguments.h"
#include "null_op/params.h"

namespace fastds {

inline void register_null_op(py::module_& m) {
    bind(
        m, "null_op_cpu",
        [](intptr_t x, intptr_t other, intptr_t y, int dtype, int64_t n, double scale, int threads) {
            const NullOpParams params{to_dtype(dtype), n, scale};
            py::gil_scoped_release release;
            FASTDS_DISPATCH(null_op_cpu, to_pointer(x), to_pointer(other), to_pointer(y), params, threads);
        },
        "y = scale * x + other for n contiguous elements. other: 0 for none.");
#if FASTDS_BUILD_CUDA
    bind(m, "null_op_cuda",
         [](intptr_t x, intptr_t other, intptr_t y, int dtype, int64_t n, double scale, int device, intptr_t stream) {
             const NullOpParams params{to_dtype(dtype), n, scale};
             py::gil_scoped_release release;
             null_op_cuda(to_pointer(x), to_pointer(other), to_pointer(y), params, device, to_pointer(stream));
         });
#endif
}

}  // namespace fastds
