// SPDX-License-Identifier: Apache-2.0
// Common parts of the CUDA kernels of deform_conv2d: register tile, pixel table, samples, vector loads.
//
// Each block gathers the samples of one slab of terms itself, so that columns are never stored in global memory. A matrix
// product from a library would need K * C * Ho * Wo columns in memory and would depend on torch's TF32 settings. These products
// use the ordinary multipliers in the compute type. Products of 16-bit types on tensor cores are in cuda_forward.cuh and,
// in Triton, in kernels/deform_conv2d.py.
#pragma once
#include "core/launch.h"
#include "core/mma.h"
#include "deform_conv2d/math.h"
#include "deform_conv2d/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kThreads = 128;
constexpr int kStep = 16;  // terms of the sum in one slab
template <class T>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : 4;  // blocks per multiprocessor, which bounds the registers to 255 and 128

// Number of channels that a thread loads at once: 16 bytes of them, or 1 for double. A thread loads one channel at a time if
// the groups, strides or addresses do not permit loads of 16 bytes.
template <class T>
constexpr int kVector = sizeof(T) == 8 ? 1 : 16 / static_cast<int>(sizeof(T));

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
    T value[V];
};

template <int V, class T, class A>
__device__ __forceinline__ void load_pack(const T* from, A (&to)[V]) {
    const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
    for (int v = 0; v < V; v++) to[v] = load(pack.value[v]);
}

// Copy a row of N elements from or to shared memory in packs of 16 bytes, to which its address is aligned.
template <int N, class A>
__device__ __forceinline__ void load_row(const A* from, A (&to)[N]) {
    constexpr int V = 16 / static_cast<int>(sizeof(A));
    static_assert(N % V == 0, "a row consists of packs");
#pragma unroll
    for (int n = 0; n < N; n += V) {
        const auto pack = *reinterpret_cast<const Pack<A, V>*>(from + n);
#pragma unroll
        for (int v = 0; v < V; v++) to[n + v] = pack.value[v];
    }
}
template <int N, class A>
__device__ __forceinline__ void store_row(A* to, const A (&from)[N]) {
    constexpr int V = N < 16 / static_cast<int>(sizeof(A)) ? N : 16 / static_cast<int>(sizeof(A));
#pragma unroll
    for (int n = 0; n < N; n += V) {
        Pack<A, V> pack;
#pragma unroll
        for (int v = 0; v < V; v++) pack.value[v] = from[n + v];
        *reinterpret_cast<Pack<A, V>*>(to + n) = pack;
    }
}

// A tile of kM x kN results, kTM x kTN of them in each thread. Rows of the operands in shared memory are padded by 16 bytes.
// The rows remain aligned, and the columns of a slab fall into different banks.
template <class A, int kM, int kN, int kTM, int kTN>
struct Tile {
    static_assert(kM / kTM * (kN / kTN) == kThreads, "one block of threads covers the tile");
    static constexpr int kRowA = kM + 16 / sizeof(A), kRowB = kN + 16 / sizeof(A);

    A acc[kTM][kTN];
    int row, column;  // first row and column of this thread

    __device__ __forceinline__ Tile() : row(threadIdx.x / (kN / kTN) * kTM), column(threadIdx.x % (kN / kTN) * kTN) { clear(); }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < kTM; m++)
#pragma unroll
            for (int n = 0; n < kTN; n++) acc[m][n] = 0;
    }

    // acc += sum over the slab of a[term][row] * b[term][column].
    __device__ __forceinline__ void multiply(const A (*a)[kRowA], const A (*b)[kRowB]) {
#pragma unroll 4
        for (int term = 0; term < kStep; term++) {
            A left[kTM], right[kTN];
            load_row(&a[term][row], left);
            load_row(&b[term][column], right);
#pragma unroll
            for (int m = 0; m < kTM; m++)
#pragma unroll
                for (int n = 0; n < kTN; n++) acc[m][n] += left[m] * right[n];
        }
    }
};


// An output pixel: the positions of its first channel in each tensor, and the coordinates of tap (0, 0) before displacement.
template <class A>
struct Pixel {
    // Positions in elements. x and grad_x are the positions of the image. x is -1 for pixels after the last one.
    int64_t x, offset, mask, grad_x;
    A row, column;
};

template <class A>
__device__ __forceinline__ Pixel<A> get_pixel(const DeformConv2dDims& d, int64_t p) {
    Pixel<A> pixel{-1, 0, 0, 0, 0, 0};
    if (p >= d.B * d.Ho * d.Wo) return pixel;
    int64_t b, i, j;
    if (d.B * d.Ho * d.Wo <= INT32_MAX) {  // 64-bit divisions are slow subroutines
        const int width = static_cast<int>(d.Wo), height = static_cast<int>(d.Ho), line = static_cast<int>(p) / width;
        b = line / height, i = line % height, j = static_cast<int>(p) % width;
    } else {
        const int64_t line = p / d.Wo;
        b = line / d.Ho, i = line % d.Ho, j = p % d.Wo;
    }
    pixel.x = b * d.x_b;
    pixel.grad_x = b * d.H * d.W * d.C;
    pixel.offset = b * d.offset_b + i * d.offset_h + j * d.offset_w;
    pixel.mask = b * d.mask_b + i * d.mask_h + j * d.mask_w;
    pixel.row = static_cast<A>(i * d.stride_h - d.pad_h);
    pixel.column = static_cast<A>(j * d.stride_w - d.pad_w);
    return pixel;
}

// Sizes as 32-bit integers; check_sizes verifies that they fit.
struct Groups {
    __device__ __forceinline__ explicit Groups(const DeformConv2dDims& d)
        : channels(static_cast<int>(d.C) / static_cast<int>(d.groups)), outputs(static_cast<int>(d.O) / static_cast<int>(d.groups)),
          per_offset_group(static_cast<int>(d.C) / static_cast<int>(d.offset_groups)), K(static_cast<int>(d.kh * d.kw)) {}
    int channels, outputs;  // of one convolution group
    int per_offset_group;   // channels
    int K;
};

template <class T>
struct Inputs {
    const T* x;
    const void* offset;  // type T or float, according to d.offset_dtype
    const T* mask;       // null: all ones
    compute_t<T> height, width;
};

template <class T, class Tensors>
Inputs<T> make_inputs(const DeformConv2dDims& d, const Tensors& t) {
    using A = compute_t<T>;
    return {static_cast<const T*>(t.x), t.offset, static_cast<const T*>(t.mask), static_cast<A>(d.H), static_cast<A>(d.W)};
}

// Coordinates of tap k relative to tap (0, 0), before displacement.
template <class A>
struct Tap {
    __device__ __forceinline__ Tap(const DeformConv2dDims& d, int k) {
        const int width = static_cast<int>(d.kw);
        row = static_cast<A>(k / width * d.dil_h), column = static_cast<A>(k % width * d.dil_w);
    }
    A row, column;
};

// Common data of 8 terms of the sum e = k * C/groups + c, which have 16 bytes in 16-bit types: coordinates of their tap relative to
// tap (0, 0) (NaN after the last term), q = offset group * K + k, and the first channel.
struct alignas(16) TermGroup {
    float row, column;
    int q, channel;
};

__device__ __forceinline__ TermGroup find_term_group(const DeformConv2dDims& d, const Groups& size, int group, int term) {
    if (term >= size.K * size.channels) return {NAN, NAN, 0, 0};
    const int k = term / size.channels, channel = group * size.channels + term % size.channels;
    const Tap<float> tap(d, k);
    return {tap.row, tap.column, channel / size.per_offset_group * size.K + k, channel};
}

// One sample: its cell, and the mask times the weight of each corner.
template <class A>
struct Sample {
    BilinearCell<A, int> cell;
    A weight[4], mask;

    // Returns false if the sample contributes nothing. q = offset group * K + k.
    template <class T>
    __device__ __forceinline__ bool locate(const DeformConv2dDims& d, const Inputs<T>& in, const Pixel<A>& pixel,
                                           const Tap<A>& tap, int q) {
        if (pixel.x < 0) return false;
        const int64_t at = pixel.offset + 2 * static_cast<int64_t>(q);
        A y = pixel.row + tap.row, x = pixel.column + tap.column;
        if (d.offset_dtype == f32) {
            const float* offset = static_cast<const float*>(in.offset) + at;
            y += static_cast<A>(offset[0]), x += static_cast<A>(offset[1]);
        } else {
            const T* offset = static_cast<const T*>(in.offset) + at;
            y += load(offset[0]), x += load(offset[1]);
        }
        if (!sample_inside(y, x, in.height, in.width)) return false;
        cell = bilinear_cell<A, int>(y, x, static_cast<int>(d.H), static_cast<int>(d.W));
        mask = in.mask != nullptr ? load(in.mask[pixel.mask + q]) : A(1);
        bilinear_weights(cell.ly, cell.lx, weight[0], weight[1], weight[2], weight[3]);
#pragma unroll
        for (int n = 0; n < 4; n++) weight[n] *= mask;
        return true;
    }

    __device__ __forceinline__ int64_t element(int n, int64_t row, int64_t pixel) const {
        return (cell.y0 + n / 2) * row + (cell.x0 + n % 2) * pixel;
    }

    // Adds mask * (sampled value) for V channels to `to`. x points to the first of these channels in the first pixel of the
    // image.
    template <int V, class T>
    __device__ __forceinline__ void value(const DeformConv2dDims& d, const T* x, A (&to)[V]) const {
#pragma unroll
        for (int n = 0; n < 4; n++) {
            if (!cell.corner[n]) continue;
            A corner[V];
            load_pack<V>(x + element(n, d.x_h, d.x_w), corner);
#pragma unroll
            for (int v = 0; v < V; v++) to[v] += weight[n] * corner[v];
        }
    }
};

// Computes the weighted sums of four corners of 8 channels in a 16-bit type, rounded to T.
template <class T>
__device__ __forceinline__ void blend(const float (&weight)[4], const Pack<uint32_t, 4> (&corner)[4],
                                      uint32_t (&to)[4]) {
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
        float values[2] = {};
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int v = 0; v < 2; v++) values[v] += weight[n] * unpack_value<T>(corner[n].value[pair], v);
        to[pair] = pack_pair<T>(values[0], values[1]);
    }
}

// Buffer in which grad_x is accumulated with floating-point atomics. It is contiguous NHWC in the compute type and initially
// zero.
template <class A>
struct Unordered {
    A* sum;

    __device__ __forceinline__ void prepare() {}
    template <int V>
    __device__ __forceinline__ void add(int64_t element, const A (&value)[V]) const {
        A* to = sum + element;
        int v = 0;
#if __CUDA_ARCH__ >= 900 || FASTDS_EMU
#pragma unroll
        for (; v + 4 <= V; v += 4)
            atomicAdd(reinterpret_cast<float4*>(to + v), make_float4(value[v], value[v + 1], value[v + 2], value[v + 3]));
#endif
#pragma unroll
        for (; v < V; v++) atomicAdd(to + v, value[v]);
    }
};

// Returns whether kVector channels can be loaded at once everywhere: no load crosses the end of a convolution group or offset
// group, and all addresses are aligned to 16 bytes.
template <class T>
bool can_load_packs(const DeformConv2dDims& d, const void* x) {
    constexpr int V = kVector<T>;
    const int64_t multiple = (d.C / d.groups) | (d.C / d.offset_groups) | d.x_b | d.x_h | d.x_w;
    return V > 1 && multiple % V == 0 && reinterpret_cast<uintptr_t>(x) % (V * sizeof(T)) == 0;
}

// Checks the sizes that the kernels store in 32-bit integers.
inline void check_sizes(const DeformConv2dDims& d) {
    FASTDS_CHECK(d.H < INT32_MAX && d.W < INT32_MAX && d.C < INT32_MAX && d.O < INT32_MAX &&
                     2 * d.offset_groups * d.kh * d.kw < INT32_MAX,
                 "deform_conv2d: on CUDA rows, columns and channels must be fewer than 2^31");
}

inline unsigned get_grid_size(int64_t blocks) {
    FASTDS_CHECK(blocks <= INT32_MAX, "deform_conv2d: more tiles than fit into a CUDA grid");
    return static_cast<unsigned>(blocks);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
