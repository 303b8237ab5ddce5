// SPDX-License-Identifier: Apache-2.0
// 3x3 convolution of 16-bit maps on tensor cores: an implicit matrix product with a window of the map in shared memory.
//
// A warpgroup (four warps) computes tiles of output pixels. It copies the window of a tile, its pixels and a border, to shared
// memory once, and reads the operands of all nine taps from there. The window of the next tile, or of the next 64 channels, is
// copied during the products, so that one barrier of the warpgroup is needed for a window. The warpgroups of a block share the
// weights of some outputs, which stay in shared memory, and do not wait for each other.
//
// A warp computes 4 rows of 16 pixels and 16 outputs. Rows of pixels that it loads from the window serve the three taps of a
// column, so that shared memory is read for 9 loads of matrices in 24 products.
#pragma once
#include "conv3x3/params.h"
#include "conv3x3/window_params.h"
#include "core/mma.h"
#include "core/pipeline.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kWarpgroup = 128;            // threads
constexpr int kMaxWarpgroups = 3;          // of a block: more leave too few registers for a thread
constexpr int kWarpRows = 4, kTileColumns = 16, kWarpOutputs = 16;
constexpr int kWindowColumns = kTileColumns + 2;
constexpr int kPack = 8;                   // channels of 16 bytes
constexpr int kSlabPacks = 8;              // packs of a window; more channels are computed in slabs
constexpr int kPixelBytes = 16 * 9;        // of a window: an odd number of packs, for 8 pixels of a load in different banks
constexpr int kWeightBytes = 16 * kSlabPacks;  // of a slab, for a tap and an output

// Sizes of a tile. The four warps of a warpgroup are kOutputWarps parts of the outputs and 4 / kOutputWarps parts of the rows.
template <int kOutputWarps>
struct WindowTile {
    static constexpr int kRowWarps = 4 / kOutputWarps;
    static constexpr int kRows = kRowWarps * kWarpRows, kOutputs = kOutputWarps * kWarpOutputs;
    static constexpr int kWindowPixels = (kRows + 2) * kWindowColumns;
    static constexpr int kWindowBytes = kWindowPixels * kPixelBytes;
    static constexpr int kSlabBytes = 9 * kOutputs * kWeightBytes;  // of the weights
};

// A source; strides in bytes.
struct WindowSource {
    const char* data;
    int64_t b;
    int h, w, packs;
};

struct WindowArguments {
    WindowSource source[2];
    const char* weight;
    int weight_o, weight_tap;  // in bytes
    const void* bias;
    bool float_bias;
    const void* residual;
    int64_t residual_b;
    int residual_h, residual_w;  // in elements
    void* y;
    int height, width, outputs;
    int padding;        // Conv3x3Padding of the columns
    int shuffle, fine;  // fine: channels of y
    float slope;
    int slabs;
    int tiles_across, tiles_down, tiles;
    int shares;  // blocks for the same outputs, which share the tiles
};

// Order of the outputs: by sub-pixel, so that neighbours in a tile are neighbours in y. Returns the channel of the weight.
__device__ __forceinline__ int get_channel(const WindowArguments& a, int n) {
    if (a.shuffle == 1) return n;
    const int sub = n / a.fine;
    return (n - sub * a.fine) * a.shuffle * a.shuffle + sub;
}

struct TilePosition {
    int image, row, column;
};

template <class Tile>
__device__ __forceinline__ TilePosition find_tile(const WindowArguments& a, int tile) {
    const int line = tile / a.tiles_across, image = line / a.tiles_down;
    return {image, (line - image * a.tiles_down) * Tile::kRows, (tile - line * a.tiles_across) * kTileColumns};
}

// A row or column of the map for a row or column of a window, which may be outside the image.
struct MapLine {
    int distance;  // in bytes, of the nearest one inside
    bool inside;

    __device__ __forceinline__ MapLine(int at, int size, int stride, bool wrap) : inside(0 <= at && at < size) {
        if (wrap) at += at < 0 ? size : at >= size ? -size : 0;
        distance = min(max(at, 0), size - 1) * stride;
    }
};

// Starts the copy of a slab of the window of a tile by the threads of a warpgroup. A thread copies one pack of a column of
// pixels, and of some pixels of the last two columns. If the number of packs is odd, the pack after the last one is zeros,
// because a product has 16 channels. Pixels outside the image are zeros or the nearest pixels.
template <class Tile>
__device__ __forceinline__ void copy_window(const WindowArguments& a, char* window, const TilePosition& at, int slab) {
    const int thread = threadIdx.x % kWarpgroup, column = thread / kSlabPacks, pack = slab * kSlabPacks + thread % kSlabPacks;
    const int packs = a.source[0].packs + a.source[1].packs;
    if (pack >= (packs + 1) / 2 * 2) return;
    const bool exists = pack < packs, first = pack < a.source[0].packs, wrap = a.padding == pad_wrap;
    const WindowSource& source = a.source[exists && !first ? 1 : 0];
    const char* const image = source.data + at.image * source.b + (!exists ? 0 : first ? pack : pack - a.source[0].packs) * 16;
    char* const to = window + thread % kSlabPacks * 16;
    const auto copy_pixel = [&](int r, int c, const MapLine& row, const MapLine& column) {
        const bool valid = exists && (a.padding != pad_zeros || (row.inside && column.inside));
        copy_async(to + (r * kWindowColumns + c) * kPixelBytes, image + row.distance + column.distance, valid);
    };
    const MapLine own(at.column + column - 1, a.width, source.w, wrap);
#pragma unroll
    for (int r = 0; r < Tile::kRows + 2; r++)
        copy_pixel(r, column, MapLine(at.row + r - 1, a.height, source.h, false), own);
    const int border = kTileColumns + column % 2;
    const MapLine last(at.column + border - 1, a.width, source.w, wrap);
    for (int r = column / 2; r < Tile::kRows + 2; r += kTileColumns / 2)
        copy_pixel(r, border, MapLine(at.row + r - 1, a.height, source.h, false), last);
}

// Place among the rows of the weights of a warp of an output: a lane's results are 4 neighbouring outputs, which mma() gives as
// columns 2 t and 2 t + 1 of two products.
__device__ __forceinline__ int get_output_of_place(int place) { return place / 2 % 4 * 4 + place / 8 * 2 + place % 2; }

// Starts the copy of the weights for the outputs from `first` on, by all threads of the block: [slab][tap][place][pack]. Packs
// are exchanged between places, so that the rows of a load are in different banks.
template <class Tile>
__device__ __forceinline__ void copy_weights(const WindowArguments& a, char* weights, int first) {
    const int thread = threadIdx.x % kWarpgroup, pack = thread % kSlabPacks, place = thread / kSlabPacks;
    const int packs = a.source[0].packs + a.source[1].packs;
    for (int part = 0; part < Tile::kOutputs / kWarpOutputs; part++) {
        const int n = first + part * kWarpOutputs + get_output_of_place(place);
        const char* const from = a.weight + int64_t{n < a.outputs ? get_channel(a, n) : 0} * a.weight_o;
        char* const to = weights + (part * kWarpOutputs + place) * kWeightBytes + (pack ^ place % 8) * 16;
        for (int i = threadIdx.x / kWarpgroup; i < a.slabs * 9; i += blockDim.x / kWarpgroup) {
            const int slab = i / 9, tap = i - slab * 9, c = slab * kSlabPacks + pack;
            const bool valid = c < packs && n < a.outputs;
            copy_async(to + i * (Tile::kOutputs * kWeightBytes), valid ? from + tap * a.weight_tap + c * 16 : a.weight, valid);
        }
    }
}

// Sums of a warp: for each of its rows 16 pixels x 16 outputs, as mma() returns them. Value 2 half + i % 2 of product i / 2 is
// that of output i of the lane at pixel lane / 4 + 8 half.
struct WarpSums {
    float value[kWarpRows][2][4];

    __device__ __forceinline__ float& at(int row, int half, int i) { return value[row][i / 2][half * 2 + i % 2]; }
    __device__ __forceinline__ void set(const float (&bias)[4]) {
#pragma unroll
        for (int n = 0; n < kWarpRows * 8; n++) at(n / 8, n / 4 % 2, n % 4) = bias[n % 4];
    }
};

// Adds the products of a slab with `steps` times 16 channels.
template <class T, class Tile>
__device__ __forceinline__ void multiply(WarpSums& sums, const char* window, const char* weights, int steps) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
    const int output_warp = warp / Tile::kRowWarps, row_warp = warp % Tile::kRowWarps;
    const char* pixels = window + (row_warp * kWarpRows * kWindowColumns + lane % 16) * kPixelBytes + lane / 16 * 16;
    const char* const rows = weights + (output_warp * kWarpOutputs + lane / 16 * 8 + lane % 8) * kWeightBytes;
    const int half = lane / 8 % 2;
    for (int step = 0; step < steps; step++, pixels += 32) {
        const char* const row = rows + ((step * 2 + half) ^ lane % 8) * 16;
#pragma unroll
        for (int dx = 0; dx < 3; dx++) {
            uint32_t map[kWarpRows + 2][4];
#pragma unroll
            for (int r = 0; r < kWarpRows + 2; r++) load_matrices(map[r], pixels + (r * kWindowColumns + dx) * kPixelBytes);
#pragma unroll
            for (int dy = 0; dy < 3; dy++) {
                uint32_t w[4];
                load_matrices(w, row + (dy * 3 + dx) * (Tile::kOutputs * kWeightBytes));
#pragma unroll
                for (int r = 0; r < kWarpRows; r++)
#pragma unroll
                    for (int n = 0; n < 2; n++) {
                        const uint32_t(&m)[4] = map[r + dy];
                        mma<T>(sums.value[r][n], {{m[0], m[1], m[2], m[3]}, {w[2 * n], w[2 * n + 1]}});
                    }
            }
        }
    }
}

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
    if (a.bias == nullptr || !outputs.exist) return outputs;
#pragma unroll
    for (int i = 0; i < 4; i++)
        outputs.bias[i] = a.float_bias ? static_cast<const float*>(a.bias)[channel + i * step]
                                       : load(static_cast<const T*>(a.bias)[channel + i * step]);
    return outputs;
}

// The pixels of a lane in a tile: those of its rows in two columns.
struct LanePixels {
    int image, row, column;

    __device__ __forceinline__ LanePixels(const TilePosition& at, int row_warp)
        : image(at.image), row(at.row + row_warp * kWarpRows), column(at.column + static_cast<int>(threadIdx.x) % 32 / 4) {}
    __device__ __forceinline__ bool exist(const WindowArguments& a, int r, int half) const {
        return row + r < a.height && column + 8 * half < a.width;
    }
};

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
            if (pixels.exist(a, r, half))
                residual.words[r][half] = *reinterpret_cast<const uint2*>(from + r * a.residual_h + 8 * half * a.residual_w);
    return residual;
}

// Writes y = shuffle(act(sums + residual)) for the rows of a warp. The sums include the bias.
template <class T>
__device__ __forceinline__ void store_outputs(const WindowArguments& a, const LaneOutputs& outputs, const LanePixels& pixels,
                                              WarpSums& sums, const LaneResidual& residual) {
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
                value[i] = sums.at(r, half, i) + unpack_value<T>(i < 2 ? added.x : added.y, i % 2);
                value[i] = value[i] < 0 ? (a.slope == 0 ? 0 : value[i] * a.slope) : value[i];  // avoids infinity times zero
            }
            const uint64_t low = pack_pair<T>(value[0], value[1]), high = pack_pair<T>(value[2], value[3]);
            if (pixels.exist(a, r, half)) *reinterpret_cast<uint64_t*>(to + r * line + 8 * half * pixel) = low | high << 32;
        }
}

// The block has one to kMaxWarpgroups warpgroups. Dynamic shared memory: the weights, then two windows for each warpgroup.
template <class T, int kOutputWarps>
__global__ void __launch_bounds__(kMaxWarpgroups * kWarpgroup, 1) conv3x3_window_kernel(const WindowArguments a) {
    using Tile = WindowTile<kOutputWarps>;
    FASTDS_DYNAMIC_SHARED(char, shared);
    const int warpgroup = threadIdx.x / kWarpgroup, packs = a.source[0].packs + a.source[1].packs;
    char* const windows = shared + a.slabs * Tile::kSlabBytes + warpgroup * (2 * Tile::kWindowBytes);
    const int first = blockIdx.x / a.shares * Tile::kOutputs, stride = a.shares * (blockDim.x / kWarpgroup);
    int tile = blockIdx.x % a.shares + a.shares * warpgroup, slab = 0, stage = 0;
    TilePosition at = find_tile<Tile>(a, tile);
    if (tile < a.tiles) copy_window<Tile>(a, windows, at, slab);
    copy_weights<Tile>(a, shared, first);
    const int warp = threadIdx.x % kWarpgroup / 32;
    const LaneOutputs outputs = find_outputs<T>(a, first + warp / Tile::kRowWarps * kWarpOutputs + threadIdx.x % 4 * 4);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    WarpSums sums;
    sums.set(outputs.bias);
    while (tile < a.tiles) {
        const bool is_last = slab + 1 == a.slabs;
        const LanePixels pixels(at, warp % Tile::kRowWarps);
        LaneResidual residual{};
        if (is_last) residual = load_residual<T>(a, outputs, pixels);  // arrives during the products
        const char* const window = windows + stage * Tile::kWindowBytes;
        const char* const weights = shared + slab * Tile::kSlabBytes;
        const int steps = (min(packs - slab * kSlabPacks, kSlabPacks) + 1) / 2;
        slab++, stage ^= 1;
        if (is_last) tile += stride, slab = 0, at = find_tile<Tile>(a, tile);
        if (tile < a.tiles) copy_window<Tile>(a, windows + stage * Tile::kWindowBytes, at, slab);
        commit_copies();
        multiply<T, Tile>(sums, window, weights, steps);
        if (is_last) {
            store_outputs<T>(a, outputs, pixels, sums, residual);
            sums.set(outputs.bias);
        }
        // All copies of the next window are complete, and all warps have read this one.
        wait_for_copies<0>();
        FASTDS_SYNC_NAMED(1 + warpgroup, kWarpgroup);
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
