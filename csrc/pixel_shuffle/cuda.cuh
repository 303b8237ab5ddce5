// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of pixel_shuffle. If the channels consist of groups of 16 bytes, a thread permutes one group of all sub-pixels
// of a coarse pixel in registers, and all its reads and writes are contiguous 16 bytes. Otherwise a tile of coarse pixels and
// channels passes through shared memory, so that global reads and writes are in memory order. One kernel sums the bias gradient
// over parts of the rows, and another adds the parts in a fixed order, so that the result is deterministic.
#pragma once
#include "core/launch.h"
#include "pixel_shuffle/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kShuffleThreads = 256;
constexpr int kShuffleTile = 2048;  // elements; 8 per thread

// Partition of the tensors into tiles: a block processes `pixels` coarse pixels and `channels` fine channels of each.
struct ShuffleTiles {
    int64_t C, W, total;  // total: B * H * W coarse pixels
    int r, pixels, channels;
};

// Returns the position of an element in shared memory. One position is skipped after every 32 elements, so that lanes that read
// with a stride of r*r access different banks.
FASTDS_HD int get_shuffle_slot(int element) { return element + element / 32; }

// Returns the position of channel 0 of the sub-pixel sub = i*r + j of a coarse pixel.
FASTDS_HD int64_t get_fine_element(const ShuffleTiles& t, int64_t pixel, int sub) {
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
        tile[get_shuffle_slot(e)] = x[((p0 + e / run) * t.C + c0) * taps + e % run];
    __syncthreads();
    for (int e = threadIdx.x; e < pixels * run; e += blockDim.x) {
        const int pixel = e / run, sub = e % run / channels, c = e % channels;
        compute_t<T> value = load(tile[get_shuffle_slot(pixel * run + c * taps + sub)]);
        if (bias != nullptr) value = activate(value + bias[sub * t.C + c0 + c], act);
        y[get_fine_element(t, p0 + pixel, sub) + c0 + c] = store<T>(value);
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
        const int64_t at = get_fine_element(t, p0 + pixel, sub) + c0 + c;
        compute_t<T> grad = load(grad_y[at]);
        if (y != nullptr) grad = activation_gradient(grad, load(y[at]), act);
        tile[get_shuffle_slot(pixel * run + c * taps + sub)] = store<T>(grad);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < pixels * run; e += blockDim.x)
        grad_x[((p0 + e / run) * t.C + c0) * taps + e % run] = tile[get_shuffle_slot(e)];
}

constexpr int kShuffleMaxFactor = 4;  // largest r; r = 8 would need 256 registers

// Number of channels in 16 bytes of T.
template <class T>
constexpr int kShuffleRun = 16 / static_cast<int>(sizeof(T));

// Partition of the tensors among threads. Each thread permutes kShuffleRun channels of the fine tensor in all sub-pixels of one
// coarse pixel. There are `total` threads, `per_pixel` of them for each coarse pixel.
struct ShuffleRuns {
    uint32_t C, W, total, per_pixel;
};

// The work of one thread: coarse pixel, first channel, and first element of sub-pixel (0, 0) in the fine tensor.
struct ShuffleWork {
    uint32_t pixel, channel;
    int64_t fine;
};

template <class T, int R>
__device__ __forceinline__ ShuffleWork get_shuffle_work(const ShuffleRuns& t, uint32_t i) {
    const uint32_t pixel = i / t.per_pixel, channel = (i - pixel * t.per_pixel) * kShuffleRun<T>;
    const uint32_t row = pixel / t.W, column = pixel - row * t.W;
    return {pixel, channel, (static_cast<int64_t>(row) * R * t.W + column) * R * t.C + channel};
}

template <class T>
__device__ __forceinline__ void read_run(const T* from, T* values) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    __builtin_memcpy(values, &bits, 16);
}
template <class T>
__device__ __forceinline__ void write_run(T* to, const T* values) {
    uint4 bits;
    __builtin_memcpy(&bits, values, 16);
    *reinterpret_cast<uint4*>(to) = bits;
}

template <class T, int R>
__global__ void pixel_shuffle_run_kernel(const T* __restrict__ x, const compute_t<T>* __restrict__ bias,
                                         T* __restrict__ y, ShuffleRuns t, Activation<compute_t<T>> act) {
    constexpr int taps = R * R, run = kShuffleRun<T>;
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= t.total) return;
    const ShuffleWork place = get_shuffle_work<T, R>(t, i);
    const T* from = x + (static_cast<int64_t>(place.pixel) * t.C + place.channel) * taps;
    T coarse[taps * run];
#pragma unroll
    for (int k = 0; k < taps; k++) read_run(from + k * run, coarse + k * run);
#pragma unroll
    for (int sub = 0; sub < taps; sub++) {
        T fine[run];
        compute_t<T> add[run] = {};
        if (bias != nullptr)
#pragma unroll
            for (int n = 0; n < run; n += 4) read_run(bias + sub * t.C + place.channel + n, add + n);
#pragma unroll
        for (int n = 0; n < run; n++) {
            const compute_t<T> value = load(coarse[n * taps + sub]);
            fine[n] = store<T>(bias != nullptr ? activate(value + add[n], act) : value);
        }
        write_run(y + place.fine + (static_cast<int64_t>(sub / R) * R * t.W + sub % R) * t.C, fine);
    }
}

template <class T, int R>
__global__ void pixel_unshuffle_run_kernel(const T* __restrict__ grad_y, const T* __restrict__ y,
                                           T* __restrict__ grad_x, ShuffleRuns t, Activation<compute_t<T>> act) {
    constexpr int taps = R * R, run = kShuffleRun<T>;
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= t.total) return;
    const ShuffleWork place = get_shuffle_work<T, R>(t, i);
    T coarse[taps * run];
#pragma unroll
    for (int sub = 0; sub < taps; sub++) {
        const int64_t at = place.fine + (static_cast<int64_t>(sub / R) * R * t.W + sub % R) * t.C;
        T grads[run], results[run];
        read_run(grad_y + at, grads);
        if (y != nullptr) read_run(y + at, results);
#pragma unroll
        for (int n = 0; n < run; n++)
            coarse[n * taps + sub] =
                y != nullptr ? store<T>(activation_gradient(load(grads[n]), load(results[n]), act)) : grads[n];
    }
    T* to = grad_x + (static_cast<int64_t>(place.pixel) * t.C + place.channel) * taps;
#pragma unroll
    for (int k = 0; k < taps; k++) write_run(to + k * run, coarse + k * run);
}

// Computes partial sums of the bias gradient. partials[part][sub * C + c] is the sum of the gradients of channel c in sub-pixel
// `sub` over the coarse pixels of one part. Each thread computes one (sub, c), and each row of blocks computes one part.
template <class T>
__global__ void pixel_shuffle_bias_kernel(const T* __restrict__ grad_y, const T* __restrict__ y,
                                          compute_t<T>* __restrict__ partials, ShuffleTiles t,
                                          Activation<compute_t<T>> act) {
    const int64_t o = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, outputs = t.C * t.r * t.r;
    if (o >= outputs) return;
    const int64_t parts = gridDim.y, part = blockIdx.y;
    compute_t<T> sum = 0;
    const int64_t first = t.total * part / parts, end = t.total * (part + 1) / parts, aside = (t.r - 1) * t.W * t.r * t.C;
    int64_t at = get_fine_element(t, first, static_cast<int>(o / t.C)) + o % t.C, column = first % t.W;
    for (int64_t pixel = first; pixel < end; pixel++) {
        compute_t<T> grad = load(grad_y[at]);
        if (y != nullptr) grad = activation_gradient(grad, load(y[at]), act);
        sum += grad;
        at += t.r * t.C;
        if (++column == t.W) column = 0, at += aside;  // skips the other fine rows of the coarse row
    }
    partials[part * outputs + o] = sum;
}

template <class A>
__global__ void pixel_shuffle_sum_kernel(const A* __restrict__ partials, A* __restrict__ sums, int64_t outputs,
                                         int64_t parts) {
    const int64_t o = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (o >= outputs) return;
    A sum = 0;
    for (int64_t part = 0; part < parts; part++) sum += partials[part * outputs + o];
    sums[o] = sum;
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
