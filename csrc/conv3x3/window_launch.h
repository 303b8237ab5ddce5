// SPDX-License-Identifier: Apache-2.0
// Checks and sizes of a launch for kernels with the products of window_product.cuh. Host only.
#pragma once
#include <algorithm>

#include "conv3x3/window_params.h"
#include "conv3x3/window_product.cuh"
#include "core/launch.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t count_slabs(int64_t channels) { return divide_up(channels, kSlabPacks * kPack); }

// Returns how many warpgroups fit in a block whose shared memory has the weights of `slabs` slabs and the windows of each.
template <class Tile>
int64_t count_fitting_warpgroups(int64_t slabs, int device) {
    return std::max<int64_t>(get_max_shared_bytes(device) - slabs * Tile::kSlabBytes, 0) / (2 * Tile::kWindowBytes);
}

template <class T>
WindowSource make_source(const WindowCall& call, const WindowMap& map) {
    constexpr int64_t size = sizeof(T);
    FASTDS_CHECK(map.channels % kPack == 0 && (map.b | map.h | map.w) % kPack == 0 &&
                     reinterpret_cast<uintptr_t>(map.data) % 16 == 0,
                 "conv3x3: the kernel with a window loads 16 bytes of channels");
    FASTDS_CHECK((call.H * map.h + call.W * map.w) * size <= INT32_MAX && map.h >= 0 && map.w >= 0,
                 "conv3x3: an image is larger than 32-bit positions reach");
    return {static_cast<const char*>(map.data), map.b * size, static_cast<int>(map.h * size), static_cast<int>(map.w * size),
            static_cast<int>(map.channels / kPack)};
}

// Checks a call and sets its arguments.
template <class T>
void set_convolution(WindowConvolution& a, const WindowCall& call) {
    for (int i = 0; i < 2; i++)
        if (call.source[i].channels > 0) a.source[i] = make_source<T>(call, call.source[i]);
    FASTDS_CHECK((call.weight_o | call.weight_tap) % kPack == 0 && reinterpret_cast<uintptr_t>(call.weight) % 16 == 0 &&
                     call.weight_o >= 0 && call.weight_o <= INT32_MAX / 2 && call.weight_tap >= 0 &&
                     call.weight_tap <= INT32_MAX / 32,
                 "conv3x3: the kernel with a window needs weights with contiguous, aligned channels");
    FASTDS_CHECK(call.residual.data == nullptr || ((call.residual.b | call.residual.h | call.residual.w) % 4 == 0 &&
                                                   reinterpret_cast<uintptr_t>(call.residual.data) % 8 == 0),
                 "conv3x3: the kernel with a window loads 8 bytes of the residual");
    FASTDS_CHECK(call.H * call.residual.h + call.W * call.residual.w <= INT32_MAX && call.O <= INT32_MAX / 16,
                 "conv3x3: an image is larger than 32-bit positions reach");
    FASTDS_CHECK(call.bias_dtype == call.dtype || call.bias_dtype == f32, "conv3x3: the bias has another dtype");
    a.weight = static_cast<const char*>(call.weight);
    a.weight_o = static_cast<int>(call.weight_o * sizeof(T)), a.weight_tap = static_cast<int>(call.weight_tap * sizeof(T));
    a.bias = call.bias, a.float_bias = call.bias_dtype == f32;
    a.residual = call.residual.data, a.residual_b = call.residual.b;
    a.residual_h = static_cast<int>(call.residual.h), a.residual_w = static_cast<int>(call.residual.w);
    a.height = static_cast<int>(call.H), a.width = static_cast<int>(call.W), a.outputs = static_cast<int>(call.O);
    a.padding = pad_zeros;
    a.slabs = static_cast<int>(count_slabs(call.source[0].channels + call.source[1].channels));
}

struct WindowLaunch {
    unsigned grid;
    int block, bytes;  // threads, and bytes of shared memory
};

// Divides the tiles among blocks, of which each computes one of `parts` parts of the outputs, with at most `warpgroups`
// warpgroups, and sets the numbers of tiles in the arguments.
template <class Tile>
WindowLaunch divide_tiles(WindowConvolution& a, int64_t images, int64_t parts, int warpgroups, int device) {
    a.tiles_across = static_cast<int>(divide_up(a.width, kTileColumns));
    a.tiles_down = static_cast<int>(divide_up(a.height, Tile::kRows));
    const int64_t tiles = images * a.tiles_across * a.tiles_down;
    FASTDS_CHECK(tiles * parts <= INT32_MAX / 2, "conv3x3: more tiles than fit into a CUDA grid");
    const int64_t shares = std::min(std::max<int64_t>(count_multiprocessors(device) / parts, 1), tiles);
    const int64_t most = std::min<int64_t>(warpgroups, count_fitting_warpgroups<Tile>(a.slabs, device));
    const int used = static_cast<int>(std::min(most, divide_up(tiles, shares)));
    a.tiles = static_cast<int>(tiles), a.shares = static_cast<int>(shares);
    return {static_cast<unsigned>(parts * shares), used * kWarpgroup, a.slabs * Tile::kSlabBytes + used * 2 * Tile::kWindowBytes};
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
