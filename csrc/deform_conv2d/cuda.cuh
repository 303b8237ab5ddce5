// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels of deform_conv2d share: the matrix tile, the pixel table, the samples, vector loads.
//
// Samples of a slab of terms are gathered by the block itself, so that no columns are ever stored: a library's product would
// want K * C * H * W of them in memory and would follow torch's TF32 switches. Products run on the plain multipliers in the
// compute type; on tensor cores, in 16 bits, in cuda_tensor_cores.cuh and in Triton (kernels/deform_conv2d.py).
#pragma once
#include "core/launch.h"
#include "deform_conv2d/math.h"
#include "deform_conv2d/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kThreads = 128;
constexpr int kStep = 16;  // terms of the sum in one slab
template <class T>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : 4;  // to fit on a multiprocessor: bounds the registers to 255 and 128

// Channels that one thread loads at a time: 16 bytes, or one where groups, strides or addresses do not allow that.
template <class T>
constexpr int kVector = sizeof(T) == 8 ? 1 : 16 / static_cast<int>(sizeof(T));

// kM x kN results, kTM x kTN of them in each thread. Rows of the operands in shared memory are padded by 16 bytes: they stay
// aligned and the columns of a slab fall into different banks.
template <class A, int kM, int kN, int kTM, int kTN>
struct Tile {
    static_assert(kM / kTM * (kN / kTN) == kThreads, "one block of threads covers the tile");
    static constexpr int kRowA = kM + 16 / sizeof(A), kRowB = kN + 16 / sizeof(A);

    A acc[kTM][kTN];
    int row, column;  // first ones of this thread

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
#pragma unroll
            for (int m = 0; m < kTM; m++) left[m] = a[term][row + m];
#pragma unroll
            for (int n = 0; n < kTN; n++) right[n] = b[term][column + n];
#pragma unroll
            for (int m = 0; m < kTM; m++)
#pragma unroll
                for (int n = 0; n < kTN; n++) acc[m][n] += left[m] * right[n];
        }
    }
};

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

// An output pixel: where its first channel lies in each tensor, and the position of tap (0, 0) before displacement.
template <class A>
struct Pixel {
    int64_t x, offset, mask, grad_x;  // elements, of its image in x and grad_x; x is -1 behind the last pixel
    A row, column;
};

template <class A>
__device__ __forceinline__ Pixel<A> pixel_at(const DeformConv2dDims& d, int64_t p) {
    Pixel<A> pixel{-1, 0, 0, 0, 0, 0};
    if (p >= d.B * d.Ho * d.Wo) return pixel;
    int64_t b, i, j;
    if (d.B * d.Ho * d.Wo <= INT32_MAX) {  // 64-bit divisions are subroutines
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

// Sizes that fit in 32 bits by check_sizes.
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
    const void* offset;  // T or float by d.offset_dtype
    const T* mask;       // null: ones
    compute_t<T> height, width;
};

template <class T, class Tensors>
Inputs<T> inputs(const DeformConv2dDims& d, const Tensors& t) {
    using A = compute_t<T>;
    return {static_cast<const T*>(t.x), t.offset, static_cast<const T*>(t.mask), static_cast<A>(d.H), static_cast<A>(d.W)};
}

// Tap k: its place before displacement relative to tap (0, 0).
template <class A>
struct Tap {
    __device__ __forceinline__ Tap(const DeformConv2dDims& d, int k) {
        const int width = static_cast<int>(d.kw);
        row = static_cast<A>(k / width * d.dil_h), column = static_cast<A>(k % width * d.dil_w);
    }
    A row, column;
};

// One sample: its cell, and mask times the weight of each corner.
template <class A>
struct Sample {
    BilinearCell<A, int> cell;
    A weight[4], mask;

    // False where the sample contributes nothing. q = offset group * K + k.
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

    // mask * S for V channels; x points at the first of them in the image's first pixel.
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

// Whether V channels can be loaded at once everywhere: no pack then crosses a group of either kind or a 16-byte boundary.
template <class T>
bool packs_fit(const DeformConv2dDims& d, const void* x) {
    constexpr int V = kVector<T>;
    const int64_t multiple = (d.C / d.groups) | (d.C / d.offset_groups) | d.x_b | d.x_h | d.x_w;
    return V > 1 && multiple % V == 0 && reinterpret_cast<uintptr_t>(x) % (V * sizeof(T)) == 0;
}

// What the kernels count in 32 bits.
inline void check_sizes(const DeformConv2dDims& d) {
    FASTDS_CHECK(d.H < INT32_MAX && d.W < INT32_MAX && d.C < INT32_MAX && d.O < INT32_MAX &&
                     2 * d.offset_groups * d.kh * d.kw < INT32_MAX,
                 "deform_conv2d: on CUDA rows, columns and channels must be fewer than 2^31");
}

inline unsigned grid_size(int64_t blocks) {
    FASTDS_CHECK(blocks <= INT32_MAX, "deform_conv2d: more tiles than one CUDA grid holds");
    return static_cast<unsigned>(blocks);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
