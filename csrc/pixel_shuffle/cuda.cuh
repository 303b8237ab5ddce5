// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of the forward pass of pixel_shuffle. If the channels consist of groups of 16 bytes, a thread permutes one group
// of all sub-pixels of a coarse pixel in registers, and all its reads and writes are contiguous 16 bytes. Otherwise a tile of
// coarse pixels and channels passes through shared memory, so that global reads and writes are in memory order.
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

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
