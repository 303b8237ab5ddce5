// SPDX-License-Identifier: Apache-2.0
// CUDA forward pass of 16-bit types on tensor cores. A warp computes 16 pixels x 64 output channels of one group. Its samples
// go from global memory directly into the registers of the product, so that warps need not wait for each other. Lane (g, t) =
// (lane / 4, lane % 4) samples pixels g and g + 8 for 8 adjacent channels. These are its operands of two products: MmaOperands
// permits any order of k that is the same for both operands.
//
// Shared memory holds the weights (output, term), with the terms e = k * C/groups + c, as many as fit. Up to 608 terms (64
// channels of a 3 x 3 kernel are 576) all fit. A block then loads them once and processes all its pixels.
#pragma once
#include "core/mma.h"
#include "deform_conv2d/cuda.cuh"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kMmaWarps = 8, kMmaPixels = 16, kMmaOutputs = 64;
constexpr int kMmaChannels = 8;              // channels of a lane, 16 bytes
constexpr int kMmaTerms = 4 * kMmaChannels;  // terms of a warp at a time
// Terms in shared memory, 76 KiB, so that two blocks fit on a multiprocessor. The row length is an odd multiple of 64 bytes, so
// that 8 lanes read different banks.
constexpr int kMmaPanel = 19 * kMmaTerms;

// Common data of kMmaChannels terms: coordinates of their tap relative to tap (0, 0) (NaN after the last term), q = offset
// group * K + k, and the first channel.
struct alignas(16) MmaTermGroup {
    float row, column;
    int q, channel;
};

// A pixel with 32-bit positions. After the last pixel, `row` is NaN, so that no sample is inside the image.
struct MmaPixel {
    int x = 0, offset = 0, mask = 0;
    float row = NAN, column = 0;
    __device__ __forceinline__ MmaPixel(const DeformConv2dDims& d, int p) {
        const int width = static_cast<int>(d.Wo), height = static_cast<int>(d.Ho), line = p / width, j = p - line * width;
        const int b = line / height, i = line - b * height;
        if (b >= static_cast<int>(d.B)) return;
        x = b * static_cast<int>(d.x_b);
        offset = b * static_cast<int>(d.offset_b) + i * static_cast<int>(d.offset_h) + j * static_cast<int>(d.offset_w);
        mask = b * static_cast<int>(d.mask_b) + i * static_cast<int>(d.mask_h) + j * static_cast<int>(d.mask_w);
        row = static_cast<float>(i * d.stride_h - d.pad_h);
        column = static_cast<float>(j * d.stride_w - d.pad_w);
    }
};

// Returns the weighted sums of four corners, rounded to T.
template <class T>
__device__ __forceinline__ void blend(const float (&weight)[4], const Pack<uint32_t, kMmaChannels / 2> (&corner)[4],
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

// Computes the samples of one pixel for the channels of a lane, rounded to T. There are no branches between the loads, so that
// all are in flight before the first result is used. Corners outside the image are not loaded and have the weight 0.
template <class T>
__device__ __forceinline__ void compute_samples(const DeformConv2dDims& d, const Inputs<T>& in, const MmaPixel& pixel,
                                            const MmaTermGroup& term_group, uint32_t (&to)[4]) {
    using Words = Pack<uint32_t, kMmaChannels / 2>;
    const int at = pixel.offset + 2 * term_group.q;
    float y = pixel.row + term_group.row, x = pixel.column + term_group.column;
    if (d.offset_dtype == f32) {
        y += static_cast<const float*>(in.offset)[at], x += static_cast<const float*>(in.offset)[at + 1];
    } else {
        y += load(static_cast<const T*>(in.offset)[at]), x += load(static_cast<const T*>(in.offset)[at + 1]);
    }
    const float mask = in.mask != nullptr ? load(in.mask[pixel.mask + term_group.q]) : 1;
    const bool inside = sample_inside(y, x, in.height, in.width);
    y = inside ? y : 0, x = inside ? x : 0;
    const float floor_y = floorf(y), floor_x = floorf(x);
    const int y0 = static_cast<int>(floor_y), x0 = static_cast<int>(floor_x);
    const float ly = y - floor_y, lx = x - floor_x;
    const bool rows[2] = {inside && y0 >= 0, inside && y0 + 1 < static_cast<int>(d.H)};
    const bool columns[2] = {x0 >= 0, x0 + 1 < static_cast<int>(d.W)};
    const float of_row[2] = {rows[0] ? (1 - ly) * mask : 0, rows[1] ? ly * mask : 0};
    const float of_column[2] = {columns[0] ? 1 - lx : 0, columns[1] ? lx : 0};
    const int x_h = static_cast<int>(d.x_h), x_w = static_cast<int>(d.x_w);
    const int first = pixel.x + term_group.channel + y0 * x_h + x0 * x_w;
    const int places[4] = {first, first + x_w, first + x_h, first + x_h + x_w};
    Words corner[4] = {};
#pragma unroll
    for (int n = 0; n < 4; n++)
        if (rows[n / 2] && columns[n % 2]) corner[n] = *reinterpret_cast<const Words*>(in.x + places[n]);
    const float weight[4] = {of_row[0] * of_column[0], of_row[0] * of_column[1], of_row[1] * of_column[0],
                             of_row[1] * of_column[1]};
    blend<T>(weight, corner, to);
}

// Returns the number of terms from `first` on that a panel holds, rounded up to whole steps of a warp.
__device__ __forceinline__ int count_panel_terms(int first, int terms) {
    return (min(terms - first, kMmaPanel) + kMmaTerms - 1) / kMmaTerms * kMmaTerms;
}

// Loads the weights of `outputs` channels from o0 on, and the MmaTermGroup data, for as many terms from `first` on as fit.
// Outputs and terms after the last are zeros.
template <class T>
__device__ __forceinline__ void load_panel(T (*panel)[kMmaPanel], MmaTermGroup* term_groups, const DeformConv2dDims& d,
                                               const Groups& size, const T* __restrict__ weight, int group, int o0,
                                               int outputs, int first, int terms) {
    using Weights = Pack<T, kMmaChannels>;
    const int count = count_panel_terms(first, terms) / kMmaChannels;
    for (int i = threadIdx.x; i < count * kMmaOutputs; i += blockDim.x) {
        const int output = i / count, term_group = i % count, term = first + term_group * kMmaChannels;
        const T* from = weight + int64_t{o0 + output} * terms + term;
        Weights weights{};
        if (output < outputs && term < terms) weights = *reinterpret_cast<const Weights*>(from);
        reinterpret_cast<Weights*>(panel[output])[term_group] = weights;
    }
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int term = first + i * kMmaChannels, k = term / size.channels;
        const int channel = group * size.channels + term % size.channels;
        const Tap<float> tap(d, k);
        term_groups[i] = {tap.row, tap.column, channel / size.per_offset_group * size.K + k, channel};
        if (term >= terms) term_groups[i] = {NAN, NAN, 0, 0};
    }
}

// weight: (O, K, C/groups), contiguous; y: NHWC, contiguous. The grid has `shares` blocks for every 64 outputs of a group.
template <class T>
__global__ void __launch_bounds__(kMmaWarps * 32, 2)
deform_conv2d_tensor_cores_kernel(const DeformConv2dDims d, const Inputs<T> in, const T* __restrict__ weight,
                                  const T* __restrict__ bias, T* __restrict__ y, int shares) {
    FASTDS_DYNAMIC_SHARED(T, shared);
    const auto panel = reinterpret_cast<T (*)[kMmaPanel]>(shared);  // [kMmaOutputs]
    FASTDS_SHARED(MmaTermGroup, term_groups, [kMmaPanel / kMmaChannels]);
    FASTDS_SHARED(float, biases, [kMmaOutputs]);
    const Groups size(d);
    const int group_outputs = size.outputs, terms = size.K * size.channels, points = static_cast<int>(d.B * d.Ho * d.Wo);
    const int output_tiles = (group_outputs + kMmaOutputs - 1) / kMmaOutputs, tile = blockIdx.x / shares;
    const int group = tile / output_tiles, o0 = group * group_outputs + tile % output_tiles * kMmaOutputs;
    const int outputs = min((group + 1) * group_outputs - o0, kMmaOutputs);

    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int64_t strips = (int64_t{points} + kMmaPixels - 1) / kMmaPixels, share = blockIdx.x % shares;
    const int last = static_cast<int>(strips * (share + 1) / shares);
    for (int n = threadIdx.x; n < kMmaOutputs; n += kMmaWarps * 32)
        biases[n] = bias != nullptr && n < outputs ? load(bias[o0 + n]) : 0;
    bool loaded = false;
    for (int strip = static_cast<int>(strips * share / shares) + warp; strip - warp < last; strip += kMmaWarps) {
        const bool busy = strip < last;
        const int p = strip * kMmaPixels + g;
        const MmaPixel pixels[2] = {{d, p}, {d, p + 8}};
        float sums[kMmaOutputs / 8][4] = {};
        for (int first = 0; first < terms; first += kMmaPanel) {
            if (!loaded || terms > kMmaPanel) {
                __syncthreads();
                load_panel(panel, term_groups, d, size, weight, group, o0, outputs, first, terms);
                loaded = true;
                __syncthreads();
            }
            if (!busy) continue;
            const int end = count_panel_terms(first, terms);
            for (int e = t * kMmaChannels; e < end; e += kMmaTerms) {
                const MmaTermGroup term_group = term_groups[e / kMmaChannels];
                uint32_t samples[2][4];
#pragma unroll
                for (int m = 0; m < 2; m++) compute_samples(d, in, pixels[m], term_group, samples[m]);
#pragma unroll
                for (int n = 0; n < kMmaOutputs / 8; n++) {
                    const auto w = *reinterpret_cast<const Pack<uint32_t, 4>*>(&panel[n * 8 + g][e]);
#pragma unroll
                    for (int i = 0; i < 4; i += 2) {
                        mma<T>(sums[n], {{samples[0][i], samples[1][i], samples[0][i + 1], samples[1][i + 1]},
                                         {w.value[i], w.value[i + 1]}});
                    }
                }
            }
        }
        if (!busy) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = p + i / 2 * 8;
            if (at >= points) continue;
            T* to = y + at * d.O + o0;
#pragma unroll
            for (int n = 0; n < kMmaOutputs / 8; n++) {
                const int o = n * 8 + t * 2 + i % 2;
                if (o < outputs) to[o] = store<T>(sums[n][i] + biases[o]);
            }
        }
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
