// SPDX-License-Identifier: Apache-2.0
// Small kernels that load tiles ahead of their use. `mistake` plants an error, 0 none.
#pragma once
#include "core/mma.h"
#include "core/pipeline.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kPipelineStages = 3, kPipelineThreads = 64;

// y[tile][i] = x[tile][63 - i] for tiles of 64 vectors; the last `missing` tiles are zeros. Two tiles are loaded ahead.
// Mistakes: 1 a group too few is waited for, 2 no barrier after the wait, 3 no barrier before a stage is filled again,
// 4 copies that are not waited for at the end.
template <class Vector>
__global__ void copy_ahead_kernel(const Vector* x, Vector* y, int tiles, int missing, int mistake) {
    FASTDS_SHARED(Vector, stages, [kPipelineStages][kPipelineThreads]);
    const int i = threadIdx.x;
    const auto load_tile = [&](int tile) {
        if (tile < tiles || mistake == 4)
            copy_async(&stages[tile % kPipelineStages][i], x + tile % tiles * kPipelineThreads + i, tile < tiles - missing);
        commit_copies();
    };
    for (int tile = 0; tile < kPipelineStages - 1; tile++) load_tile(tile);
    for (int tile = 0; tile < tiles; tile++) {
        if (mistake != 3) load_tile(tile + kPipelineStages - 1);
        if (mistake == 1)
            wait_for_copies<kPipelineStages>();
        else
            wait_for_copies<kPipelineStages - 1>();
        if (mistake != 2) __syncthreads();
        y[tile * kPipelineThreads + i] = stages[tile % kPipelineStages][kPipelineThreads - 1 - i];
        if (mistake == 3) load_tile(tile + kPipelineStages), wait_for_copies<0>();
        if (mistake != 3) __syncthreads();
    }
}

// The same by a warp that loads and two warps that store, with a full and an empty barrier for each stage. Mistakes: 1 the storing
// warps do not wait for a full stage, 2 the loading warp does not wait for an empty one, 3 an arrival is missing, 4 wrong parity.
template <class Vector>
__global__ void specialized_kernel(const Vector* x, Vector* y, int tiles, int mistake) {
    FASTDS_SHARED(Vector, stages, [kPipelineStages][kPipelineThreads]);
    FASTDS_SHARED(PhaseBarrier, full, [kPipelineStages]);
    FASTDS_SHARED(PhaseBarrier, empty, [kPipelineStages]);
    if (threadIdx.x == 0)
        for (int s = 0; s < kPipelineStages; s++) {
            init_barrier(full[s], 32);
            init_barrier(empty[s], kPipelineThreads + (mistake == 3));
        }
    __syncthreads();
    for (int tile = 0; tile < tiles; tile++) {
        const int s = tile % kPipelineStages;
        const unsigned parity = tile / kPipelineStages % 2;
        if (threadIdx.x < 32) {
            if (mistake != 2) FASTDS_WAIT_FOR_PHASE(empty[s], parity ^ 1);
            for (int i = threadIdx.x; i < kPipelineThreads; i += 32) copy_async(&stages[s][i], x + tile * kPipelineThreads + i, true);
            arrive_after_copies(full[s]);
        } else {
            const int i = threadIdx.x - 32;
            if (mistake != 1) FASTDS_WAIT_FOR_PHASE(full[s], mistake == 4 ? parity ^ 1 : parity);
            y[tile * kPipelineThreads + i] = stages[s][kPipelineThreads - 1 - i];
            arrive(empty[s]);
        }
    }
}

// Two pairs of warps exchange values, each pair by its own barrier; the first warp of a pair goes on without waiting a second
// time. Mistakes: 1 the second barrier is left out, 2 both pairs use one barrier, 3 wrong number of threads.
template <class T>
__global__ void named_kernel(const T* x, T* y, int mistake) {
    FASTDS_SHARED(T, values, [128]);
    const int i = threadIdx.x, pair = i / 64, first = i % 64 < 32;
    const int name = mistake == 2 ? 1 : 1 + pair, threads = mistake == 3 ? 96 : 64;
    if (first) {
        values[i] = x[i];
        FASTDS_ARRIVE_NAMED(name, threads);
    } else {
        if (mistake != 1) FASTDS_SYNC_NAMED(name, threads);
        y[i] = values[pair * 64 + 63 - i % 64];
    }
}

// product_kernel with operands from shared memory: y (16 x 8) = a (16 x 16) * b transposed (8 x 16).
template <class T>
__global__ void matrices_kernel(const T* a, const T* b, float* y) {
    FASTDS_SHARED(T, left, [16][16]);
    FASTDS_SHARED(T, right, [16][16]);  // the last 8 rows are not used
    for (int i = threadIdx.x; i < 256; i += 32) left[i / 16][i % 16] = a[i], right[i / 16][i % 16] = b[i % 128];
    __syncthreads();
    const int lane = threadIdx.x;
    MmaOperands own;
    load_matrices(own.a, &left[lane % 16][lane / 16 * 8]);
    uint32_t both[4];
    load_matrices(both, &right[lane % 8][lane / 8 % 2 * 8]);
    own.b[0] = both[0], own.b[1] = both[1];
    float sums[4] = {};
    mma<T>(sums, own);
    for (int i = 0; i < 4; i++) y[(lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = sums[i];
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
