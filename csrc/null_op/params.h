// SPDX-License-Identifier: Apache-2.0
// null_op: y = x. It does nothing; it is the template for a new op and exercises every part of the build.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace fastds {

struct NullOpParams {
    DType dtype;  // of x and y
    int64_t n;    // number of elements; x and y are contiguous
};

FASTDS_PER_ISA(void null_op_cpu(const void* x, void* y, const NullOpParams& params, int threads))

void null_op_cuda(const void* x, void* y, const NullOpParams& params, int device, void* stream);

}  // namespace fastds
