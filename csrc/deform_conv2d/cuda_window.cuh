// SPDX-License-Identifier: Apache-2.0
// CUDA forward pass of 16-bit types on tensor cores with samples from shared memory. An L1 cache delivers one line of 128 bytes
// per cycle, and each corner of 16 bytes needs one. Shared memory delivers 8 corners per cycle if they are in different banks.
// A block therefore loads the part of the input around a tile of output pixels once, with a margin for the displacements and
// zeros outside the image. The few samples beyond this window are read from global memory.
//
// The product is that of cuda_tensor_cores.cuh. A warp has 16 pixels, which are one row of the tile, and every second step of
// the terms. The two halves of each sum are added in shared memory.
#pragma once
#include "core/fast_math.cuh"
#include "deform_conv2d/cuda_tensor_cores.cuh"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kWindowRows = 8, kWindowColumns = kMmaPixels;  // output pixels of a tile
constexpr int kWindowWarps = 2 * kWindowRows;                // two for each row
constexpr int kMaxMargin = 12;                               // in pixels; loading a larger margin costs more than it saves
constexpr int kPanelBytes = kMmaOutputs * kMmaPanel * 2;
constexpr int kExchangeBytes = kWindowRows * 32 * kMmaOutputs / 2 * 4;  // half of the sums of a tile

// Size of the window in pixels of the input, and number of tiles of the output.
struct Window {
    int rows, columns, margin;
    int tiles_across, tiles_down;
};

// Loads the displacement (y, x) of a sample as one aligned pair of T or, if `single` is true, of float. The launch checks the
// alignment.
template <class T>
__device__ __forceinline__ void load_displacement(const Inputs<T>& in, bool single, int at, float& y, float& x) {
    if (single) {
        const auto pair = *reinterpret_cast<const Pack<float, 2>*>(static_cast<const float*>(in.offset) + at);
        y = pair.value[0], x = pair.value[1];
    } else {
        const auto pair = *reinterpret_cast<const Pack<T, 2>*>(static_cast<const T*>(in.offset) + at);
        y = load(pair.value[0]), x = load(pair.value[1]);
    }
}

// The window of a tile in shared memory: for each pixel the channels of a group in packs of 16 bytes. For pixels of 8 packs,
// the two halves are exchanged in every second pixel. 8 lanes that read 4 packs of two neighbouring pixels then access
// different banks.
struct TileWindow {
    const Pack<uint32_t, 4>* packs;
    int row, column, columns;  // position of its first pixel in the image; width of the window
    int count, exchanged;      // packs per pixel; 4 if a pixel has 8 packs, otherwise 0
    // Bounds of the sample positions whose four corners are in the window and that are inside the image.
    float low_y, high_y, low_x, high_x;

    __device__ __forceinline__ const Pack<uint32_t, 4>& at(int pixel, int pack) const {
        return packs[pixel * count + (pack ^ ((pixel & 1) * exchanged))];
    }
};

// Like compute_samples, for one pack of channels of a group.
template <class T>
__device__ __forceinline__ void compute_window_samples(const DeformConv2dDims& d, const Inputs<T>& in,
                                               const DeformConv2dOffsetEpilogue& epilogue,
                                               const TileWindow& tile_window, const MmaPixel& pixel, const MmaTermGroup& term_group, int pack,
                                               uint32_t (&to)[4]) {
    using Words = Pack<uint32_t, 4>;
    float y, x;
    load_displacement(in, d.offset_dtype == f32, pixel.offset + 2 * term_group.q, y, x);
    y += pixel.row + term_group.row, x += pixel.column + term_group.column;
    float mask = in.mask != nullptr ? load(in.mask[pixel.mask + term_group.q]) : 1;
    if (epilogue.sigmoid) mask = sigmoid<float>(FastFloat(mask)).value;
    float weight[4];
    Words corner[4] = {};
    if (y >= tile_window.low_y && y < tile_window.high_y && x >= tile_window.low_x && x < tile_window.high_x) {
        const float floor_y = floorf(y), floor_x = floorf(x), ly = y - floor_y, lx = x - floor_x;
        const int first = (static_cast<int>(floor_y) - tile_window.row) * tile_window.columns + static_cast<int>(floor_x) -
                          tile_window.column;
        corner[0] = tile_window.at(first, pack), corner[1] = tile_window.at(first + 1, pack);
        corner[2] = tile_window.at(first + tile_window.columns, pack);
        corner[3] = tile_window.at(first + tile_window.columns + 1, pack);
        const float lower = ly * mask, upper = mask - lower;
        weight[1] = upper * lx, weight[0] = upper - weight[1];
        weight[3] = lower * lx, weight[2] = lower - weight[3];
    } else {
        const bool inside = sample_inside(y, x, in.height, in.width);
        const auto cell = bilinear_cell<float, int>(inside ? y : 0, inside ? x : 0, static_cast<int>(d.H), static_cast<int>(d.W));
        bilinear_weights(cell.ly, cell.lx, weight[0], weight[1], weight[2], weight[3]);
        const T* from = in.x + pixel.x + term_group.channel + cell.y0 * static_cast<int>(d.x_h) + cell.x0 * static_cast<int>(d.x_w);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const bool exists = inside && cell.corner[n];
            weight[n] = exists ? weight[n] * mask : 0;
            if (exists)
                corner[n] = *reinterpret_cast<const Words*>(from + n / 2 * static_cast<int>(d.x_h) + n % 2 * static_cast<int>(d.x_w));
        }
    }
    blend<T>(weight, corner, to);
}

// Loads the window of image b that starts at pixel (tile_window.row, tile_window.column), with zeros outside the image.
template <class T>
__device__ __forceinline__ void load_window(Pack<uint32_t, 4>* to, const DeformConv2dDims& d, const Inputs<T>& in, int rows,
                                            const TileWindow& tile_window, int b, int first_channel) {
    using Words = Pack<uint32_t, 4>;
    const T* from = in.x + b * static_cast<int>(d.x_b) + first_channel;
    const int total = rows * tile_window.columns * tile_window.count;
#pragma unroll 4
    for (int i = threadIdx.x; i < total; i += kWindowWarps * 32) {
        const int pixel = i / tile_window.count, pack = i - pixel * tile_window.count, r = pixel / tile_window.columns;
        const int row = tile_window.row + r, column = tile_window.column + pixel - r * tile_window.columns;
        Words words{};
        if (row >= 0 && row < static_cast<int>(d.H) && column >= 0 && column < static_cast<int>(d.W))
            words = *reinterpret_cast<const Words*>(from + row * static_cast<int>(d.x_h) + column * static_cast<int>(d.x_w) +
                                                    pack * kMmaChannels);
        to[pixel * tile_window.count + (pack ^ ((pixel & 1) * tile_window.exchanged))] = words;
    }
}

// weight: (O, K, C/groups), contiguous; y: NHWC, contiguous. The grid has `shares` blocks for every 64 outputs of a group.
template <class T>
__global__ void __launch_bounds__(kWindowWarps * 32, 1)
deform_conv2d_window_kernel(const DeformConv2dDims d, const Inputs<T> in, const DeformConv2dOffsetEpilogue epilogue,
                            const T* __restrict__ weight,
                            const T* __restrict__ bias, T* __restrict__ y, const Window window, int shares) {
    using Words = Pack<uint32_t, 4>;
    FASTDS_DYNAMIC_SHARED(unsigned char, shared);
    const auto panel = reinterpret_cast<T (*)[kMmaPanel]>(shared);  // [kMmaOutputs]
    const auto packs = reinterpret_cast<Words*>(shared + kPanelBytes);
    const auto exchange = reinterpret_cast<float*>(shared + kPanelBytes);
    FASTDS_SHARED(MmaTermGroup, term_groups, [kMmaPanel / kMmaChannels]);
    FASTDS_SHARED(float, biases, [kMmaOutputs]);
    const Groups size(d);
    const int terms = size.K * size.channels, end = count_panel_terms(0, terms);
    const int output_tiles = (size.outputs + kMmaOutputs - 1) / kMmaOutputs, part = blockIdx.x / shares;
    const int group = part / output_tiles, o0 = group * size.outputs + part % output_tiles * kMmaOutputs;
    const int outputs = min((group + 1) * size.outputs - o0, kMmaOutputs);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row = warp % kWindowRows, half = warp / kWindowRows;
    for (int n = threadIdx.x; n < kMmaOutputs; n += kWindowWarps * 32)
        biases[n] = bias != nullptr && n < outputs ? load(bias[o0 + n]) : 0;
    load_panel(panel, term_groups, d, size, weight, group, o0, outputs, 0, terms);

    TileWindow tile_window;
    tile_window.packs = packs, tile_window.columns = window.columns;
    tile_window.count = size.channels / kMmaChannels, tile_window.exchanged = tile_window.count == 8 ? 4 : 0;
    const int height = static_cast<int>(d.Ho), width = static_cast<int>(d.Wo);
    const int tiles = static_cast<int>(d.B) * window.tiles_down * window.tiles_across;
    for (int tile = blockIdx.x % shares; tile < tiles; tile += shares) {
        const int line = tile / window.tiles_across, b = line / window.tiles_down;
        const int i0 = (line - b * window.tiles_down) * kWindowRows, j0 = (tile - line * window.tiles_across) * kWindowColumns;
        const int i = i0 + row;
        tile_window.row = i0 * static_cast<int>(d.stride_h) - static_cast<int>(d.pad_h) - window.margin;
        tile_window.column = j0 * static_cast<int>(d.stride_w) - static_cast<int>(d.pad_w) - window.margin;
        if (epilogue.base != nullptr) {  // the window is shifted by the base offset of the tile's centre
            const int middle = min(i0 + kWindowRows / 2, height - 1) * width + min(j0 + kWindowColumns / 2, width - 1);
            const float* of_tile = epilogue.base + int64_t{2} * b * height * width + middle;
            const float dy = of_tile[0], dx = of_tile[height * width], most = 1 << 20;
            if (fabsf(dy) < most) tile_window.row += static_cast<int>(dy);  // false for NaN
            if (fabsf(dx) < most) tile_window.column += static_cast<int>(dx);
        }
        constexpr float inside = -0.99999994f;  // the smallest float above -1
        tile_window.low_y = fmaxf(static_cast<float>(tile_window.row), inside);
        tile_window.low_x = fmaxf(static_cast<float>(tile_window.column), inside);
        tile_window.high_y = fminf(static_cast<float>(tile_window.row + window.rows - 1), in.height);
        tile_window.high_x = fminf(static_cast<float>(tile_window.column + window.columns - 1), in.width);
        __syncthreads();  // all threads have read the window and sums of the previous tile
        load_window(packs, d, in, window.rows, tile_window, b, group * size.channels);
        __syncthreads();

        MmaPixel pixels[2] = {{d, INT32_MAX}, {d, INT32_MAX}};
        int at[2];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const int j = j0 + g + 8 * m;
            at[m] = i < height && j < width ? (b * height + i) * width + j : -1;
            if (at[m] < 0) continue;
            pixels[m] = MmaPixel(d, at[m]);
            if (epilogue.base == nullptr) continue;
            const float* of_pixel = epilogue.base + int64_t{2} * b * height * width + i * width + j;
            pixels[m].row += of_pixel[0], pixels[m].column += of_pixel[height * width];
        }
        float sums[kMmaOutputs / 8][4] = {};
        for (int e = t * kMmaChannels + half * kMmaTerms; e < end; e += 2 * kMmaTerms) {
            const MmaTermGroup term_group = term_groups[e / kMmaChannels];
            const int pack = (term_group.channel - group * size.channels) / kMmaChannels;
            uint32_t samples[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++)
                compute_window_samples(d, in, epilogue, tile_window, pixels[m], term_group, max(pack, 0), samples[m]);
#pragma unroll
            for (int n = 0; n < kMmaOutputs / 8; n++) {
                const auto w = *reinterpret_cast<const Words*>(&panel[n * 8 + g][e]);
#pragma unroll
                for (int k = 0; k < 4; k += 2) {
                    mma<T>(sums[n], {{samples[0][k], samples[1][k], samples[0][k + 1], samples[1][k + 1]},
                                     {w.value[k], w.value[k + 1]}});
                }
            }
        }
        __syncthreads();  // the window is no longer needed: its memory takes half of the sums
        float* const mine = exchange + row * (32 * kMmaOutputs / 2) + lane;
        if (half == 1) {
#pragma unroll
            for (int k = 0; k < kMmaOutputs / 2; k++) mine[k * 32] = sums[k / 4][k % 4];
        }
        __syncthreads();
        if (half == 1) continue;
#pragma unroll
        for (int k = 0; k < kMmaOutputs / 2; k++) {
            const int m = k % 4 / 2, o = k / 4 * 8 + t * 2 + k % 2;
            float sum = sums[k / 4][k % 4] + mine[k * 32] + biases[o];
            sum = sum < 0 ? sum * epilogue.slope : sum;
            if (at[m] >= 0 && o < outputs) y[int64_t{at[m]} * d.O + o0 + o] = store<T>(sum);
        }
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
