// SPDX-License-Identifier: Apache-2.0
#include "conv3x3/cuda_window.cuh"

#include <algorithm>

namespace fastds {

using namespace FASTDS_ISA;

namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t count_slabs(int64_t channels) { return divide_up(channels, kSlabPacks * kPack); }

template <class Tile>
bool fits(int64_t slabs, int device) {
    return slabs * Tile::kSlabBytes + 2 * Tile::kWindowBytes <= get_max_shared_bytes(device);
}

// Returns 4, 2 or 1 for blocks of 64, 32 or 16 outputs, whichever fits and computes the fewest columns, or 0 if none fits.
int select_output_warps(int64_t channels, int64_t outputs, int device) {
    const int64_t slabs = count_slabs(channels);
    const auto padded = [&](int64_t warps) { return divide_up(outputs, warps * kWarpOutputs) * warps; };
    int best = 0;
    const auto consider = [&](int warps, bool fits) {
        if (fits && (best == 0 || padded(warps) < padded(best))) best = warps;
    };
    consider(4, fits<WindowTile<4>>(slabs, device));
    consider(2, fits<WindowTile<2>>(slabs, device));
    consider(1, fits<WindowTile<1>>(slabs, device));
    return best;
}

template <class T>
WindowSource make_source(const Conv3x3Window& call, const WindowMap& map) {
    constexpr int64_t size = sizeof(T);
    FASTDS_CHECK(map.channels % kPack == 0 && (map.b | map.h | map.w) % kPack == 0 &&
                     reinterpret_cast<uintptr_t>(map.data) % 16 == 0,
                 "conv3x3: the kernel with a window loads 16 bytes of channels");
    FASTDS_CHECK((call.H * map.h + call.W * map.w) * size <= INT32_MAX && map.h >= 0 && map.w >= 0,
                 "conv3x3: an image is larger than 32-bit positions reach");
    return {static_cast<const char*>(map.data), map.b * size, static_cast<int>(map.h * size), static_cast<int>(map.w * size),
            static_cast<int>(map.channels / kPack)};
}

template <class T>
WindowArguments make_arguments(const Conv3x3Window& call) {
    WindowArguments a{};
    for (int i = 0; i < 2; i++)
        if (call.source[i].channels > 0) a.source[i] = make_source<T>(call, call.source[i]);
    FASTDS_CHECK((call.weight_o | call.weight_tap) % kPack == 0 && reinterpret_cast<uintptr_t>(call.weight) % 16 == 0 &&
                     call.weight_o >= 0 && call.weight_o <= INT32_MAX / 2 && call.weight_tap >= 0 &&
                     call.weight_tap <= INT32_MAX / 32,
                 "conv3x3: the kernel with a window needs weights with contiguous, aligned channels");
    FASTDS_CHECK(call.O % (kPack * call.shuffle * call.shuffle) == 0, "conv3x3: the channels of y must be a multiple of 8");
    FASTDS_CHECK(call.residual.data == nullptr || ((call.residual.b | call.residual.h | call.residual.w) % 4 == 0 &&
                                                   reinterpret_cast<uintptr_t>(call.residual.data) % 8 == 0),
                 "conv3x3: the kernel with a window loads 8 bytes of the residual");
    FASTDS_CHECK(call.H * call.residual.h + call.W * call.residual.w <= INT32_MAX && call.O <= INT32_MAX / 16,
                 "conv3x3: an image is larger than 32-bit positions reach");
    FASTDS_CHECK(call.residual.data == nullptr || call.shuffle == 1, "conv3x3: the kernel with a window shuffles no residual");
    FASTDS_CHECK((call.mode_h == pad_zeros) == (call.mode_w == pad_zeros) && call.mode_h != pad_wrap, "conv3x3: no such padding");
    FASTDS_CHECK(call.bias_dtype == call.dtype || call.bias_dtype == f32, "conv3x3: the bias has another dtype");
    a.weight = static_cast<const char*>(call.weight);
    a.weight_o = static_cast<int>(call.weight_o * sizeof(T)), a.weight_tap = static_cast<int>(call.weight_tap * sizeof(T));
    a.bias = call.bias, a.float_bias = call.bias_dtype == f32;
    a.residual = call.residual.data, a.residual_b = call.residual.b;
    a.residual_h = static_cast<int>(call.residual.h), a.residual_w = static_cast<int>(call.residual.w);
    a.y = call.y;
    a.height = static_cast<int>(call.H), a.width = static_cast<int>(call.W), a.outputs = static_cast<int>(call.O);
    a.padding = call.mode_w;
    a.shuffle = static_cast<int>(call.shuffle), a.fine = a.outputs / (a.shuffle * a.shuffle);
    a.slope = call.slope;
    a.slabs = static_cast<int>(count_slabs(call.source[0].channels + call.source[1].channels));
    return a;
}

template <class T, int kOutputWarps>
void launch(WindowArguments a, int64_t images, int device, void* stream) {
    using Tile = WindowTile<kOutputWarps>;
    const auto kernel = conv3x3_window_kernel<T, kOutputWarps>;
    FASTDS_CHECK(get_compiled_capability(kernel) >= 80, "conv3x3: the kernel with a window needs compute capability 8.0");
    a.tiles_across = static_cast<int>(divide_up(a.width, kTileColumns));
    a.tiles_down = static_cast<int>(divide_up(a.height, Tile::kRows));
    const int64_t tiles = images * a.tiles_across * a.tiles_down, parts = divide_up(a.outputs, Tile::kOutputs);
    FASTDS_CHECK(tiles * parts <= INT32_MAX / 2, "conv3x3: more tiles than fit into a CUDA grid");
    const int64_t shares = std::min(std::max<int64_t>(count_multiprocessors(device) / parts, 1), tiles);
    const int weights = a.slabs * Tile::kSlabBytes, windows = 2 * Tile::kWindowBytes;
    const int64_t most = std::min<int64_t>(kMaxWarpgroups, (get_max_shared_bytes(device) - weights) / windows);
    const int warpgroups = static_cast<int>(std::min(most, divide_up(tiles, shares)));
    a.tiles = static_cast<int>(tiles), a.shares = static_cast<int>(shares);
    const int bytes = weights + warpgroups * windows;
    allow_shared_bytes(kernel, bytes);
    FASTDS_LAUNCH((conv3x3_window_kernel<T, kOutputWarps>), static_cast<unsigned>(parts * shares), warpgroups * kWarpgroup, bytes,
                  stream, a);
}

template <class T>
void run(const Conv3x3Window& call, int device, void* stream) {
    const int64_t channels = call.source[0].channels + call.source[1].channels;
    const WindowArguments a = make_arguments<T>(call);
    switch (select_output_warps(channels, call.O, device)) {
        case 4: return launch<T, 4>(a, call.B, device, stream);
        case 2: return launch<T, 2>(a, call.B, device, stream);
        case 1: return launch<T, 1>(a, call.B, device, stream);
        default: FASTDS_CHECK(false, "conv3x3: conv3x3_window_fits is false for this call");
    }
}

}  // namespace

bool conv3x3_window_fits(int64_t channels, int64_t outputs, int device) {
    const DeviceGuard guard(device);
    return select_output_warps(channels, outputs, device) != 0;
}

void conv3x3_window_cuda(const Conv3x3Window& call, int device, void* stream) {
    FASTDS_CHECK(call.dtype == f16 || call.dtype == bf16, "conv3x3: the kernel with a window has no other dtype than 16 bits");
    const DeviceGuard guard(device);
    if (call.dtype == f16)
        run<Half>(call, device, stream);
    else
        run<BFloat16>(call, device, stream);
}

}  // namespace fastds
