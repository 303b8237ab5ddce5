// SPDX-License-Identifier: Apache-2.0
// Small kernels, right and wrong ones, that show what the emulator runs and what it finds.
#pragma once
#include "core/dtype.h"
#include "core/launch.h"
#include "core/mma.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Transposes x, (rows, columns), to y. If kSync is false, the barrier after the writes to shared memory is left out.
template <class T, int kTile, bool kSync>
__global__ void transpose_kernel(const T* x, T* y, int rows, int columns) {
    FASTDS_SHARED(T, tile, [kTile][kTile + 1]);
    int row = blockIdx.y * kTile + threadIdx.y, column = blockIdx.x * kTile + threadIdx.x;
    if (row < rows && column < columns) tile[threadIdx.y][threadIdx.x] = x[row * columns + column];
    if (kSync) __syncthreads();
    row = blockIdx.x * kTile + threadIdx.y, column = blockIdx.y * kTile + threadIdx.x;
    if (row < columns && column < rows) y[row * rows + column] = tile[threadIdx.x][threadIdx.y];
}

// Adds the sum of row `block` of x to y[block]. The kernel uses dynamic shared memory, a warp reduction and an atomic addition.
template <class T>
__global__ void row_sum_kernel(const T* x, float* y, int n) {
    FASTDS_DYNAMIC_SHARED(float, of_warp);
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += load(x[blockIdx.x * n + i]);
    for (int m = 16; m > 0; m >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, m);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < blockDim.x / 32) atomicAdd(y + blockIdx.x, of_warp[threadIdx.x]);
}

// Sets y[thread] = x[thread + shift], or, if `vector` is true, the sum of the vector of four elements x[4 * thread + shift] ...
// x[4 * thread + shift + 3].
__global__ void read_kernel(const float* x, float* y, int shift, bool vector) {
    const int i = threadIdx.x;
    if (vector) {
        const float4 v = *reinterpret_cast<const float4*>(x + shift + 4 * i);
        y[i] = v.x + v.y + v.z + v.w;
    } else {
        y[i] = x[i + shift];
    }
}

// Writes one element after the end of static shared memory when n is 1 + its size.
__global__ void shared_overrun_kernel(float* y, int n) {
    FASTDS_SHARED(float, values, [24]);
    if (threadIdx.x == 0)
        for (int i = 0; i < n; i++) values[i] = static_cast<float>(i);
    __syncthreads();
    y[threadIdx.x] = values[threadIdx.x % 24];
}

// Each even lane copies its vector of x to y, through shared memory at lane * stride vectors.
template <class Vector>
__global__ void banks_kernel(const float* x, float* y, int stride) {
    FASTDS_SHARED(Vector, values, [32 * 32]);
    const int lane = threadIdx.x;
    if (lane % 2 == 0) values[lane * stride] = reinterpret_cast<const Vector*>(x)[lane];
    __syncthreads();
    if (lane % 2 == 0) reinterpret_cast<Vector*>(y)[lane] = values[lane * stride];
}

// Reads shared memory that this block did not write.
__global__ void stale_shared_kernel(float* y) {
    FASTDS_SHARED(float, value);
    if (blockIdx.x == 0) value = 1;
    __syncthreads();
    if (threadIdx.x == 0) y[blockIdx.x] = value;
}

// kind 0: every thread passes both barriers; 1: threads from 5 on return first; 2: odd threads wait at another barrier;
// 3: odd threads wait at a warp collective.
__global__ void barrier_kernel(int* y, int kind) {
    const int i = threadIdx.x;
    if (kind == 1 && i >= 5) return;
    if (kind == 2 && i % 2 == 1) {
        __syncthreads();
    } else if (kind == 3 && i % 2 == 1) {
        __syncwarp();
    } else {
        __syncthreads();
    }
    y[i] = i;
}

// Rows of 64 threads: shuffles and votes by all lanes and by halves of each warp.
__global__ void collectives_kernel(const int* x, int* y) {
    const int i = threadIdx.x, n = blockDim.x, value = x[i];
    const unsigned all = 0xffffffffu, half = i % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
    y[i] = __shfl_sync(all, value, 3);
    y[n + i] = __shfl_up_sync(all, value, 2);
    y[2 * n + i] = __shfl_down_sync(all, value, 5);
    y[3 * n + i] = __shfl_xor_sync(all, value, 9);
    y[4 * n + i] = __shfl_sync(all, value, 11, 8);
    y[5 * n + i] = __shfl_up_sync(all, value, 3, 8);
    y[6 * n + i] = __shfl_down_sync(all, value, 3, 8);
    y[7 * n + i] = __shfl_sync(half, value, 1, 16);
    y[8 * n + i] = static_cast<int>(__ballot_sync(all, value % 3 == 0));
    y[9 * n + i] = __any_sync(half, value == 17);
    y[10 * n + i] = __all_sync(half, value < 16);
    y[11 * n + i] = __syncthreads_count(value % 2);
    y[12 * n + i] = static_cast<int>(__shfl_down_sync(all, static_cast<double>(value), 1));
}

// y (16 x 8) = a (16 x 16) * b transposed (8 x 16) by one warp on tensor cores; where `leaves`, lane 5 is not there.
template <class T>
__global__ void product_kernel(const T* a, const T* b, float* y, bool leaves) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    if (leaves && threadIdx.x == 5) return;
    MmaOperands own;
    for (int i = 0; i < 4; i++) {
        const T* from = a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
        own.a[i] = pack_pair<T>(load(from[0]), load(from[1]));
    }
    for (int i = 0; i < 2; i++) {
        const T* from = b + g * 16 + 2 * t + i * 8;
        own.b[i] = pack_pair<T>(load(from[0]), load(from[1]));
    }
    float sums[4] = {};
    mma<T>(sums, own);
    for (int i = 0; i < 4; i++) y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

// Counters shared by all threads: sum, maximum, minimum, and a maximum of floats by compare-and-swap.
__global__ void atomics_kernel(const float* x, int* integers, float* maximum, double* sum) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, value = static_cast<int>(x[i]);
    atomicAdd(integers, value);
    atomicMax(integers + 1, value);
    atomicMin(integers + 2, value);
    atomicAdd(sum, static_cast<double>(x[i]));
    int* bits = reinterpret_cast<int*>(maximum);
    int seen = *bits;
    while (__int_as_float(seen) < x[i]) {
        const int before = atomicCAS(bits, seen, __float_as_int(x[i]));
        if (before == seen) break;
        seen = before;
    }
}

// The order in which threads of all blocks take a number.
__global__ void order_kernel(int* counter, int* y) {
    y[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(counter, 1);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
