// SPDX-License-Identifier: Apache-2.0
// One thread per element of the operands; bound by memory bandwidth. Neighbouring threads read neighbouring channels.
#pragma once
#include "gates/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Element `at` of an operand as compute type A; the branch is the same for every thread.
template <class A>
__device__ __forceinline__ A read_operand(const GateOperand& operand, int64_t at) {
    if (operand.data == nullptr) return A(0);
    if constexpr (sizeof(A) == 8) {
        return static_cast<const double*>(operand.data)[at];
    } else {
        switch (operand.dtype) {
            case f16: return load(static_cast<const Half*>(operand.data)[at]);
            case bf16: return load(static_cast<const BFloat16*>(operand.data)[at]);
            default: return static_cast<const float*>(operand.data)[at];
        }
    }
}

template <class A>
__device__ __forceinline__ void write_operand(const GateOperand& operand, int64_t at, A value) {
    if (operand.data == nullptr) return;
    if constexpr (sizeof(A) == 8) {
        static_cast<double*>(operand.data)[at] = value;
    } else {
        switch (operand.dtype) {
            case f16: static_cast<Half*>(operand.data)[at] = store<Half>(value); return;
            case bf16: static_cast<BFloat16*>(operand.data)[at] = store<BFloat16>(value); return;
            default: static_cast<float*>(operand.data)[at] = value;
        }
    }
}

template <class Formula, class A>
__global__ void gates_kernel(const GatesParams p) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.rows * p.run) return;
    const int64_t row = i / p.run, column = i - row * p.run;
    const GateOptions<A> options{static_cast<A>(p.option), static_cast<A>(p.slope)};
    A in[Formula::inputs], out[Formula::outputs];
#pragma unroll
    for (int k = 0; k < Formula::inputs; k++) in[k] = read_operand<A>(p.operands[k], row * p.operands[k].row + column);
    Formula::template apply<A>(in, out, options);
#pragma unroll
    for (int k = 0; k < Formula::outputs; k++) {
        const GateOperand& operand = p.operands[Formula::inputs + k];
        write_operand<A>(operand, row * operand.row + column, out[k]);
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
