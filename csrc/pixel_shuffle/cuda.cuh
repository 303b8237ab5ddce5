// SPDX-License-Identifier: Apache-2.0
// A tile of coarse pixels and channels passes through shared memory, so that global reads and writes are both in order of
// memory. The bias gradient is summed over pieces of rows by one kernel and over the pieces by another: the same bits always.
#pragma once
#include "core/launch.h"
#include "pixel_shuffle/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kShuffleThreads = 256;
constexpr int kShuffleTile = 2048;  // elements; 8 per thread

// How the fine and coarse tensors are cut: a block has `pixels` coarse pixels and `channels` fine channels of each.
struct ShuffleTiles {
    int64_t C, W, total;  // total: B * H * W coarse pixels
    int r, pixels, channels;
};

// Every 32nd element is left out, so that lanes that read with a stride of r*r meet different banks.
FASTDS_HD int shuffle_slot(int element) { return element + element / 32; }

// Element of channel 0 of the sub-pixel `sub` = i*r + j of a coarse pixel.
FASTDS_HD int64_t fine_element(const ShuffleTiles& t, int64_t pixel, int sub) {
    const int64_t row = pixel / t.W, w = pixel % t.W;
    return ((row * t.r + sub / t.r) * t.W * t.r + w * t.r + sub % t.r) * t.C;
}

template <class T>
__global__ void pixel_shuffle_kernel(const T* __restrict__ x, const compute_t<T>* __restrict__ bias, T* __restrict__ y,
                                     ShuffleTiles t, Activation<compute_t<T>> act) {
    FASTDS_SHARED(T, tile, [kShuffleTile + kShuffleTile / 32]);
    const int taps = t.r * t.r, c0 = static_cast<int>(blockIdx.y) * t.channels;
    const int channels = t.C - c0 < t.channels ? static_cast<int>(t.C - c0) : t.channels, run = channels * taps;
    const int64_t p0 = static_cast<int64_t>(blockIdx.x) * t.pixels;
    const int pixels = t.total - p0 < t.pixels ? static_cast<int>(t.total - p0) : t.pixels;
    for (int e = threadIdx.x; e < pixels * run; e += blockDim.x)
        tile[shuffle_slot(e)] = x[((p0 + e / run) * t.C + c0) * taps + e % run];
    __syncthreads();
    for (int e = threadIdx.x; e < pixels * run; e += blockDim.x) {
        const int pixel = e / run, sub = e % run / channels, c = e % channels;
        compute_t<T> value = load(tile[shuffle_slot(pixel * run + c * taps + sub)]);
        if (bias != nullptr) value = activate(value + bias[sub * t.C + c0 + c], act);
        y[fine_element(t, p0 + pixel, sub) + c0 + c] = store<T>(value);
    }
}

template <class T>
__global__ void pixel_unshuffle_kernel(const T* __restrict__ grad_y, const T* __restrict__ y, T* __restrict__ grad_x,
                                       ShuffleTiles t, Activation<compute_t<T>> act) {
    FASTDS_SHARED(T, tile, [kShuffleTile + kShuffleTile / 32]);
    const int taps = t.r * t.r, c0 = static_cast<int>(blockIdx.y) * t.channels;
    const int channels = t.C - c0 < t.channels ? static_cast<int>(t.C - c0) : t.channels, run = channels * taps;
    const int64_t p0 = static_cast<int64_t>(blockIdx.x) * t.pixels;
    const int pixels = t.total - p0 < t.pixels ? static_cast<int>(t.total - p0) : t.pixels;
    for (int e = threadIdx.x; e < pixels * run; e += blockDim.x) {
        const int pixel = e / run, sub = e % run / channels, c = e % channels;
        const int64_t at = fine_element(t, p0 + pixel, sub) + c0 + c;
        compute_t<T> grad = load(grad_y[at]);
        if (y != nullptr) grad = activation_gradient(grad, load(y[at]), act);
        tile[shuffle_slot(pixel * run + c * taps + sub)] = store<T>(grad);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < pixels * run; e += blockDim.x)
        grad_x[((p0 + e / run) * t.C + c0) * taps + e % run] = tile[shuffle_slot(e)];
}

// partials[piece][sub*C + c]: sum over the coarse pixels of one piece; a thread per (sub, c), a row of blocks per piece.
template <class T>
__global__ void pixel_shuffle_bias_kernel(const T* __restrict__ grad_y, const T* __restrict__ y,
                                          compute_t<T>* __restrict__ partials, ShuffleTiles t,
                                          Activation<compute_t<T>> act) {
    const int64_t o = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, outputs = t.C * t.r * t.r;
    if (o >= outputs) return;
    const int64_t pieces = gridDim.y, piece = blockIdx.y;
    compute_t<T> sum = 0;
    for (int64_t pixel = t.total * piece / pieces; pixel < t.total * (piece + 1) / pieces; pixel++) {
        const int64_t at = fine_element(t, pixel, static_cast<int>(o / t.C)) + o % t.C;
        compute_t<T> grad = load(grad_y[at]);
        if (y != nullptr) grad = activation_gradient(grad, load(y[at]), act);
        sum += grad;
    }
    partials[piece * outputs + o] = sum;
}

template <class A>
__global__ void pixel_shuffle_sum_kernel(const A* __restrict__ partials, A* __restrict__ sums, int64_t outputs,
                                         int64_t pieces) {
    const int64_t o = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (o >= outputs) return;
    A sum = 0;
    for (int64_t piece = 0; piece < pieces; piece++) sum += partials[piece * outputs + o];
    sums[o] = sum;
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
