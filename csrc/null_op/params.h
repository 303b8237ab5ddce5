// SPDX-License-Identifier: Apache-2.0
// null_op: y = x. Does nothing; it is the template of an op's folder and proves every path of the build.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace fastds {

struct NullOpParams {
    DType dtype;  // of x and y
    int64_t n;    // elements; x and y are dense
};

FASTDS_PER_ISA(void null_op_cpu(const void* x, void* y, const NullOpParams& params, int threads))

void null_op_cuda(const void* x, void* y, const NullOpParams& params, int device, void* stream);

}  // namespace fastds
