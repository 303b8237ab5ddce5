// SPDX-License-Identifier: Apache-2.0
#include "core/launch.h"
#include "null_op/cuda.cuh"
#include "null_op/params.h"

namespace fastds {

using namespace FASTDS_ISA;

void null_op_cuda(const void* x, const void* other, void* y, const NullOpParams& params, int device, void* stream) {
    if (params.n == 0) return;
    const DeviceGuard guard(device);
    constexpr int block = 256;
    const int64_t grid = (params.n + block - 1) / block;
    FASTDS_CHECK(grid <= INT32_MAX, "null_op: more elements than fit into a CUDA grid");
    FASTDS_DTYPE_SWITCH(params.dtype,
                        FASTDS_LAUNCH((null_op_kernel<scalar>), static_cast<unsigned>(grid), block, 0, stream,
                                      static_cast<const scalar*>(x), static_cast<const scalar*>(other),
                                      static_cast<scalar*>(y), params.n, static_cast<compute_t<scalar>>(params.scale)))
}

}  // namespace fastds
