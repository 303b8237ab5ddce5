// SPDX-License-Identifier: Apache-2.0
// 3x3 convolutions of 16-bit maps on tensor cores: an implicit matrix product with a window of the map in shared memory. A kernel
// adds an epilogue, see compute_tiles.
//
// A warpgroup (four warps) computes tiles of output pixels. It copies the window of a tile, its pixels and a border, to shared
// memory once, and reads the operands of all nine taps from there. The window of the next tile, or of the next 64 channels, is
// copied during the products, so that one barrier of the warpgroup is needed for a window. The warpgroups of a block share the
// weights of some outputs, which stay in shared memory, and do not wait for each other.
//
// A warp computes 4 rows of 16 pixels. Rows of pixels that it loads from the window serve the three taps of a column, so that
// shared memory is read for 9 loads of matrices in 24 products of 16 outputs, and for 6 in 24 products of 32 outputs.
#pragma once
#include "conv3x3/params.h"
#include "core/mma.h"
#include "core/pipeline.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kWarpgroup = 128;            // threads
constexpr int kWarpRows = 4, kTileColumns = 16;
constexpr int kProductOutputs = 8;         // of mma()
constexpr int kWindowColumns = kTileColumns + 2;
constexpr int kPack = 8;                   // channels of 16 bytes
constexpr int kSlabPacks = 8;              // packs of a window; more channels are computed in slabs
constexpr int kPixelBytes = 16 * 9;        // of a window: an odd number of packs, for 8 pixels of a load in different banks
constexpr int kWeightBytes = 16 * kSlabPacks;  // of a slab, for a tap and an output

// Sizes of a tile. The four warps of a warpgroup are kOutputWarps parts of the outputs and 4 / kOutputWarps parts of the rows. A
// warp computes the outputs of kWarpProducts products.
template <int kOutputWarps, int kWarpProducts>
struct WindowTile {
    static constexpr int kProducts = kWarpProducts;
    static constexpr int kRowWarps = 4 / kOutputWarps;
    static constexpr int kRows = kRowWarps * kWarpRows;
    static constexpr int kWarpOutputs = kWarpProducts * kProductOutputs, kOutputs = kOutputWarps * kWarpOutputs;
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

// The arguments that kernels with different epilogues share.
struct WindowConvolution {
    WindowSource source[2];
    const char* weight;
    int weight_o, weight_tap;  // in bytes
    const void* bias;
    bool float_bias;
    const void* residual;
    int64_t residual_b;
    int residual_h, residual_w;  // in elements
    int height, width, outputs;
    int padding;  // Conv3x3Padding of the columns
    int slabs;
    int tiles_across, tiles_down, tiles;
    int shares;  // blocks for the same outputs, which share the tiles
};

// Returns the bias of an output.
template <class T>
__device__ __forceinline__ float load_bias(const WindowConvolution& a, int output) {
    if (a.bias == nullptr) return 0;
    return a.float_bias ? static_cast<const float*>(a.bias)[output] : load(static_cast<const T*>(a.bias)[output]);
}

struct TilePosition {
    int image, row, column;
};

template <class Tile>
__device__ __forceinline__ TilePosition find_tile(const WindowConvolution& a, int tile) {
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
__device__ __forceinline__ void copy_window(const WindowConvolution& a, char* window, const TilePosition& at, int slab) {
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

// Starts the copy of the weights of the block by all its threads: [slab][tap][row][pack]. get_output(row) returns the output of
// the convolution in a row, or -1 for zeros. Packs are exchanged between rows, so that the rows of a load are in different banks.
template <class Tile, class GetOutput>
__device__ __forceinline__ void copy_weights(const WindowConvolution& a, char* weights, const GetOutput& get_output) {
    const int thread = threadIdx.x % kWarpgroup, pack = thread % kSlabPacks;
    const int packs = a.source[0].packs + a.source[1].packs;
    for (int row = thread / kSlabPacks; row < Tile::kOutputs; row += kWarpgroup / kSlabPacks) {
        const int output = get_output(row);
        const char* const from = a.weight + int64_t{max(output, 0)} * a.weight_o;
        char* const to = weights + row * kWeightBytes + (pack ^ row % 8) * 16;
        for (int i = threadIdx.x / kWarpgroup; i < a.slabs * 9; i += blockDim.x / kWarpgroup) {
            const int slab = i / 9, tap = i - slab * 9, c = slab * kSlabPacks + pack;
            const bool valid = c < packs && output >= 0;
            copy_async(to + i * (Tile::kOutputs * kWeightBytes), valid ? from + tap * a.weight_tap + c * 16 : a.weight, valid);
        }
    }
}

// Sums of a warp as mma() returns them: for each of its rows and products 16 pixels x 8 outputs. Values 2 half and 2 half + 1 of a
// lane are those of the outputs 2 (lane % 4) and 2 (lane % 4) + 1 of the product at pixel lane / 4 + 8 half.
template <class Tile>
struct WarpSums {
    float value[kWarpRows][Tile::kProducts][4];
};

// Adds the products of a slab with `steps` times 16 channels.
template <class T, class Tile>
__device__ __forceinline__ void multiply(WarpSums<Tile>& sums, const char* window, const char* weights, int steps) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
    const int output_warp = warp / Tile::kRowWarps, row_warp = warp % Tile::kRowWarps;
    const char* pixels = window + (row_warp * kWarpRows * kWindowColumns + lane % 16) * kPixelBytes + lane / 16 * 16;
    // A load has the weights of two products. If the number of products is odd, the last load has those of one product twice.
    const int second = lane / 16 * 8 * kWeightBytes;
    const char* const rows = weights + (output_warp * Tile::kWarpOutputs + lane % 8) * kWeightBytes + second;
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
                uint32_t w[(Tile::kProducts + 1) / 2][4];
                const char* const tap = row + (dy * 3 + dx) * (Tile::kOutputs * kWeightBytes);
#pragma unroll
                for (int n = 0; n < Tile::kProducts; n += 2)
                    load_matrices(w[n / 2], tap + n * kProductOutputs * kWeightBytes - (n + 1 < Tile::kProducts ? 0 : second));
#pragma unroll
                for (int r = 0; r < kWarpRows; r++)
#pragma unroll
                    for (int n = 0; n < Tile::kProducts; n++) {
                        const uint32_t(&m)[4] = map[r + dy], (&columns)[4] = w[n / 2];
                        mma<T>(sums.value[r][n], {{m[0], m[1], m[2], m[3]}, {columns[n % 2 * 2], columns[n % 2 * 2 + 1]}});
                    }
            }
        }
    }
}

// The pixels of a lane in a tile: those of its rows in two columns.
struct LanePixels {
    int image, row, column;
    int rows, columns;  // from the first pixel to the end of the map

    __device__ __forceinline__ LanePixels(const WindowConvolution& a, const TilePosition& at, int row_warp)
        : image(at.image), row(at.row + row_warp * kWarpRows), column(at.column + static_cast<int>(threadIdx.x) % 32 / 4),
          rows(a.height - row), columns(a.width - column) {}
    __device__ __forceinline__ bool exist(int r, int half) const { return r < rows && 8 * half < columns; }
};

// Computes the tiles of the warpgroups of a block. Shared memory: the weights, then two windows for each warpgroup. An Epilogue is
// an object of the thread with these members:
//     get_output(row)                 see copy_weights
//     prepare()                       loads what does not depend on the tile
//     start(sums, pixels)             sets the sums of a tile
//     load(pixels)                    returns an object of Loaded, which arrives during the last products of a tile
//     finish(sums, pixels, loaded)    writes the results of a tile
template <class T, class Tile, class Epilogue>
__device__ __forceinline__ void compute_tiles(const WindowConvolution& a, char* shared, Epilogue& epilogue) {
    const int warpgroup = threadIdx.x / kWarpgroup, packs = a.source[0].packs + a.source[1].packs;
    char* const windows = shared + a.slabs * Tile::kSlabBytes + warpgroup * (2 * Tile::kWindowBytes);
    const int stride = a.shares * (blockDim.x / kWarpgroup), row_warp = threadIdx.x % kWarpgroup / 32 % Tile::kRowWarps;
    int tile = blockIdx.x % a.shares + a.shares * warpgroup, slab = 0, stage = 0;
    TilePosition at = find_tile<Tile>(a, tile);
    if (tile < a.tiles) copy_window<Tile>(a, windows, at, slab);
    copy_weights<Tile>(a, shared, [&](int row) { return epilogue.get_output(row); });
    commit_copies();
    epilogue.prepare();
    WarpSums<Tile> sums;
    if (tile < a.tiles) epilogue.start(sums, LanePixels(a, at, row_warp));
    wait_for_copies<0>();
    __syncthreads();
    while (tile < a.tiles) {
        const bool is_last = slab + 1 == a.slabs;
        const LanePixels pixels(a, at, row_warp);
        typename Epilogue::Loaded loaded{};
        if (is_last) loaded = epilogue.load(pixels);
        const char* const window = windows + stage * Tile::kWindowBytes;
        const char* const weights = shared + slab * Tile::kSlabBytes;
        const int steps = (min(packs - slab * kSlabPacks, kSlabPacks) + 1) / 2;
        slab++, stage ^= 1;
        if (is_last) tile += stride, slab = 0, at = find_tile<Tile>(a, tile);
        if (tile < a.tiles) copy_window<Tile>(a, windows + stage * Tile::kWindowBytes, at, slab);
        commit_copies();
        multiply<T>(sums, window, weights, steps);
        if (is_last) {
            epilogue.finish(sums, pixels, loaded);
            if (tile < a.tiles) epilogue.start(sums, LanePixels(a, at, row_warp));
        }
        // All copies of the next window are complete, and all warps have read this one.
        wait_for_copies<0>();
        FASTDS_SYNC_NAMED(1 + warpgroup, kWarpgroup);
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
