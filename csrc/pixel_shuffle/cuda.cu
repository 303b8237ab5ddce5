// SPDX-License-Identifier: Apache-2.0
#include "core/launch.h"
#include "pixel_shuffle/cuda.cuh"
#include "pixel_shuffle/params.h"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

struct Cut {
    ShuffleTiles tiles;
    dim3 grid;
};

Cut cut(const PixelShuffleParams& p) {
    const int taps = p.r * p.r, widest = kShuffleTile / taps;
    const int channels = p.C < widest ? static_cast<int>(p.C) : widest;
    const int pixels = kShuffleTile / (channels * taps);
    const ShuffleTiles tiles{p.C, p.W, p.B * p.H * p.W, p.r, pixels, channels};
    const int64_t x = (tiles.total + pixels - 1) / pixels, y = (p.C + channels - 1) / channels;
    FASTDS_CHECK(x <= INT32_MAX && y <= 65535, "pixel_shuffle: more elements than one CUDA grid holds");
    return {tiles, dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), 1)};
}

template <class T>
void forward(const PixelShuffleParams& params, const PixelShuffleForward& t, void* stream) {
    const Cut c = cut(params);
    FASTDS_LAUNCH((pixel_shuffle_kernel<T>), c.grid, kShuffleThreads, 0, stream, static_cast<const T*>(t.x),
                  static_cast<const compute_t<T>*>(t.bias), static_cast<T*>(t.y), c.tiles,
                  activation<compute_t<T>>(params));
}

template <class T>
void backward(const PixelShuffleParams& params, const PixelShuffleBackward& t, void* stream) {
    using A = compute_t<T>;
    const Cut c = cut(params);
    const auto act = activation<A>(params);
    const T *grad_y = static_cast<const T*>(t.grad_y), *y = static_cast<const T*>(t.y);
    if (t.grad_x != nullptr)
        FASTDS_LAUNCH((pixel_unshuffle_kernel<T>), c.grid, kShuffleThreads, 0, stream, grad_y, y,
                      static_cast<T*>(t.grad_x), c.tiles, act);
    if (t.grad_bias == nullptr) return;
    const int64_t outputs = params.C * params.r * params.r, pieces = pixel_shuffle_partials(params);
    const auto blocks = static_cast<unsigned>((outputs + kShuffleThreads - 1) / kShuffleThreads);
    A* partials = static_cast<A*>(t.partials);
    FASTDS_LAUNCH((pixel_shuffle_bias_kernel<T>), dim3(blocks, static_cast<unsigned>(pieces), 1), kShuffleThreads, 0, stream,
                  grad_y, y, partials, c.tiles, act);
    FASTDS_LAUNCH((pixel_shuffle_sum_kernel<A>), blocks, kShuffleThreads, 0, stream, partials, static_cast<A*>(t.grad_bias),
                  outputs, pieces);
}

}  // namespace

void pixel_shuffle_forward_cuda(const PixelShuffleParams& params, const PixelShuffleForward& tensors, int device,
                                void* stream) {
    if (params.B * params.H * params.W == 0) return;
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(params.dtype, forward<scalar>(params, tensors, stream))
}

void pixel_shuffle_backward_cuda(const PixelShuffleParams& params, const PixelShuffleBackward& tensors, int device,
                                 void* stream) {
    if (params.B * params.H * params.W == 0) return;
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(params.dtype, backward<scalar>(params, tensors, stream))
}

}  // namespace fastds
