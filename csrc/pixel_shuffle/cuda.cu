// SPDX-License-Identifier: Apache-2.0
#include <initializer_list>
#include <type_traits>

#include "core/launch.h"
#include "pixel_shuffle/cuda.cuh"
#include "pixel_shuffle/params.h"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

struct TileGrid {
    ShuffleTiles tiles;
    dim3 grid;
};

TileGrid make_tile_grid(const PixelShuffleParams& p) {
    const int taps = p.r * p.r, widest = kShuffleTile / taps;
    const int channels = p.C < widest ? static_cast<int>(p.C) : widest;
    const int pixels = kShuffleTile / (channels * taps);
    const ShuffleTiles tiles{p.C, p.W, p.B * p.H * p.W, p.r, pixels, channels};
    const int64_t x = (tiles.total + pixels - 1) / pixels, y = (p.C + channels - 1) / channels;
    FASTDS_CHECK(x <= INT32_MAX && y <= 65535, "pixel_shuffle: more elements than fit into a CUDA grid");
    return {tiles, dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), 1)};
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Returns the work of each thread for the register kernels, or an empty value if the tensors do not consist of aligned groups
// of 16 bytes of channels.
template <class T>
ShuffleRuns make_runs(const PixelShuffleParams& p, std::initializer_list<const void*> tensors) {
    const int64_t total = p.B * p.H * p.W * p.C / kShuffleRun<T>;
    if (p.C % kShuffleRun<T> != 0 || p.r > kShuffleMaxFactor || total > INT32_MAX) return {};
    for (const void* data : tensors)
        if (!aligned(data)) return {};
    return {static_cast<uint32_t>(p.C), static_cast<uint32_t>(p.W), static_cast<uint32_t>(total),
            static_cast<uint32_t>(p.C / kShuffleRun<T>)};
}

// Calls f with the factor r as a compile-time constant.
template <class F>
void dispatch_factor(int r, const F& f) {
    switch (r) {
        case 1: return f(std::integral_constant<int, 1>());
        case 2: return f(std::integral_constant<int, 2>());
        case 3: return f(std::integral_constant<int, 3>());
        default: return f(std::integral_constant<int, kShuffleMaxFactor>());
    }
}

unsigned count_blocks(const ShuffleRuns& runs) { return (runs.total + kShuffleThreads - 1) / kShuffleThreads; }

template <class T>
void forward(const PixelShuffleParams& params, const PixelShuffleForward& t, void* stream) {
    if constexpr (sizeof(T) <= 4) {
        const ShuffleRuns runs = make_runs<T>(params, {t.x, t.y, t.bias});
        if (runs.total != 0)
            return dispatch_factor(params.r, [&](auto r) {
                FASTDS_LAUNCH((pixel_shuffle_run_kernel<T, r.value>), count_blocks(runs), kShuffleThreads, 0, stream,
                              static_cast<const T*>(t.x), static_cast<const compute_t<T>*>(t.bias),
                              static_cast<T*>(t.y), runs, make_activation<compute_t<T>>(params));
            });
    }
    const TileGrid c = make_tile_grid(params);
    FASTDS_LAUNCH((pixel_shuffle_kernel<T>), c.grid, kShuffleThreads, 0, stream, static_cast<const T*>(t.x),
                  static_cast<const compute_t<T>*>(t.bias), static_cast<T*>(t.y), c.tiles,
                  make_activation<compute_t<T>>(params));
}

}  // namespace

void pixel_shuffle_forward_cuda(const PixelShuffleParams& params, const PixelShuffleForward& tensors, int device,
                                void* stream) {
    if (params.B * params.H * params.W == 0) return;
    const DeviceGuard guard(device);
    FASTDS_DTYPE_SWITCH(params.dtype, forward<scalar>(params, tensors, stream))
}

}  // namespace fastds
