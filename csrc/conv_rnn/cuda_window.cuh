// SPDX-License-Identifier: Apache-2.0
// Steps of recurrent cells in 16 bits on tensor cores: a 3x3 convolution with a window of the map in shared memory
// (conv3x3/window_product.cuh), and a formula of csrc/gates as its epilogue.
//
// A warp computes all gates of the same 8, 16 or 24 channels. A product has 8 channels of one gate, so that a lane has all gates of
// two neighbouring channels at its pixels, and the formula needs no exchange between lanes.
#pragma once
#include "conv3x3/window_product.cuh"
#include "conv_rnn/window_params.h"
#include "core/fast_math.cuh"
#include "gates/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kMaxCellWarpgroups = 2;  // of a block: the sums of four gates need up to 255 registers

// Blocks that are compiled: gates, times 8 channels of a warp, and kOutputWarps of WindowTile. A warp has at least two products,
// because shared memory is read for its rows of pixels once.
#define FASTDS_CELL_BLOCKS(X) X(4, 1, 2) X(4, 1, 1) X(3, 1, 2) X(3, 1, 1) X(2, 2, 1) X(2, 1, 1) X(1, 3, 1) X(1, 2, 1)

// An input that the convolution does not compute; sizes in bytes.
struct CellMap {
    const char* data;
    int64_t b;
    int h, w, item;  // item: size of an element, 4 for float32
};

struct CellResult {
    char* data;
    int item;
};

struct CellArguments : WindowConvolution {
    GateFormula formula;
    float option, slope;
    int channels;
    CellMap other[kWindowOperands];
    CellResult result[kWindowOperands];
    char* pre;
};

// Two neighbouring channels of an input: two floats, or one word of 16-bit values.
__device__ __forceinline__ uint2 load_pair(const CellMap& map, const char* from) {
    if (map.item == sizeof(float)) return *reinterpret_cast<const uint2*>(from);
    return {*reinterpret_cast<const uint32_t*>(from), 0};
}
template <class T>
__device__ __forceinline__ float unpack_pair(const CellMap& map, const uint2& words, int i) {
    return map.item == sizeof(float) ? bits_to_float(i == 0 ? words.x : words.y) : unpack_value<T>(words.x, i);
}
template <class T>
__device__ __forceinline__ void store_pair(char* to, int item, float first, float second) {
    if (item == sizeof(float))
        *reinterpret_cast<float2*>(to) = make_float2(first, second);
    else
        *reinterpret_cast<uint32_t*>(to) = pack_pair<T>(first, second);
}

// The epilogue of a cell with kGates gates, see compute_tiles. Product n of a warp has gate n % kGates of 8 channels.
template <class T, class Tile, int kGates>
struct CellEpilogue {
    static constexpr int kParts = Tile::kProducts / kGates;  // times 8 channels of a warp
    static constexpr int kOthers = kGates == 1 ? 2 : 1;
    struct Loaded {
        uint2 other[kOthers][kWarpRows][2][kParts];
    };
    const CellArguments& a;
    const int first;  // channel of the block
    int channel;      // of the lane
    float bias[Tile::kProducts][2];

    __device__ __forceinline__ static int get_first_channel(int warp) { return warp * (kParts * kProductOutputs); }
    __device__ __forceinline__ bool exists(int part) const { return channel + part * kProductOutputs < a.channels; }

    __device__ __forceinline__ int get_output(int row) const {
        const int n = row / kProductOutputs % Tile::kProducts, part = n / kGates, gate = n % kGates;
        const int c = first + get_first_channel(row / Tile::kWarpOutputs) + part * kProductOutputs + row % kProductOutputs;
        return c < a.channels ? gate * a.channels + c : -1;
    }

    __device__ __forceinline__ void prepare() {
        channel = first + get_first_channel(threadIdx.x % kWarpgroup / 32 / Tile::kRowWarps) + threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < Tile::kProducts; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int output = n % kGates * a.channels + channel + n / kGates * kProductOutputs + i;
                bias[n][i] = exists(n / kGates) ? load_bias<T>(a, output) : 0;
            }
    }

    // The sums begin with the bias and the residual.
    __device__ __forceinline__ void start(WarpSums<Tile>& sums, const LanePixels& pixels) const {
        const T* const from = static_cast<const T*>(a.residual) + pixels.image * a.residual_b + pixels.row * a.residual_h +
                              pixels.column * a.residual_w + channel;
#pragma unroll
        for (int r = 0; r < kWarpRows; r++)
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int n = 0; n < Tile::kProducts; n++) {
                    uint32_t added = 0;
                    if (a.residual != nullptr && exists(n / kGates) && pixels.exist(r, half)) {
                        const int gate = n % kGates * a.channels + n / kGates * kProductOutputs;
                        added = *reinterpret_cast<const uint32_t*>(from + r * a.residual_h + 8 * half * a.residual_w + gate);
                    }
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        sums.value[r][n][half * 2 + i] = bias[n][i] + unpack_value<T>(added, i);
                }
    }

    __device__ __forceinline__ Loaded load(const LanePixels& pixels) const {
        Loaded loaded{};
#pragma unroll
        for (int k = 0; k < kOthers; k++) {
            const CellMap& map = a.other[k];
            if (map.data == nullptr) continue;
            const int at = pixels.row * map.h + pixels.column * map.w + channel * map.item;
            const char* const from = map.data + pixels.image * map.b + at;
#pragma unroll
            for (int r = 0; r < kWarpRows; r++)
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int part = 0; part < kParts; part++)
                        if (exists(part) && pixels.exist(r, half))
                            loaded.other[k][r][half][part] = load_pair(
                                map, from + r * map.h + 8 * half * map.w + part * kProductOutputs * map.item);
        }
        return loaded;
    }

    __device__ __forceinline__ void finish(const WarpSums<Tile>& sums, const LanePixels& pixels, const Loaded& loaded) const {
        switch (a.formula) {
#define FASTDS_CASE(name, formula, first_gate, gates)                                               \
    case GateFormula::name:                                                                          \
        if constexpr (gates == kGates) apply<formula, first_gate>(sums, pixels, loaded);             \
        break;
            FASTDS_WINDOW_GATES(FASTDS_CASE)
#undef FASTDS_CASE
            default: break;
        }
    }

    // Computes the formula, whose inputs [kFirst, kFirst + kGates) are the sums, and writes its results.
    template <class Formula, int kFirst>
    __device__ __forceinline__ void apply(const WarpSums<Tile>& sums, const LanePixels& pixels, const Loaded& loaded) const {
        const GateOptions<float> options{a.option, a.slope};
        const int64_t pixel = (int64_t{pixels.image} * a.height + pixels.row) * a.width + pixels.column;
        char* const pre = a.pre + (pixel * a.outputs + channel) * sizeof(T);
        char* result[Formula::outputs];
        for (int k = 0; k < Formula::outputs; k++)
            result[k] = a.result[k].data + (pixel * a.channels + channel) * a.result[k].item;
#pragma unroll
        for (int part = 0; part < kParts; part++) {
            if (!exists(part)) return;
#pragma unroll
            for (int r = 0; r < kWarpRows; r++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float out[Formula::outputs][2];
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        FastFloat in[Formula::inputs], results[Formula::outputs];
#pragma unroll
                        for (int k = 0; k < Formula::inputs; k++) {
                            const int other = k < kFirst ? k : k < kFirst + kGates ? 0 : k - kGates;
                            if (kFirst <= k && k < kFirst + kGates)
                                in[k] = sums.value[r][part * kGates + k - kFirst][half * 2 + i];
                            else
                                in[k] = unpack_pair<T>(a.other[other], loaded.other[other][r][half][part], i);
                        }
                        Formula::template apply<float>(in, results, options);
#pragma unroll
                        for (int k = 0; k < Formula::outputs; k++) out[k][i] = results[k].value;
                    }
                    if (!pixels.exist(r, half)) continue;
                    const int at = r * a.width + 8 * half;  // from the first pixel
                    if (a.pre != nullptr) {
#pragma unroll
                        for (int gate = 0; gate < kGates; gate++) {
                            const float(&sum)[4] = sums.value[r][part * kGates + gate];
                            const int distance = at * a.outputs + gate * a.channels + part * kProductOutputs;
                            store_pair<T>(pre + distance * int{sizeof(T)}, sizeof(T), sum[half * 2], sum[half * 2 + 1]);
                        }
                    }
#pragma unroll
                    for (int k = 0; k < Formula::outputs; k++) {
                        const int item = a.result[k].item, distance = at * a.channels + part * kProductOutputs;
                        store_pair<T>(result[k] + distance * item, item, out[k][0], out[k][1]);
                    }
                }
        }
    }
};

// The block has one or two warpgroups. Dynamic shared memory: see compute_tiles.
template <class T, int kGates, int kParts, int kOutputWarps>
__global__ void __launch_bounds__(kMaxCellWarpgroups * kWarpgroup, 1) conv_gates_window_kernel(const CellArguments a) {
    using Tile = WindowTile<kOutputWarps, kGates * kParts>;
    FASTDS_DYNAMIC_SHARED(char, shared);
    const int first = static_cast<int>(blockIdx.x) / a.shares * (Tile::kOutputs / kGates);
    CellEpilogue<T, Tile, kGates> epilogue{a, first, 0, {}};
    compute_tiles<T, Tile>(a, shared, epilogue);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
