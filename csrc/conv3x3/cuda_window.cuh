// SPDX-License-Identifier: Apache-2.0
// 3x3 convolution of 16-bit maps on tensor cores with a window of the map in shared memory (window_product.cuh). A warp computes
// 16 outputs; its epilogue adds a residual, applies an activation and shuffles pixels.
#pragma once
#include "conv3x3/window_product.cuh"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kMaxWarpgroups = 3;  // of a block: more leave too few registers for a thread
template <int kOutputWarps>
using ConvolutionTile = WindowTile<kOutputWarps, 2>;

struct WindowArguments : WindowConvolution {
    void* y;
    int shuffle, fine;  // fine: channels of y
    float slope;
};

// Order of the outputs: by sub-pixel, so that neighbours in a tile are neighbours in y. Returns the channel of the weight.
__device__ __forceinline__ int get_channel(const WindowArguments& a, int n) {
    if (a.shuffle == 1) return n;
    const int sub = n / a.fine;
    return (n - sub * a.fine) * a.shuffle * a.shuffle + sub;
}

// Place among the rows of the weights of a warp of an output: a lane's results are 4 neighbouring outputs, which mma() gives as
// columns 2 t and 2 t + 1 of two products.
__device__ __forceinline__ int get_output_of_place(int place) { return place / 2 % 4 * 4 + place / 8 * 2 + place % 2; }

// The 4 neighbouring outputs of a lane: their bias and their place.
struct LaneOutputs {
    bool exist;
    int channel;  // of the residual
    int64_t to;   // distance in y from the first channel of the first sub-pixel
    float bias[4];
};

template <class T>
__device__ __forceinline__ LaneOutputs find_outputs(const WindowArguments& a, int n) {
    const int sub = n / a.fine, sub_row = sub / a.shuffle, channel = get_channel(a, n), step = a.shuffle * a.shuffle;
    const int64_t to = (int64_t{sub_row} * a.width * a.shuffle + (sub - sub_row * a.shuffle)) * a.fine + (n - sub * a.fine);
    LaneOutputs outputs{n < a.outputs, channel, to, {0, 0, 0, 0}};
    if (!outputs.exist) return outputs;
#pragma unroll
    for (int i = 0; i < 4; i++) outputs.bias[i] = load_bias<T>(a, channel + i * step);
    return outputs;
}

// Values of the residual, two in a word.
struct LaneResidual {
    uint2 words[kWarpRows][2];
};

template <class T>
__device__ __forceinline__ LaneResidual load_residual(const WindowArguments& a, const LaneOutputs& outputs,
                                                      const LanePixels& pixels) {
    LaneResidual residual{};
    if (a.residual == nullptr || !outputs.exist) return residual;
    const T* const from = static_cast<const T*>(a.residual) + pixels.image * a.residual_b + pixels.row * a.residual_h +
                          pixels.column * a.residual_w + outputs.channel;
#pragma unroll
    for (int r = 0; r < kWarpRows; r++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (pixels.exist(r, half))
                residual.words[r][half] = *reinterpret_cast<const uint2*>(from + r * a.residual_h + 8 * half * a.residual_w);
    return residual;
}

// Writes y = shuffle(act(sums + residual)) for the rows of a warp. The sums include the bias.
template <class T, class Tile>
__device__ __forceinline__ void store_outputs(const WindowArguments& a, const LaneOutputs& outputs, const LanePixels& pixels,
                                              const WarpSums<Tile>& sums, const LaneResidual& residual) {
    if (!outputs.exist) return;
    const int pixel = a.shuffle * a.fine;                      // elements of y for a pixel, in one row of sub-pixels
    const int64_t line = int64_t{a.width} * a.shuffle * pixel;  // for a row of pixels
    T* const to = static_cast<T*>(a.y) + (int64_t{pixels.image} * a.height + pixels.row) * line +
                  int64_t{pixels.column} * pixel + outputs.to;
#pragma unroll
    for (int r = 0; r < kWarpRows; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint2 added = residual.words[r][half];
            float value[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                value[i] = sums.value[r][i / 2][half * 2 + i % 2];
                value[i] += unpack_value<T>(i < 2 ? added.x : added.y, i % 2);
                value[i] = value[i] < 0 ? (a.slope == 0 ? 0 : value[i] * a.slope) : value[i];  // avoids infinity times zero
            }
            const uint64_t low = pack_pair<T>(value[0], value[1]), high = pack_pair<T>(value[2], value[3]);
            if (pixels.exist(r, half)) *reinterpret_cast<uint64_t*>(to + r * line + 8 * half * pixel) = low | high << 32;
        }
}

template <class T, class Tile>
struct ConvolutionEpilogue {
    using Loaded = LaneResidual;
    const WindowArguments& a;
    const int first;  // output of the block
    LaneOutputs outputs;

    __device__ __forceinline__ int get_output(int row) const {
        const int n = first + row / Tile::kWarpOutputs * Tile::kWarpOutputs + get_output_of_place(row % Tile::kWarpOutputs);
        return n < a.outputs ? get_channel(a, n) : -1;
    }
    __device__ __forceinline__ void prepare() {
        const int warp = threadIdx.x % kWarpgroup / 32 / Tile::kRowWarps;
        outputs = find_outputs<T>(a, first + warp * Tile::kWarpOutputs + threadIdx.x % 4 * 4);
    }
    __device__ __forceinline__ void start(WarpSums<Tile>& sums, const LanePixels&) const {
#pragma unroll
        for (int n = 0; n < kWarpRows * 8; n++) sums.value[n / 8][n / 4 % 2][n % 4] = outputs.bias[n / 4 % 2 * 2 + n % 2];
    }
    __device__ __forceinline__ Loaded load(const LanePixels& pixels) const { return load_residual<T>(a, outputs, pixels); }
    __device__ __forceinline__ void finish(const WarpSums<Tile>& sums, const LanePixels& pixels, const Loaded& residual) const {
        store_outputs<T>(a, outputs, pixels, sums, residual);
    }
};

// The block has one to kMaxWarpgroups warpgroups. Dynamic shared memory: see compute_tiles.
template <class T, int kOutputWarps>
__global__ void __launch_bounds__(kMaxWarpgroups * kWarpgroup, 1) conv3x3_window_kernel(const WindowArguments a) {
    using Tile = ConvolutionTile<kOutputWarps>;
    FASTDS_DYNAMIC_SHARED(char, shared);
    ConvolutionEpilogue<T, Tile> epilogue{a, static_cast<int>(blockIdx.x) / a.shares * Tile::kOutputs, {}};
    compute_tiles<T, Tile>(a, shared, epilogue);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
