// SPDX-License-Identifier: Apache-2.0
// CUDA backward pass with respect to weight. The sum over pixels is divided into parts, which are added in a fixed order.
//
// A block computes kM outputs x kN terms e = k * C/groups + c of one group over the pixels of its part. It processes slabs of
// kStep pixels, whose samples it gathers like the forward pass.
#pragma once
#include "deform_conv2d/cuda.cuh"

namespace fastds {
namespace FASTDS_ISA {
namespace {

struct WeightPartition {
    static constexpr int kM = 64, kN = 64;
    explicit WeightPartition(const DeformConv2dDims& d) {
        // Enough blocks for the largest devices, at least 16 slabs per part, at most 2^26 partial sums. The partition depends
        // only on the shape.
        const int64_t terms = d.kh * d.kw * (d.C / d.groups), pixels = d.B * d.Ho * d.Wo;
        output_tiles = (d.O / d.groups + kM - 1) / kM, term_tiles = (terms + kN - 1) / kN;
        tiles = d.groups * output_tiles * term_tiles;
        parts = (1024 + tiles - 1) / tiles;
        const int64_t longest = (pixels + 16 * kStep - 1) / (16 * kStep), most = (int64_t{1} << 26) / (d.O * terms);
        if (parts > longest) parts = longest;
        if (parts > most) parts = most;
        if (parts < 1) parts = 1;
        part_pixels = (pixels + parts - 1) / parts;
    }
    int64_t output_tiles, term_tiles, tiles, parts, part_pixels;
};

// partial: (parts, O, K, C/groups).
template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
deform_conv2d_backward_weight_kernel(const DeformConv2dDims d, const WeightPartition partition, const Inputs<T> in,
                                     const T* __restrict__ grad_y, compute_t<T>* __restrict__ partial) {
    using A = compute_t<T>;
    constexpr int kM = WeightPartition::kM, kN = WeightPartition::kN, kLanesOfPixel = kN / V;
    using Product = Tile<A, kM, kN, 8, 4>;
    FASTDS_SHARED(A, outputs, [kStep][Product::kRowA]);
    FASTDS_SHARED(A, columns, [kStep][Product::kRowB]);
    FASTDS_SHARED(Pixel<A>, pixels, [2][kStep]);  // of this slab and of the next one

    const Groups size(d);
    const int group_channels = size.channels, group_outputs = size.outputs, per_offset_group = size.per_offset_group, K = size.K;
    const int thread = threadIdx.x;
    const unsigned tiles = static_cast<unsigned>(partition.tiles), term_tiles = static_cast<unsigned>(partition.term_tiles);
    const unsigned tile = blockIdx.x % tiles, output_tiles = static_cast<unsigned>(partition.output_tiles);
    const int64_t part = blockIdx.x / tiles, terms = static_cast<int64_t>(K) * group_channels;
    const int group = tile / term_tiles / output_tiles, o0 = tile / term_tiles % output_tiles * kM;
    const int64_t e0 = static_cast<int64_t>(tile % term_tiles) * kN;

    const int lane = thread % kLanesOfPixel * V;  // the thread's term of the tile
    const int k = static_cast<int>((e0 + lane) / group_channels);
    const int channel = group * group_channels + static_cast<int>((e0 + lane) % group_channels);
    const int q = channel / per_offset_group * K + k;
    const Tap<A> tap(d, k);

    const int64_t pixel_count = d.B * d.Ho * d.Wo, begin = part * partition.part_pixels;
    const int64_t end = begin + partition.part_pixels < pixel_count ? begin + partition.part_pixels : pixel_count;
    Product product;
    if (thread < kStep) pixels[0][thread] = get_pixel<A>(d, begin + thread < end ? begin + thread : pixel_count);
    int slab = 0;
    for (int64_t p0 = begin; p0 < end; p0 += kStep, slab ^= 1) {
        __syncthreads();
        for (int p = thread / kLanesOfPixel; p < kStep; p += kThreads / kLanesOfPixel) {
            A values[V] = {};
            Sample<A> sample;
            const Pixel<A>& pixel = pixels[slab][p];
            if (k < K && sample.locate(d, in, pixel, tap, q)) sample.template value<V>(d, in.x + pixel.x + channel, values);
#pragma unroll
            for (int v = 0; v < V; v++) columns[p][lane + v] = values[v];
        }
        for (int i = thread; i < kStep * kM; i += kThreads) {
            const int p = i / kM, o = i % kM;
            const bool there = p0 + p < end && o0 + o < group_outputs;
            outputs[p][o] = there ? load(grad_y[(p0 + p) * d.O + group * group_outputs + o0 + o]) : A(0);
        }
        const int64_t next = p0 + kStep + thread;
        if (thread < kStep) pixels[slab ^ 1][thread] = get_pixel<A>(d, next < end ? next : pixel_count);
        __syncthreads();
        product.multiply(outputs, columns);
    }

#pragma unroll
    for (int m = 0; m < 8; m++)
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const int o = o0 + product.row + m;
            const int64_t e = e0 + product.column + n;
            if (o < group_outputs && e < terms) partial[((part * d.O) + group * group_outputs + o) * terms + e] = product.acc[m][n];
        }
}

// grad_weight (O, C/groups, K): one thread per element adds the parts in ascending order.
template <class T>
__global__ void deform_conv2d_sum_weight_kernel(const compute_t<T>* __restrict__ partial, T* __restrict__ grad_weight,
                                                int64_t parts,
                                                int64_t outputs, int64_t group_channels, int64_t K) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, n = outputs * group_channels * K;
    if (i >= n) return;
    const int64_t o = i / (K * group_channels), k = i / group_channels % K, c = i % group_channels;
    compute_t<T> sum = 0;
    for (int64_t part = 0; part < parts; part++) sum += partial[part * n + i];
    grad_weight[(o * group_channels + c) * K + k] = store<T>(sum);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
