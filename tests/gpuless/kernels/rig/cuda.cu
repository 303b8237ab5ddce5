// SPDX-License-Identifier: Apache-2.0
#include "rig/cuda.cuh"
#include "rig/params.h"
#include "rig/pipeline.cuh"

namespace fastds {

using namespace FASTDS_ISA;

void transpose_cuda(const void* x, void* y, int dtype, int rows, int columns, bool sync) {
    constexpr int tile = 8;
    const dim3 grid((columns + tile - 1) / tile, (rows + tile - 1) / tile), block(tile, tile);
    FASTDS_DTYPE_SWITCH(static_cast<DType>(dtype), {
        const scalar* from = static_cast<const scalar*>(x);
        scalar* to = static_cast<scalar*>(y);
        if (sync) {
            FASTDS_LAUNCH((transpose_kernel<scalar, tile, true>), grid, block, 0, nullptr, from, to, rows, columns);
        } else {
            FASTDS_LAUNCH((transpose_kernel<scalar, tile, false>), grid, block, 0, nullptr, from, to, rows, columns);
        }
    })
}

void row_sum_cuda(const void* x, float* y, int dtype, int rows, int n, int threads, int shared_bytes) {
    FASTDS_DTYPE_SWITCH(static_cast<DType>(dtype), FASTDS_LAUNCH((row_sum_kernel<scalar>), rows, threads, shared_bytes, nullptr,
                                                                 static_cast<const scalar*>(x), y, n))
}

void read_cuda(const float* x, float* y, int threads, int shift, bool vector) {
    FASTDS_LAUNCH(read_kernel, 1, threads, 0, nullptr, x, y, shift, vector);
}

void shared_overrun_cuda(float* y, int n) { FASTDS_LAUNCH(shared_overrun_kernel, 1, 32, 0, nullptr, y, n); }

void stale_shared_cuda(float* y, int blocks) { FASTDS_LAUNCH(stale_shared_kernel, blocks, 32, 0, nullptr, y); }

void barrier_cuda(int* y, int threads, int kind) { FASTDS_LAUNCH(barrier_kernel, 1, threads, 0, nullptr, y, kind); }

void collectives_cuda(const int* x, int* y) { FASTDS_LAUNCH(collectives_kernel, 1, 64, 0, nullptr, x, y); }

void product_cuda(const void* a, const void* b, float* y, bool half, bool leaves) {
    if (half) {
        FASTDS_LAUNCH((product_kernel<Half>), 1, 32, 0, nullptr, static_cast<const Half*>(a), static_cast<const Half*>(b), y, leaves);
    } else {
        FASTDS_LAUNCH((product_kernel<BFloat16>), 1, 32, 0, nullptr, static_cast<const BFloat16*>(a),
                      static_cast<const BFloat16*>(b), y, leaves);
    }
}

void atomics_cuda(const float* x, int* integers, float* maximum, double* sum, int blocks, int threads) {
    FASTDS_LAUNCH(atomics_kernel, blocks, threads, 0, nullptr, x, integers, maximum, sum);
}

void copy_ahead_cuda(const void* x, void* y, int tiles, int missing, int mistake) {
    FASTDS_LAUNCH((copy_ahead_kernel<float4>), 1, kPipelineThreads, 0, nullptr, static_cast<const float4*>(x), static_cast<float4*>(y), tiles,
                  missing, mistake);
}

void specialized_cuda(const void* x, void* y, int tiles, int mistake) {
    FASTDS_LAUNCH((specialized_kernel<float4>), 1, 32 + kPipelineThreads, 0, nullptr, static_cast<const float4*>(x),
                  static_cast<float4*>(y), tiles, mistake);
}

void named_cuda(const int* x, int* y, int mistake) { FASTDS_LAUNCH((named_kernel<int>), 1, 128, 0, nullptr, x, y, mistake); }

void matrices_cuda(const void* a, const void* b, float* y) {
    FASTDS_LAUNCH((matrices_kernel<Half>), 1, 32, 0, nullptr, static_cast<const Half*>(a), static_cast<const Half*>(b), y);
}

void banks_cuda(const float* x, float* y, int stride, int bytes) {
    if (bytes == 4) FASTDS_LAUNCH((banks_kernel<float>), 1, 32, 0, nullptr, x, y, stride);
    if (bytes == 8) FASTDS_LAUNCH((banks_kernel<float2>), 1, 32, 0, nullptr, x, y, stride);
    if (bytes == 16) FASTDS_LAUNCH((banks_kernel<float4>), 1, 32, 0, nullptr, x, y, stride);
}

void order_cuda(int* counter, int* y, int blocks, int threads) {
    FASTDS_LAUNCH(order_kernel, blocks, threads, 0, nullptr, counter, y);
}

}  // namespace fastds
