// SPDX-License-Identifier: Apache-2.0
// CUDA forward pass. A block computes kM pixels x kN output channels of one group. The terms e = k * C/groups + c of the sum
// are processed in slabs of kStep. The threads gather the samples of a slab into shared memory, with neighbouring threads
// taking neighbouring channels, and then multiply.
#pragma once
#include "deform_conv2d/cuda.cuh"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// weight: (O, K, C/groups), contiguous; y: NHWC, contiguous.
template <class T, int V, int kM, int kN, int kTM, int kTN>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
deform_conv2d_forward_kernel(const DeformConv2dDims d, const Inputs<T> in, const T* __restrict__ weight,
                             const T* __restrict__ bias, T* __restrict__ y) {
    using A = compute_t<T>;
    using Product = Tile<A, kM, kN, kTM, kTN>;
    constexpr int kLanesOfPixel = kStep / V;
    FASTDS_SHARED(A, columns, [kStep][Product::kRowA]);
    FASTDS_SHARED(A, weights, [kStep][Product::kRowB]);
    FASTDS_SHARED(Pixel<A>, pixels, [kM]);

    const Groups size(d);
    const int group_channels = size.channels, group_outputs = size.outputs, per_offset_group = size.per_offset_group, K = size.K;
    // Tiles of the same pixels are neighbours in the grid, so that they find their samples in the cache.
    const unsigned output_tiles = (group_outputs + kN - 1) / kN, tiles = output_tiles * static_cast<unsigned>(d.groups);
    const int64_t first = static_cast<int64_t>(blockIdx.x / tiles) * kM;
    const int group = blockIdx.x % tiles / output_tiles, o0 = blockIdx.x % tiles % output_tiles * kN;

    const int thread = threadIdx.x;
    for (int p = thread; p < kM; p += kThreads) pixels[p] = get_pixel<A>(d, first + p);

    const int lane = thread % kLanesOfPixel * V;  // this thread's term in each slab
    const int step_taps = kStep / group_channels, step_channels = kStep % group_channels;
    int k = lane / group_channels, c = lane % group_channels;
    const int64_t terms = static_cast<int64_t>(K) * group_channels;
    Product product;
    for (int64_t e0 = 0; e0 < terms; e0 += kStep) {
        __syncthreads();
        const int channel = group * group_channels + c, q = channel / per_offset_group * K + k;
        const Tap<A> tap(d, k);
#pragma unroll(V > 1 ? 2 : 1)
        for (int p = thread / kLanesOfPixel; p < kM; p += kThreads / kLanesOfPixel) {
            A values[V] = {};
            Sample<A> sample;
            if (k < K && sample.locate(d, in, pixels[p], tap, q)) sample.template value<V>(d, in.x + pixels[p].x + channel, values);
#pragma unroll
            for (int v = 0; v < V; v++) columns[lane + v][p] = values[v];
        }
        for (int i = thread; i < kStep * kN; i += kThreads) {
            const int o = i / kStep, term = i % kStep;
            const bool there = e0 + term < terms && o0 + o < group_outputs;
            weights[term][o] = there ? load(weight[(int64_t{group} * group_outputs + o0 + o) * terms + e0 + term]) : A(0);
        }
        k += step_taps, c += step_channels;
        if (c >= group_channels) c -= group_channels, k++;
        __syncthreads();
        product.multiply(columns, weights);
    }

    const int64_t pixel_count = d.B * d.Ho * d.Wo;
#pragma unroll
    for (int n = 0; n < kTN; n++) {
        if (o0 + product.column + n >= group_outputs) break;
        const int64_t o = static_cast<int64_t>(group) * group_outputs + o0 + product.column + n;
        const A start = bias != nullptr ? load(bias[o]) : A(0);
#pragma unroll
        for (int m = 0; m < kTM; m++) {
            const int64_t p = first + product.row + m;
            if (p < pixel_count) y[p * d.O + o] = store<T>(product.acc[m][n] + start);
        }
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
