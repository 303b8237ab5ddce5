// SPDX-License-Identifier: Apache-2.0
// null_op: y = scale * x + other. It is the template for a new op and exercises every part of the build.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace fastds {

struct NullOpParams {
    DType dtype;   // of x, other and y
    int64_t n;     // number of elements; x, other and y are contiguous
    double scale;  // factor of x
};

// other: nullptr if nothing is added.
FASTDS_PER_ISA(void null_op_cpu(const void* x, const void* other, void* y, const NullOpParams& params, int threads))

void null_op_cuda(const void* x, const void* other, void* y, const NullOpParams& params, int device, void* stream);

}  // namespace fastds
