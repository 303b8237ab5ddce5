// SPDX-License-Identifier: Apache-2.0
// CUDA kernels of the gradients of pixel_shuffle, and of pixel_unshuffle. A tile of coarse pixels passes through shared memory:
// its gradients are read as runs of contiguous channels and sub-pixels of the fine rows, and written as one contiguous run of
// coarse pixels, both in vectors of V elements. The same pass over the tile sums the bias gradient. Each block sums consecutive
// tiles, and another kernel adds the sums of the blocks in a fixed order, so that the result is deterministic.
#pragma once
#include "core/launch.h"
#include "pixel_shuffle/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kUnshuffleThreads = 256;

template <class T>
constexpr int kUnshuffleTile = kUnshuffleTileBytes / static_cast<int>(sizeof(T));  // elements

// Returns the position of an element of a tile in shared memory. One position is skipped after every 32 and after every 1024
// elements, so that lanes that access elements in steps of the sub-pixels or of their powers use different banks.
FASTDS_HD int get_unshuffle_slot(int element) { return element + element / 32 + element / 1024; }

template <class T>
constexpr int kUnshuffleSlots = kUnshuffleTile<T> + kUnshuffleTile<T> / 32 + kUnshuffleTile<T> / 1024;

// Quotients of numbers below 2^31 by a divisor that the host knows, without a division.
struct Divisor {
    uint32_t divisor, factor, shift;
};

inline Divisor make_divisor(uint32_t divisor) {
    uint32_t bits = 0;
    while (uint64_t{1} << bits < divisor) bits++;
    const uint64_t power = uint64_t{1} << (31 + bits);
    return {divisor, static_cast<uint32_t>((power + divisor - 1) / divisor), 31 + bits};
}

FASTDS_HD int divide(int number, const Divisor& by) {
    return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(number)) * by.factor >> by.shift);
}

// Partition of the tensors; see PixelUnshuffleTiling. A tile consists of r sub-pixel rows, each of `pixels` runs, which have
// `per_run` vectors.
struct UnshuffleTiles {
    int64_t C, W, total, tiles;  // total: B * H * W coarse pixels
    int r, pixels, channels;
    Divisor width, per_row, per_run, by_channels;
};

template <int Bytes>
struct Word;
template <>
struct Word<16> {
    using type = uint4;
};
template <>
struct Word<8> {
    using type = uint2;
};
template <>
struct Word<4> {
    using type = uint32_t;
};
template <>
struct Word<2> {
    using type = uint16_t;
};

// The vector `index` of a tile: its coarse pixel in the tile, its sub-pixel row, and its first channel and column of sub-pixels.
struct UnshuffleVector {
    int pixel, i, j, channel;
};

template <int V>
FASTDS_HD UnshuffleVector get_unshuffle_vector(const UnshuffleTiles& t, int index) {
    const int i = divide(index, t.per_row), rest = index - i * static_cast<int>(t.per_row.divisor);
    const int pixel = divide(rest, t.per_run), run = (rest - pixel * static_cast<int>(t.per_run.divisor)) * V;
    const int j = divide(run, t.by_channels);
    return {pixel, i, j, run - j * t.channels};
}

// One tile of a slice of channels. first_row and first_column are those of its first coarse pixel.
struct UnshuffleTile {
    int64_t first_pixel, first_row;
    int first_column, pixels, first_channel, channels;

    FASTDS_HD bool contains(const UnshuffleTiles& t, const UnshuffleVector& v) const {
        return v.i < t.r && v.pixel < pixels && v.channel < channels;
    }
};

FASTDS_HD UnshuffleTile get_unshuffle_tile(const UnshuffleTiles& t, int64_t index, int slice) {
    const int64_t pixel = index * t.pixels, row = pixel / t.W, left = t.total - pixel;
    const int first_channel = slice * t.channels;
    const int64_t channels = t.C - first_channel;
    return {pixel, row, static_cast<int>(pixel - row * t.W), left < t.pixels ? static_cast<int>(left) : t.pixels, first_channel,
            channels < t.channels ? static_cast<int>(channels) : t.channels};
}

// Gradients and results that a thread has loaded for one part of a tile. All its loads are started before one is used.
template <class T, int V>
struct UnshuffleLoads {
    using Vector = typename Word<V * sizeof(T)>::type;
    static constexpr int all = kUnshuffleTile<T> / V / kUnshuffleThreads, count = all < 4 ? all : 4, parts = all / count;
    Vector grads[count], results[count];

    FASTDS_HD static UnshuffleVector get_vector(const UnshuffleTiles& t, int thread, int part, int k) {
        return get_unshuffle_vector<V>(t, thread + (part * count + k) * kUnshuffleThreads);
    }
};

template <class T, int V>
__device__ __forceinline__ void load_unshuffle_tile(UnshuffleLoads<T, V>& loads, const T* grad_y, const T* y,
                                                    const UnshuffleTiles& t, const UnshuffleTile& tile, int part) {
    using Vector = typename UnshuffleLoads<T, V>::Vector;
#pragma unroll
    for (int k = 0; k < loads.count; k++) {
        const UnshuffleVector v = loads.get_vector(t, static_cast<int>(threadIdx.x), part, k);
        if (!tile.contains(t, v)) continue;
        const int column = tile.first_column + v.pixel, rows = divide(column, t.width);
        const int64_t fine_row = (tile.first_row + rows) * t.r + v.i;
        const int64_t pixel = fine_row * t.W + column - rows * t.W;
        const int64_t at = (pixel * t.r + v.j) * t.C + tile.first_channel + v.channel;
        loads.grads[k] = *reinterpret_cast<const Vector*>(grad_y + at);
        if (y != nullptr) loads.results[k] = *reinterpret_cast<const Vector*>(y + at);
    }
}

// Writes the gradients before the activation to the tile in shared memory, in the order of grad_x.
template <class T, int V>
__device__ __forceinline__ void scatter_unshuffle_tile(compute_t<T>* shared, const UnshuffleLoads<T, V>& loads, bool has_results,
                                                       const UnshuffleTiles& t, const UnshuffleTile& tile, int part,
                                                       const Activation<compute_t<T>>& act) {
    const int taps = t.r * t.r, size = t.channels * taps;
#pragma unroll
    for (int k = 0; k < loads.count; k++) {
        UnshuffleVector v = loads.get_vector(t, static_cast<int>(threadIdx.x), part, k);
        if (!tile.contains(t, v)) continue;
        int element = v.pixel * size + v.channel * taps + v.i * t.r + v.j;
        T grads[V], results[V];
        __builtin_memcpy(grads, &loads.grads[k], sizeof(grads));
        if (has_results) __builtin_memcpy(results, &loads.results[k], sizeof(results));
#pragma unroll
        for (int n = 0; n < V; n++) {
            compute_t<T> grad = load(grads[n]);
            if (has_results) grad = activation_gradient(grad, load(results[n]), act);
            shared[get_unshuffle_slot(element)] = grad;
            element += taps;
            if (++v.channel == t.channels) v.channel = 0, element += 1 - size;  // the next sub-pixel of the row
        }
    }
}

// Computes grad_x, unless it is null, and unless `partials` is null partials[part][c * r * r + sub], the sum over the part of the
// block. blockIdx.x is the part, blockIdx.y the slice of channels. V divides the channels of a slice, or the elements of a run if
// there is one slice.
template <class T, int V>
__global__ void __launch_bounds__(kUnshuffleThreads, 3)
    pixel_unshuffle_kernel(const T* __restrict__ grad_y, const T* __restrict__ y, T* __restrict__ grad_x,
                           compute_t<T>* __restrict__ partials, UnshuffleTiles t, Activation<compute_t<T>> act) {
    using A = compute_t<T>;
    using Vector = typename Word<V * sizeof(T)>::type;
    FASTDS_DYNAMIC_SHARED(A, shared);
    A* const sums = shared + kUnshuffleSlots<T>;
    const int thread = static_cast<int>(threadIdx.x), slice = static_cast<int>(blockIdx.y), taps = t.r * t.r;
    const int64_t first = t.tiles * blockIdx.x / gridDim.x, end = t.tiles * (blockIdx.x + 1) / gridDim.x;
    UnshuffleTile tile = get_unshuffle_tile(t, first, slice);
    // Each sum belongs to one thread. If there are fewer columns than threads, several groups of threads sum different pixels.
    const int columns = tile.channels * taps, groups = columns < kUnshuffleThreads ? kUnshuffleThreads / columns : 1;
    const int group = groups > 1 ? thread / columns : 0;
    if (partials != nullptr)
#pragma unroll 1
        for (int o = thread; o < groups * columns; o += kUnshuffleThreads) sums[o] = 0;
    UnshuffleLoads<T, V> loads;
    load_unshuffle_tile(loads, grad_y, y, t, tile, 0);
    for (int64_t index = first; index < end; index++) {
        const UnshuffleTile current = tile;
#pragma unroll 1
        for (int part = 0; part < loads.parts; part++) {
            scatter_unshuffle_tile(shared, loads, y != nullptr, t, current, part, act);
            const bool is_last = part + 1 == loads.parts;
            if (is_last && index + 1 == end) continue;
            if (is_last) tile = get_unshuffle_tile(t, index + 1, slice);
            load_unshuffle_tile(loads, grad_y, y, t, tile, is_last ? 0 : part + 1);
        }
        __syncthreads();
        if (grad_x != nullptr) {
            T* const to = grad_x + (current.first_pixel * t.C + current.first_channel) * taps;
#pragma unroll 2
            for (int e = thread * V; e < current.pixels * columns; e += kUnshuffleThreads * V) {
                const A* from = shared + get_unshuffle_slot(e);  // V consecutive slots, because V divides 32
                T values[V];
#pragma unroll
                for (int n = 0; n < V; n++) values[n] = store<T>(from[n]);
                Vector bits;
                __builtin_memcpy(&bits, values, sizeof(bits));
                *reinterpret_cast<Vector*>(to + e) = bits;
            }
        }
        if (partials != nullptr)
#pragma unroll 1
            for (int o = thread; o < groups * columns; o += kUnshuffleThreads) {
                A sum = sums[o];
                for (int pixel = group; pixel < current.pixels; pixel += groups)
                    sum += shared[get_unshuffle_slot(pixel * columns + o - group * columns)];
                sums[o] = sum;
            }
        __syncthreads();
    }
    if (partials == nullptr) return;
    A* const to = partials + (static_cast<int64_t>(blockIdx.x) * t.C + tile.first_channel) * taps;
#pragma unroll 1
    for (int o = thread; o < columns; o += kUnshuffleThreads) {
        A sum = sums[o];
        for (int g = 1; g < groups; g++) sum += sums[g * columns + o];
        to[o] = sum;
    }
}

constexpr int kShuffleSumWarps = 32;

// Adds the parts of 32 outputs in a block. Each warp adds every 32nd part.
template <class A>
__global__ void __launch_bounds__(32 * kShuffleSumWarps)
    pixel_shuffle_sum_kernel(const A* __restrict__ partials, A* __restrict__ sums, int64_t outputs, int64_t parts) {
    FASTDS_SHARED(A, shared, [kShuffleSumWarps][32]);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int64_t o = static_cast<int64_t>(blockIdx.x) * 32 + lane;
    A sum = 0;
    if (o < outputs)
#pragma unroll 8
        for (int64_t part = warp; part < parts; part += kShuffleSumWarps) sum += partials[part * outputs + o];
    shared[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || o >= outputs) return;
    for (int other = 1; other < kShuffleSumWarps; other++) sum += shared[other][lane];
    sums[o] = sum;
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
