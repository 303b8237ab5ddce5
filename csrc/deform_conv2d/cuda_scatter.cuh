// SPDX-License-Identifier: Apache-2.0
// Backward pass of deform_conv2d from the gradients of its columns, which the caller computes as a product of grad_y and the
// weight: adds to grad_x and writes grad_offset and grad_mask.
//
// Lanes have pixels and taps as in cuda_sample.cuh. Up to 8 lanes share an offset group; they sum its gradients of offset and mask
// in a fixed order, and the first of them writes these. Many lanes add to an element of grad_x, by vector atomics.
#pragma once
#include "deform_conv2d/cuda_sample.cuh"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kScatterBlocks = 2;  // on a multiprocessor

template <class T>
__device__ __forceinline__ void unpack_words(const SampleWords& words, float (&to)[kVector<T>]) {
#pragma unroll
    for (int v = 0; v < kVector<T>; v++) {
        if constexpr (sizeof(T) == 2)
            to[v] = unpack_value<T>(words.value[v / 2], v % 2);
        else
            to[v] = bits_to_float(words.value[v]);
    }
}

// The gradients of offset or mask of a pixel and an offset group, which are T or float32.
template <class T>
struct PixelGradients {
    __device__ __forceinline__ PixelGradients(void* memory, bool in_float32, int64_t first)
        : to_(static_cast<char*>(memory) + first * (in_float32 ? 4 : static_cast<int>(sizeof(T)))),
          needed_(memory != nullptr),
          in_float32_(in_float32) {}
    __device__ __forceinline__ void put(int element, float value) const {
        if (needed_ && in_float32_) reinterpret_cast<float*>(to_)[element] = value;
        if (needed_ && !in_float32_) reinterpret_cast<T*>(to_)[element] = store<T>(value);
    }

  private:
    char* to_;
    bool needed_, in_float32_;
};

// columns: gradients of the columns, (groups, pixels, K, C/groups), contiguous. `lanes` is a power of two, at most the packs of
// an offset group.
template <class T, class Offset>
__global__ void __launch_bounds__(kSampleThreads, kScatterBlocks)
deform_conv2d_scatter_kernel(const DeformConv2dDims d, const Inputs<T> in, const DeformConv2dOffsetEpilogue epilogue,
                             const SampleLines lines, const int lanes, const T* __restrict__ columns,
                             const DeformConv2dMapGradients grads) {
    constexpr int V = kVector<T>;
    const Groups size(d);
    const TapGrid taps(d);
    const int x_h = static_cast<int>(d.x_h * sizeof(T)), x_w = static_cast<int>(d.x_w * sizeof(T));
    const int grad_x_w = static_cast<int>(d.C), grad_x_h = static_cast<int>(d.W) * grad_x_w, step = lanes * V;
    const int64_t image_bytes = d.H * d.W * d.C * 4;
    const int64_t next_group = (int64_t{lines.count} * d.Wo * size.K - 1) * size.channels;  // from the end of a group's channels
    const bool needs_samples = grads.offset != nullptr || grads.mask != nullptr;
    SampleShare share(lines, size.K);
    for (int item; share.advance(item);) {
        const int place = item / lines.packs, offset_group = (item - place * lines.packs) / lanes;
        const int lane_channel = (item & (lanes - 1)) * V, channel = offset_group * size.per_offset_group + lane_channel;
        SampledPixel<T, Offset, const T> pixel;
        const bool there = find_pixel(d, in, size, epilogue, lines, place, channel, share.first, columns, pixel);
        const unsigned active = __ballot_sync(0xffffffffu, there);
        if (!there) continue;
        pixel.load_displacement();
        char* const grad_x = reinterpret_cast<char*>(grads.x + channel) + pixel.image * image_bytes;
        const int64_t pair = int64_t{offset_group} * size.K;
        const PixelGradients<T> grad_mask(grads.mask, grads.mask_in_float32, pixel.number * grads.mask_step + pair);
        const PixelGradients<T> grad_offset(grads.offset, grads.offset_in_float32, pixel.number * grads.offset_step + 2 * pair);
        const int end = size.per_offset_group - lane_channel;
        for (int k = share.first; k < share.end; k++) {
            const SampleCorners sample = pixel.take_tap(d, in, taps, epilogue.sigmoid, k + 1 == share.end);
            float weight[4], dot[4] = {};
            sample.get_weights(weight);
            const T* from = pixel.at;
            for (int c = 0;;) {
                SampleWords corner[4] = {};
                const SampleWords grad_words = *reinterpret_cast<const SampleWords*>(from);
                const char* corner_00 = reinterpret_cast<const char*>(pixel.x + c) + (sample.y0 * x_h + sample.x0 * x_w);
#pragma unroll
                for (int n = 0; n < 4; n++)
                    if (needs_samples && sample.has(n))
                        corner[n] = *reinterpret_cast<const SampleWords*>(corner_00 + n / 2 * x_h + n % 2 * x_w);
                float grad[V];
                unpack_words<T>(grad_words, grad);
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    float value[V], sum = 0;
                    unpack_words<T>(corner[n], value);
#pragma unroll
                    for (int v = 0; v < V; v++) sum += grad[v] * value[v];
                    dot[n] += sample.has(n) ? sum : 0;  // not NaN * 0
                }
                if (grads.x != nullptr) {
                    const int64_t element = sample.y0 * grad_x_h + sample.x0 * grad_x_w + c;
                    const Unordered<float> corner_00{reinterpret_cast<float*>(grad_x + element * 4)};
#pragma unroll
                    for (int n = 0; n < 4; n++) {
                        float part[V];
#pragma unroll
                        for (int v = 0; v < V; v++) part[v] = weight[n] * grad[v];
                        if (sample.has(n)) corner_00.add(n / 2 * grad_x_h + n % 2 * grad_x_w, part);
                    }
                }
                if ((c += step) >= end) break;
                from += step + ((channel + c) / size.channels - (channel + c - step) / size.channels) * next_group;
            }
            pixel.at += size.channels;
            if (!needs_samples) continue;
            const float mask = sample.inside ? sample.mask : 0;
            float sums[3] = {grad_of_mask(dot[0], dot[1], dot[2], dot[3], sample.ly, sample.lx),
                             mask * grad_of_y(dot[0], dot[1], dot[2], dot[3], sample.lx),
                             mask * grad_of_x(dot[0], dot[1], dot[2], dot[3], sample.ly)};
            for (int m = lanes / 2; m > 0; m >>= 1)
#pragma unroll
                for (int i = 0; i < 3; i++) sums[i] += __shfl_xor_sync(active, sums[i], m);
            if (lane_channel != 0) continue;
            grad_mask.put(k, epilogue.sigmoid ? sums[0] * mask * (1 - mask) : sums[0]);
            grad_offset.put(2 * k, sums[1]);
            grad_offset.put(2 * k + 1, sums[2]);
        }
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
