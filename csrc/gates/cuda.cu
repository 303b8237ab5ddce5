// SPDX-License-Identifier: Apache-2.0
#include "core/launch.h"
#include "gates/cuda.cuh"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

// Returns whether all operands are aligned so that kGateRun adjacent elements can be read and written in units of 16 bytes.
bool can_use_runs(const GatesParams& params) {
    if (params.is_double || params.run % kGateRun != 0 || params.rows * params.run / kGateRun > INT32_MAX) return false;
    for (const GateOperand& operand : params.operands)
        if (reinterpret_cast<uintptr_t>(operand.data) % 16 != 0 || operand.row % kGateRun != 0) return false;
    return true;
}

// Returns whether any operand has 16-bit elements.
bool has_16_bit_operand(const GatesParams& params) {
    for (const GateOperand& operand : params.operands)
        if (operand.data != nullptr && operand.dtype != f32) return true;
    return false;
}

}  // namespace

void gates_cuda(const GatesParams& params, int device, void* stream) {
    const int64_t elements = params.rows * params.run;
    if (elements == 0) return;
    const DeviceGuard guard(device);
    constexpr int block = 256;
    const bool runs = can_use_runs(params), fast = has_16_bit_operand(params);
    const int64_t threads = runs ? elements / kGateRun : elements, grid = (threads + block - 1) / block;
    FASTDS_CHECK(grid <= INT32_MAX, "gates: more elements than fit into a CUDA grid");
    dispatch_gate_formula(params.formula, [&](auto formula) {
        using Formula = decltype(formula);
        const auto count = static_cast<uint32_t>(threads), per_row = static_cast<uint32_t>(params.run / kGateRun);
        if (runs && fast)
            FASTDS_LAUNCH((gates_run_kernel<Formula, FastFloat>), static_cast<unsigned>(grid), block, 0, stream, params,
                          count, per_row);
        else if (runs)
            FASTDS_LAUNCH((gates_run_kernel<Formula, float>), static_cast<unsigned>(grid), block, 0, stream, params, count,
                          per_row);
        else if (params.is_double)
            FASTDS_LAUNCH((gates_kernel<Formula, double>), static_cast<unsigned>(grid), block, 0, stream, params);
        else
            FASTDS_LAUNCH((gates_kernel<Formula, float>), static_cast<unsigned>(grid), block, 0, stream, params);
    });
}

}  // namespace fastds
