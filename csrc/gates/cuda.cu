// SPDX-License-Identifier: Apache-2.0
#include "core/launch.h"
#include "gates/cuda.cuh"

namespace fastds {

using namespace FASTDS_ISA;

void gates_cuda(const GatesParams& params, int device, void* stream) {
    const int64_t elements = params.rows * params.run;
    if (elements == 0) return;
    const DeviceGuard guard(device);
    constexpr int block = 256;
    const int64_t grid = (elements + block - 1) / block;
    FASTDS_CHECK(grid <= INT32_MAX, "gates: more elements than one CUDA grid holds");
    with_gate_formula(params.formula, [&](auto formula) {
        using Formula = decltype(formula);
        if (params.wide)
            FASTDS_LAUNCH((gates_kernel<Formula, double>), static_cast<unsigned>(grid), block, 0, stream, params);
        else
            FASTDS_LAUNCH((gates_kernel<Formula, float>), static_cast<unsigned>(grid), block, 0, stream, params);
    });
}

}  // namespace fastds
