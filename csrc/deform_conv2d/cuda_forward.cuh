// SPDX-License-Identifier: Apache-2.0
// Kernels of the CUDA forward pass. One multiplies in the compute type. Two multiply 16-bit types on tensor cores, with samples
// from global memory or from shared memory.
#pragma once
#include "core/fast_math.cuh"
#include "deform_conv2d/cuda.cuh"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// CUDA forward pass. A block computes kM pixels x kN output channels of one group. The terms e = k * C/groups + c of the sum
// are processed in slabs of kStep. The threads gather the samples of a slab into shared memory, with neighbouring threads
// taking neighbouring channels, and then multiply.

// weight: (O, K, C/groups), contiguous; y: NHWC, contiguous.
template <class T, int V, int kM, int kN, int kTM, int kTN>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
deform_conv2d_forward_kernel(const DeformConv2dDims d, const Inputs<T> in, const T* __restrict__ weight,
                             const T* __restrict__ bias, T* __restrict__ y) {
    using A = compute_t<T>;
    using Product = Tile<A, kM, kN, kTM, kTN>;
    constexpr int kLanesOfPixel = kStep / V;
    FASTDS_SHARED(A, columns, [kStep][Product::kRowA]);
    FASTDS_SHARED(A, weights, [kStep][Product::kRowB]);
    FASTDS_SHARED(Pixel<A>, pixels, [kM]);

    const Groups size(d);
    const int group_channels = size.channels, group_outputs = size.outputs, per_offset_group = size.per_offset_group, K = size.K;
    // Tiles of the same pixels are neighbours in the grid, so that they find their samples in the cache.
    const unsigned output_tiles = (group_outputs + kN - 1) / kN, tiles = output_tiles * static_cast<unsigned>(d.groups);
    const int64_t first = static_cast<int64_t>(blockIdx.x / tiles) * kM;
    const int group = blockIdx.x % tiles / output_tiles, o0 = blockIdx.x % tiles % output_tiles * kN;

    const int thread = threadIdx.x;
    for (int p = thread; p < kM; p += kThreads) pixels[p] = get_pixel<A>(d, first + p);

    const int lane = thread % kLanesOfPixel * V;  // this thread's term in each slab
    const int step_taps = kStep / group_channels, step_channels = kStep % group_channels;
    int k = lane / group_channels, c = lane % group_channels;
    const int64_t terms = static_cast<int64_t>(K) * group_channels;
    Product product;
    for (int64_t e0 = 0; e0 < terms; e0 += kStep) {
        __syncthreads();
        const int channel = group * group_channels + c, q = channel / per_offset_group * K + k;
        const Tap<A> tap(d, k);
#pragma unroll(V > 1 ? 2 : 1)
        for (int p = thread / kLanesOfPixel; p < kM; p += kThreads / kLanesOfPixel) {
            A values[V] = {};
            Sample<A> sample;
            if (k < K && sample.locate(d, in, pixels[p], tap, q)) sample.template value<V>(d, in.x + pixels[p].x + channel, values);
#pragma unroll
            for (int v = 0; v < V; v++) columns[lane + v][p] = values[v];
        }
        for (int i = thread; i < kStep * kN; i += kThreads) {
            const int o = i / kStep, term = i % kStep;
            const bool there = e0 + term < terms && o0 + o < group_outputs;
            weights[term][o] = there ? load(weight[(int64_t{group} * group_outputs + o0 + o) * terms + e0 + term]) : A(0);
        }
        k += step_taps, c += step_channels;
        if (c >= group_channels) c -= group_channels, k++;
        __syncthreads();
        product.multiply(columns, weights);
    }

    const int64_t pixel_count = d.B * d.Ho * d.Wo;
#pragma unroll
    for (int n = 0; n < kTN; n++) {
        if (o0 + product.column + n >= group_outputs) break;
        const int64_t o = static_cast<int64_t>(group) * group_outputs + o0 + product.column + n;
        const A start = bias != nullptr ? load(bias[o]) : A(0);
#pragma unroll
        for (int m = 0; m < kTM; m++) {
            const int64_t p = first + product.row + m;
            if (p < pixel_count) y[p * d.O + o] = store<T>(product.acc[m][n] + start);
        }
    }
}

// CUDA forward pass of 16-bit types on tensor cores. A warp computes 16 pixels x 64 output channels of one group. Its samples
// go from global memory directly into the registers of the product, so that warps need not wait for each other. Lane (g, t) =
// (lane / 4, lane % 4) samples pixels g and g + 8 for 8 adjacent channels. These are its operands of two products: MmaOperands
// permits any order of k that is the same for both operands.
//
// Shared memory holds the weights (output, term), with the terms e = k * C/groups + c, as many as fit. Up to 608 terms (64
// channels of a 3 x 3 kernel are 576) all fit. A block then loads them once and processes all its pixels.

constexpr int kMmaWarps = 8, kMmaPixels = 16, kMmaOutputs = 64;
constexpr int kMmaChannels = 8;              // channels of a lane, those of a TermGroup
constexpr int kMmaTerms = 4 * kMmaChannels;  // terms of a warp at a time
// Number of terms in shared memory. They take 76 KiB, so that two blocks fit on a multiprocessor. The row length is an odd
// multiple of 64 bytes, so that 8 lanes read different banks.
constexpr int kMmaPanel = 19 * kMmaTerms;

// A pixel with 32-bit positions. After the last pixel, `row` is NaN, so that no sample is inside the image.
struct MmaPixel {
    int x = 0, offset = 0, mask = 0;
    float row = NAN, column = 0;
    __device__ __forceinline__ MmaPixel(const DeformConv2dDims& d, int p) {
        const int width = static_cast<int>(d.Wo), height = static_cast<int>(d.Ho), line = p / width, j = p - line * width;
        const int b = line / height, i = line - b * height;
        if (b >= static_cast<int>(d.B)) return;
        x = b * static_cast<int>(d.x_b);
        offset = b * static_cast<int>(d.offset_b) + i * static_cast<int>(d.offset_h) + j * static_cast<int>(d.offset_w);
        mask = b * static_cast<int>(d.mask_b) + i * static_cast<int>(d.mask_h) + j * static_cast<int>(d.mask_w);
        row = static_cast<float>(i * d.stride_h - d.pad_h);
        column = static_cast<float>(j * d.stride_w - d.pad_w);
    }
};

// Computes the samples of one pixel for the channels of a lane, rounded to T. There are no branches between the loads, so that
// all are in flight before the first result is used. Corners outside the image are not loaded and have the weight 0.
template <class T>
__device__ __forceinline__ void compute_samples(const DeformConv2dDims& d, const Inputs<T>& in, const MmaPixel& pixel,
                                            const TermGroup& term_group, uint32_t (&to)[4]) {
    using Words = Pack<uint32_t, kMmaChannels / 2>;
    const int at = pixel.offset + 2 * term_group.q;
    float y = pixel.row + term_group.row, x = pixel.column + term_group.column;
    if (d.offset_dtype == f32) {
        y += static_cast<const float*>(in.offset)[at], x += static_cast<const float*>(in.offset)[at + 1];
    } else {
        y += load(static_cast<const T*>(in.offset)[at]), x += load(static_cast<const T*>(in.offset)[at + 1]);
    }
    const float mask = in.mask != nullptr ? load(in.mask[pixel.mask + term_group.q]) : 1;
    const bool inside = sample_inside(y, x, in.height, in.width);
    y = inside ? y : 0, x = inside ? x : 0;
    const float floor_y = floorf(y), floor_x = floorf(x);
    const int y0 = static_cast<int>(floor_y), x0 = static_cast<int>(floor_x);
    const float ly = y - floor_y, lx = x - floor_x;
    const bool rows[2] = {inside && y0 >= 0, inside && y0 + 1 < static_cast<int>(d.H)};
    const bool columns[2] = {x0 >= 0, x0 + 1 < static_cast<int>(d.W)};
    const float of_row[2] = {rows[0] ? (1 - ly) * mask : 0, rows[1] ? ly * mask : 0};
    const float of_column[2] = {columns[0] ? 1 - lx : 0, columns[1] ? lx : 0};
    const int x_h = static_cast<int>(d.x_h), x_w = static_cast<int>(d.x_w);
    const int first = pixel.x + term_group.channel + y0 * x_h + x0 * x_w;
    const int places[4] = {first, first + x_w, first + x_h, first + x_h + x_w};
    Words corner[4] = {};
#pragma unroll
    for (int n = 0; n < 4; n++)
        if (rows[n / 2] && columns[n % 2]) corner[n] = *reinterpret_cast<const Words*>(in.x + places[n]);
    const float weight[4] = {of_row[0] * of_column[0], of_row[0] * of_column[1], of_row[1] * of_column[0],
                             of_row[1] * of_column[1]};
    blend<T>(weight, corner, to);
}

// Returns the number of terms from `first` on that a panel holds, rounded up to whole steps of a warp.
__device__ __forceinline__ int count_panel_terms(int first, int terms) {
    return (min(terms - first, kMmaPanel) + kMmaTerms - 1) / kMmaTerms * kMmaTerms;
}

// Loads the weights of `outputs` channels from o0 on, and the TermGroups, for as many terms from `first` on as fit.
// Outputs and terms after the last are zeros.
template <class T>
__device__ __forceinline__ void load_panel(T (*panel)[kMmaPanel], TermGroup* term_groups, const DeformConv2dDims& d,
                                               const Groups& size, const T* __restrict__ weight, int group, int o0,
                                               int outputs, int first, int terms) {
    using Weights = Pack<T, kMmaChannels>;
    const int count = count_panel_terms(first, terms) / kMmaChannels;
    for (int i = threadIdx.x; i < count * kMmaOutputs; i += blockDim.x) {
        const int output = i / count, term_group = i % count, term = first + term_group * kMmaChannels;
        const T* from = weight + int64_t{o0 + output} * terms + term;
        Weights weights{};
        if (output < outputs && term < terms) weights = *reinterpret_cast<const Weights*>(from);
        reinterpret_cast<Weights*>(panel[output])[term_group] = weights;
    }
    for (int i = threadIdx.x; i < count; i += blockDim.x)
        term_groups[i] = find_term_group(d, size, group, first + i * kMmaChannels);
}

// weight: (O, K, C/groups), contiguous; y: NHWC, contiguous. The grid has `shares` blocks for every 64 outputs of a group.
template <class T>
__global__ void __launch_bounds__(kMmaWarps * 32, 2)
deform_conv2d_tensor_cores_kernel(const DeformConv2dDims d, const Inputs<T> in, const T* __restrict__ weight,
                                  const T* __restrict__ bias, T* __restrict__ y, int shares) {
    FASTDS_DYNAMIC_SHARED(T, shared);
    const auto panel = reinterpret_cast<T (*)[kMmaPanel]>(shared);  // [kMmaOutputs]
    FASTDS_SHARED(TermGroup, term_groups, [kMmaPanel / kMmaChannels]);
    FASTDS_SHARED(float, biases, [kMmaOutputs]);
    const Groups size(d);
    const int group_outputs = size.outputs, terms = size.K * size.channels, points = static_cast<int>(d.B * d.Ho * d.Wo);
    const int output_tiles = (group_outputs + kMmaOutputs - 1) / kMmaOutputs, tile = blockIdx.x / shares;
    const int group = tile / output_tiles, o0 = group * group_outputs + tile % output_tiles * kMmaOutputs;
    const int outputs = min((group + 1) * group_outputs - o0, kMmaOutputs);

    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int64_t strips = (int64_t{points} + kMmaPixels - 1) / kMmaPixels, share = blockIdx.x % shares;
    const int last = static_cast<int>(strips * (share + 1) / shares);
    for (int n = threadIdx.x; n < kMmaOutputs; n += kMmaWarps * 32)
        biases[n] = bias != nullptr && n < outputs ? load(bias[o0 + n]) : 0;
    bool loaded = false;
    for (int strip = static_cast<int>(strips * share / shares) + warp; strip - warp < last; strip += kMmaWarps) {
        const bool busy = strip < last;
        const int p = strip * kMmaPixels + g;
        const MmaPixel pixels[2] = {{d, p}, {d, p + 8}};
        float sums[kMmaOutputs / 8][4] = {};
        for (int first = 0; first < terms; first += kMmaPanel) {
            if (!loaded || terms > kMmaPanel) {
                __syncthreads();
                load_panel(panel, term_groups, d, size, weight, group, o0, outputs, first, terms);
                loaded = true;
                __syncthreads();
            }
            if (!busy) continue;
            const int end = count_panel_terms(first, terms);
            for (int e = t * kMmaChannels; e < end; e += kMmaTerms) {
                const TermGroup term_group = term_groups[e / kMmaChannels];
                uint32_t samples[2][4];
#pragma unroll
                for (int m = 0; m < 2; m++) compute_samples(d, in, pixels[m], term_group, samples[m]);
#pragma unroll
                for (int n = 0; n < kMmaOutputs / 8; n++) {
                    const auto w = *reinterpret_cast<const Pack<uint32_t, 4>*>(&panel[n * 8 + g][e]);
#pragma unroll
                    for (int i = 0; i < 4; i += 2) {
                        mma<T>(sums[n], {{samples[0][i], samples[1][i], samples[0][i + 1], samples[1][i + 1]},
                                         {w.value[i], w.value[i + 1]}});
                    }
                }
            }
        }
        if (!busy) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = p + i / 2 * 8;
            if (at >= points) continue;
            T* to = y + at * d.O + o0;
#pragma unroll
            for (int n = 0; n < kMmaOutputs / 8; n++) {
                const int o = n * 8 + t * 2 + i % 2;
                if (o < outputs) to[o] = store<T>(sums[n][i] + biases[o]);
            }
        }
    }
}

// CUDA forward pass of 16-bit types on tensor cores with samples from shared memory, which delivers 8 corners of 16 bytes per
// cycle if they are in different banks. A block therefore loads the part of the input around a tile of output pixels once, with
// a margin for the displacements and zeros outside the image. The few samples beyond this window are read from global memory.
//
// The matrix product is the same as in the kernel without a window. A warp has 16 pixels, which are one row of the tile, and
// every second step of the terms. The two halves of each sum are added in shared memory.

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
    // Bounds of the sample positions that are inside the image and whose four corners are in the window.
    float low_y, high_y, low_x, high_x;

    __device__ __forceinline__ const Pack<uint32_t, 4>& at(int pixel, int pack) const {
        return packs[pixel * count + (pack ^ ((pixel & 1) * exchanged))];
    }
};

// Like compute_samples, but reads samples inside the window from shared memory. `pack` is the index of the lane's 16 bytes of
// channels in the group.
template <class T>
__device__ __forceinline__ void compute_window_samples(const DeformConv2dDims& d, const Inputs<T>& in,
                                               const DeformConv2dOffsetEpilogue& epilogue,
                                               const TileWindow& tile_window, const MmaPixel& pixel, const TermGroup& term_group, int pack,
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
    FASTDS_SHARED(TermGroup, term_groups, [kMmaPanel / kMmaChannels]);
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
            const TermGroup term_group = term_groups[e / kMmaChannels];
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
