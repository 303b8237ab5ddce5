// SPDX-License-Identifier: Apache-2.0
#include "pixel_shuffle/cuda_backward.cuh"

#include <algorithm>

#include "core/launch.h"
#include "pixel_shuffle/params.h"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

// Returns the largest number of elements of a vector that divides all runs and whose alignment all tensors have.
template <class T>
int get_vector_size(const PixelShuffleParams& p, const PixelShuffleBackward& t, const PixelUnshuffleTiling& tiling) {
    const int64_t run = tiling.channels < p.C ? p.C : p.C * p.r;
    const auto bits = reinterpret_cast<uintptr_t>(t.grad_y) | reinterpret_cast<uintptr_t>(t.y) |
                      reinterpret_cast<uintptr_t>(t.grad_x);
    int size = 16 / static_cast<int>(sizeof(T));
    while (run % size != 0 || bits % (size * sizeof(T)) != 0) size /= 2;
    return size;
}

template <class T, int V>
void launch(const PixelShuffleParams& p, const PixelShuffleBackward& t, const PixelUnshuffleTiling& tiling, void* stream) {
    using A = compute_t<T>;
    const int taps = p.r * p.r, per_run = tiling.channels * p.r / V;
    const UnshuffleTiles tiles{p.C, p.W, p.B * p.H * p.W, tiling.tiles, p.r, tiling.pixels, tiling.channels,
                               make_divisor(static_cast<uint32_t>(p.W)), make_divisor(per_run * tiling.pixels),
                               make_divisor(per_run), make_divisor(tiling.channels)};
    const int64_t slices = (p.C + tiling.channels - 1) / tiling.channels;
    FASTDS_CHECK(slices <= 65535 && p.W < (int64_t{1} << 30), "pixel_shuffle: more elements than fit into a CUDA grid");
    const int sums = t.grad_bias == nullptr ? 0 : std::max(kUnshuffleThreads, tiling.channels * taps);
    const dim3 grid(static_cast<unsigned>(tiling.parts), static_cast<unsigned>(slices), 1);
    const size_t shared_bytes = (kUnshuffleSlots<T> + sums) * sizeof(A);
    FASTDS_LAUNCH((pixel_unshuffle_kernel<T, V>), grid, kUnshuffleThreads, shared_bytes, stream,
                  static_cast<const T*>(t.grad_y), static_cast<const T*>(t.y), static_cast<T*>(t.grad_x),
                  t.grad_bias == nullptr ? nullptr : static_cast<A*>(t.partials), tiles, make_activation<A>(p));
}

template <class T>
void backward(const PixelShuffleParams& params, const PixelShuffleBackward& t, void* stream) {
    using A = compute_t<T>;
    const PixelUnshuffleTiling tiling = make_pixel_unshuffle_tiling(params);
    const int size = get_vector_size<T>(params, t, tiling);
    if (size == 1) launch<T, 1>(params, t, tiling, stream);
    if (size == 2) launch<T, 2>(params, t, tiling, stream);
    if constexpr (sizeof(T) <= 4)
        if (size == 4) launch<T, 4>(params, t, tiling, stream);
    if constexpr (sizeof(T) == 2)
        if (size == 8) launch<T, 8>(params, t, tiling, stream);
    if (t.grad_bias == nullptr) return;
    const int64_t outputs = params.C * params.r * params.r;
    FASTDS_LAUNCH((pixel_shuffle_sum_kernel<A>), static_cast<unsigned>((outputs + 31) / 32), 32 * kShuffleSumWarps, 0, stream,
                  static_cast<const A*>(t.partials), static_cast<A*>(t.grad_bias), outputs, tiling.parts);
}

}  // namespace

void pixel_shuffle_backward_cuda(const PixelShuffleParams& params, const PixelShuffleBackward& tensors, int device,
                                 void* stream) {
    if (params.B * params.H * params.W == 0) return;
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(params.dtype, backward<scalar>(params, tensors, stream))
}

}  // namespace fastds
