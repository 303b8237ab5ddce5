// SPDX-License-Identifier: Apache-2.0
#include "conv_rnn/cuda_window.cuh"

#include "conv3x3/window_launch.h"

namespace fastds {

using namespace FASTDS_ISA;

namespace {

template <int gates, int parts, int output_warps>
struct Blocks {
    static constexpr int kGates = gates, kParts = parts, kOutputWarps = output_warps;
    using Tile = WindowTile<kOutputWarps, kGates * kParts>;
    static constexpr int kChannels = Tile::kOutputs / kGates;
};

int count_gates(GateFormula formula) {
    switch (formula) {
#define FASTDS_CASE(name, type, first, gates) \
    case GateFormula::name: return gates;
        FASTDS_WINDOW_GATES(FASTDS_CASE)
#undef FASTDS_CASE
        default: return 0;
    }
}

// Calls f with the blocks that fit and compute the fewest channels; of two, those with more warpgroups, or the first. Returns
// false if none fits.
template <class F>
bool select_blocks(int64_t inputs, int64_t channels, int gates, int device, const F& f) {
    const int64_t slabs = count_slabs(inputs);
    int64_t least = 0, most = 0;
    int selected = -1, index = 0;
#define FASTDS_CONSIDER(g, parts, warps)                                                                                   \
    if (g == gates) {                                                                                                      \
        using B = Blocks<g, parts, warps>;                                                                                 \
        const int64_t padded = divide_up(channels, B::kChannels) * B::kChannels;                                           \
        const int64_t fitting = std::min<int64_t>(count_fitting_warpgroups<B::Tile>(slabs, device), kMaxCellWarpgroups);    \
        if (fitting > 0 && (selected < 0 || padded < least || (padded == least && fitting > most)))                        \
            selected = index, least = padded, most = fitting;                                                              \
    }                                                                                                                      \
    index++;
    FASTDS_CELL_BLOCKS(FASTDS_CONSIDER)
#undef FASTDS_CONSIDER
    index = 0;
#define FASTDS_CALL(g, parts, warps) \
    if (index++ == selected) f(Blocks<g, parts, warps>{});
    FASTDS_CELL_BLOCKS(FASTDS_CALL)
#undef FASTDS_CALL
    return selected >= 0;
}

template <class T>
CellArguments make_arguments(const ConvGatesWindow& call) {
    CellArguments a{};
    set_convolution<T>(a, call);
    FASTDS_CHECK(call.C % kPack == 0 && call.O == call.C * count_gates(call.formula),
                 "conv_gates: the kernel with a window needs multiples of 8 channels for each gate");
    FASTDS_CHECK((kWarpRows * call.W + kTileColumns) * call.O * int64_t{sizeof(float)} <= INT32_MAX,
                 "conv_gates: an image is larger than 32-bit positions reach");
    a.formula = call.formula, a.option = call.option, a.slope = call.slope;
    a.channels = static_cast<int>(call.C);
    for (int k = 0; k < kWindowOperands; k++) {
        const WindowMap& map = call.other[k];
        const int64_t item = call.is_float32[k] ? sizeof(float) : sizeof(T);
        FASTDS_CHECK((map.b | map.h | map.w) % 2 == 0 && reinterpret_cast<uintptr_t>(map.data) % 8 == 0 && map.h >= 0 &&
                         map.w >= 0 && (call.H * map.h + call.W * map.w) * item <= INT32_MAX,
                     "conv_gates: the kernel with a window loads two channels of an operand at once");
        a.other[k] = {static_cast<const char*>(map.data), map.b * item, static_cast<int>(map.h * item),
                      static_cast<int>(map.w * item), static_cast<int>(item)};
        const WindowResult& result = call.result[k];
        a.result[k] = {static_cast<char*>(result.data), static_cast<int>(result.is_float32 ? sizeof(float) : sizeof(T))};
    }
    a.pre = static_cast<char*>(call.pre);
    return a;
}

template <class T, int kGates, int kParts, int kOutputWarps>
void launch(CellArguments a, int64_t images, int device, void* stream) {
    using B = Blocks<kGates, kParts, kOutputWarps>;
    const auto kernel = conv_gates_window_kernel<T, kGates, kParts, kOutputWarps>;
    FASTDS_CHECK(get_compiled_capability(kernel) >= 80, "conv_gates: the kernel with a window needs compute capability 8.0");
    const int64_t parts = divide_up(a.channels, B::kChannels);
    const WindowLaunch size = divide_tiles<typename B::Tile>(a, images, parts, kMaxCellWarpgroups, device);
    allow_shared_bytes(kernel, size.bytes);
    FASTDS_LAUNCH((conv_gates_window_kernel<T, kGates, kParts, kOutputWarps>), size.grid, size.block, size.bytes, stream, a);
}

template <class T>
void run(const ConvGatesWindow& call, int device, void* stream) {
    const int64_t inputs = call.source[0].channels + call.source[1].channels;
    const CellArguments a = make_arguments<T>(call);
    const bool fits = select_blocks(inputs, call.C, count_gates(call.formula), device, [&](auto blocks) {
        using B = decltype(blocks);
        launch<T, B::kGates, B::kParts, B::kOutputWarps>(a, call.B, device, stream);
    });
    FASTDS_CHECK(fits, "conv_gates: conv_gates_window_fits is false for this call");
}

}  // namespace

bool conv_gates_window_fits(int64_t inputs, int64_t channels, int gates, int device) {
    const DeviceGuard guard(device);
    return select_blocks(inputs, channels, gates, device, [](auto) {});
}

void conv_gates_window_cuda(const ConvGatesWindow& call, int device, void* stream) {
    const DeviceGuard guard(device);
    if (call.dtype == f16)
        run<Half>(call, device, stream);
    else
        run<BFloat16>(call, device, stream);
}

}  // namespace fastds
