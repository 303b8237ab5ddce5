// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of the pointwise formulas: one thread per element, or per eight adjacent elements if all operands are aligned
// for it. Memory bandwidth and instructions limit the speed alike. Neighbouring threads read neighbouring channels.
#pragma once
#include "core/fast_math.cuh"
#include "gates/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Reads element `at` of an operand as compute type A. All threads take the same branch.
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

FASTDS_HD float get_value(float v) { return v; }
FASTDS_HD float get_value(FastFloat v) { return v.value; }

constexpr int kGateRun = 8;  // elements of a thread: 16 bytes in a 16-bit type, 32 bytes in float32

// The memory of a run: 16 bytes in a 16-bit type, 32 bytes in float32.
struct RawRun {
    uint4 units[2];
};

// Loads a run without converting it. A conversion waits for its load, so that all operands are loaded before the first one is
// converted.
__device__ __forceinline__ RawRun load_run(const GateOperand& operand, int64_t at) {
    RawRun run{};  // zero bits are zeros in every type
    const bool single = operand.dtype == f32;
    const uint4* from = reinterpret_cast<const uint4*>(static_cast<const char*>(operand.data) + at * (single ? 4 : 2));
    if (operand.data != nullptr) run.units[0] = from[0];
    if (operand.data != nullptr && single) run.units[1] = from[1];
    return run;
}

__device__ __forceinline__ void convert_run(const RawRun& run, int dtype, float (&values)[kGateRun]) {
    const uint32_t words[kGateRun] = {run.units[0].x, run.units[0].y, run.units[0].z, run.units[0].w,
                                      run.units[1].x, run.units[1].y, run.units[1].z, run.units[1].w};
#pragma unroll
    for (int e = 0; e < kGateRun; e++) {
        const uint16_t half = static_cast<uint16_t>(words[e / 2] >> (16 * (e % 2)));
        values[e] = dtype == f32 ? bits_to_float(words[e]) : dtype == f16 ? load(Half{half}) : load(BFloat16{half});
    }
}

__device__ __forceinline__ void write_run(const GateOperand& operand, int64_t at, const float (&values)[kGateRun]) {
    if (operand.data == nullptr) return;
    if (operand.dtype == f32) {
        float4* to = reinterpret_cast<float4*>(static_cast<float*>(operand.data) + at);
#pragma unroll
        for (int k = 0; k < 2; k++)
            to[k] = make_float4(values[4 * k], values[4 * k + 1], values[4 * k + 2], values[4 * k + 3]);
        return;
    }
    uint32_t words[4] = {};
#pragma unroll
    for (int e = 0; e < kGateRun; e++) {
        const uint32_t half = operand.dtype == f16 ? store<Half>(values[e]).bits : store<BFloat16>(values[e]).bits;
        words[e / 2] |= half << (16 * (e % 2));
    }
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(operand.data) + at) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Like gates_kernel, with kGateRun adjacent elements per thread. There are `runs` such groups in total and `per_row` in each
// row. V is float or FastFloat.
template <class Formula, class V>
__global__ void gates_run_kernel(const GatesParams p, uint32_t runs, uint32_t per_row) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= runs) return;
    const uint32_t row = i / per_row, column = (i - row * per_row) * kGateRun;
    const GateOptions<float> options{static_cast<float>(p.option), static_cast<float>(p.slope)};
    RawRun raw[Formula::inputs];
    float in[Formula::inputs][kGateRun], out[Formula::outputs][kGateRun];
#pragma unroll
    for (int k = 0; k < Formula::inputs; k++) raw[k] = load_run(p.operands[k], row * p.operands[k].row + column);
#pragma unroll
    for (int k = 0; k < Formula::inputs; k++) convert_run(raw[k], p.operands[k].dtype, in[k]);
#pragma unroll
    for (int e = 0; e < kGateRun; e++) {
        V from[Formula::inputs], to[Formula::outputs];
#pragma unroll
        for (int k = 0; k < Formula::inputs; k++) from[k] = in[k][e];
        Formula::template apply<float>(from, to, options);
#pragma unroll
        for (int k = 0; k < Formula::outputs; k++) out[k][e] = get_value(to[k]);
    }
#pragma unroll
    for (int k = 0; k < Formula::outputs; k++) {
        const GateOperand& operand = p.operands[Formula::inputs + k];
        write_run(operand, row * operand.row + column, out[k]);
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
