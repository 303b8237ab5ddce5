// SPDX-License-Identifier: Apache-2.0
#include "conv3x3/cuda_window.cuh"
#include "conv3x3/window_launch.h"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

// Returns 4, 2 or 1 for blocks of 64, 32 or 16 outputs, whichever fits and computes the fewest columns, or 0 if none fits.
int select_output_warps(int64_t channels, int64_t outputs, int device) {
    const int64_t slabs = count_slabs(channels);
    const auto padded = [&](int64_t warps) { return divide_up(outputs, warps * ConvolutionTile<1>::kOutputs) * warps; };
    int best = 0;
    const auto consider = [&](int warps, int64_t warpgroups) {
        if (warpgroups > 0 && (best == 0 || padded(warps) < padded(best))) best = warps;
    };
    consider(4, count_fitting_warpgroups<ConvolutionTile<4>>(slabs, device));
    consider(2, count_fitting_warpgroups<ConvolutionTile<2>>(slabs, device));
    consider(1, count_fitting_warpgroups<ConvolutionTile<1>>(slabs, device));
    return best;
}

template <class T>
WindowArguments make_arguments(const Conv3x3Window& call) {
    WindowArguments a{};
    set_convolution<T>(a, call);
    FASTDS_CHECK(call.O % (kPack * call.shuffle * call.shuffle) == 0, "conv3x3: the channels of y must be a multiple of 8");
    FASTDS_CHECK(call.residual.data == nullptr || call.shuffle == 1, "conv3x3: the kernel with a window shuffles no residual");
    FASTDS_CHECK((call.mode_h == pad_zeros) == (call.mode_w == pad_zeros) && call.mode_h != pad_wrap, "conv3x3: no such padding");
    a.padding = call.mode_w;
    a.y = call.y;
    a.shuffle = static_cast<int>(call.shuffle), a.fine = a.outputs / (a.shuffle * a.shuffle);
    a.slope = call.slope;
    return a;
}

template <class T, int kOutputWarps>
void launch(WindowArguments a, int64_t images, int device, void* stream) {
    using Tile = ConvolutionTile<kOutputWarps>;
    const auto kernel = conv3x3_window_kernel<T, kOutputWarps>;
    FASTDS_CHECK(get_compiled_capability(kernel) >= 80, "conv3x3: the kernel with a window needs compute capability 8.0");
    const WindowLaunch size = divide_tiles<Tile>(a, images, divide_up(a.outputs, Tile::kOutputs), kMaxWarpgroups, device);
    allow_shared_bytes(kernel, size.bytes);
    FASTDS_LAUNCH((conv3x3_window_kernel<T, kOutputWarps>), size.grid, size.block, size.bytes, stream, a);
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
    const DeviceGuard guard(device);
    if (call.dtype == f16)
        run<Half>(call, device, stream);
    else
        run<BFloat16>(call, device, stream);
}

}  // namespace fastds
