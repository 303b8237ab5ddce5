// SPDX-License-Identifier: Apache-2.0
// First of the two passes of deform_conv2d: writes the samples as a matrix, the columns, whose product with the weight is y. The
// caller computes the product with a library, and passes as many lines of pixels as its memory for columns holds.
//
// A lane computes kPacks * 16 bytes of adjacent channels of one pixel, tap after tap. The displacement and the mask of the next
// tap are loaded before the corners of this tap, and there are no branches between the loads. Neighbouring lanes have
// neighbouring channels, and a block has pixels of tiles of 8 x 8, whose corners share lines of the L1 cache.
#pragma once
#include "core/fast_math.cuh"
#include "deform_conv2d/cuda.cuh"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kSampleThreads = 256, kSampleTile = 8;  // pixels of a tile in each direction

// The lines of output pixels (rows of all images, counted from the first row of the first image) of one launch.
struct SampleLines {
    int first, count;
    int tiles_across;  // tiles in a line
    int packs;         // lanes of a pixel
    int items;         // lanes of all tiles
};

using SampleWords = Pack<uint32_t, 4>;

// A pixel, its tensors at the channels of a lane, and its row of the columns. Offset is the type of the offsets, T or float.
template <class T, class Offset>
struct SampledPixel {
    const T* x;
    const Offset* offset;  // of the next tap to load, as mask
    const T* mask;         // null: all ones
    float row, column;     // coordinates of tap (0, 0) before displacement, with the base offset
    T* to;                 // columns of the next tap to store
};

// Returns false for lanes without a pixel.
template <class T, class Offset, int kPacks>
__device__ __forceinline__ bool find_pixel(const DeformConv2dDims& d, const Inputs<T>& in, const Groups& size,
                                           const DeformConv2dOffsetEpilogue& epilogue, const SampleLines& lines, int item,
                                           int tap, T* columns, SampledPixel<T, Offset>& pixel) {
    const int place = item / lines.packs, channel = (item - place * lines.packs) * kPacks * kVector<T>;
    const int tile = place / (kSampleTile * kSampleTile), inside = place % (kSampleTile * kSampleTile);
    const int tile_line = tile / lines.tiles_across, width = static_cast<int>(d.Wo), height = static_cast<int>(d.Ho);
    const int line = tile_line * kSampleTile + inside / kSampleTile;
    const int j = (tile - tile_line * lines.tiles_across) * kSampleTile + inside % kSampleTile;
    if (item >= lines.items || line >= lines.count || j >= width) return false;
    const int b = (lines.first + line) / height, i = lines.first + line - b * height;
    const int group = channel / size.channels, offset_group = channel / size.per_offset_group;
    pixel.x = in.x + b * d.x_b + channel;
    const int64_t sample = int64_t{offset_group} * size.K + tap;
    pixel.offset = static_cast<const Offset*>(in.offset) + b * d.offset_b + i * d.offset_h + j * d.offset_w + 2 * sample;
    pixel.mask = in.mask == nullptr ? nullptr : in.mask + b * d.mask_b + i * d.mask_h + j * d.mask_w + sample;
    pixel.row = static_cast<float>(i * static_cast<int>(d.stride_h) - static_cast<int>(d.pad_h));
    pixel.column = static_cast<float>(j * static_cast<int>(d.stride_w) - static_cast<int>(d.pad_w));
    if (epilogue.base != nullptr) {
        const float* base = epilogue.base + (int64_t{2} * b * height + i) * width + j;
        pixel.row += base[0], pixel.column += base[int64_t{height} * width];
    }
    const int64_t pixels = int64_t{lines.count} * width, p = int64_t{line} * width + j;
    pixel.to = columns + ((group * pixels + p) * size.K + tap) * size.channels + (channel - group * size.channels);
    return true;
}

// The displacement and the mask of a sample.
struct Displacement {
    float y, x, mask;
};
template <class T, class Offset>
__device__ __forceinline__ Displacement load_displacement(const SampledPixel<T, Offset>& pixel) {
    const auto pair = *reinterpret_cast<const Pack<Offset, 2>*>(pixel.offset);
    return {load(pair.value[0]), load(pair.value[1]), pixel.mask != nullptr ? load(*pixel.mask) : 1.f};
}

template <class T>
__device__ __forceinline__ void blend_words(const float (&weight)[4], const SampleWords (&corner)[4], SampleWords& to) {
    if constexpr (sizeof(T) == 2) {
        blend<T>(weight, corner, to.value);
    } else {
#pragma unroll
        for (int v = 0; v < 4; v++) {
            float value = 0;
#pragma unroll
            for (int n = 0; n < 4; n++) value += weight[n] * bits_to_float(corner[n].value[v]);
            to.value[v] = float_to_bits(value);
        }
    }
}

// columns: (groups, pixels, K, C/groups), contiguous. The grid divides all (lane, tap) into equal shares.
template <class T, class Offset, int kPacks>
__global__ void __launch_bounds__(kSampleThreads, kPacks == 1 ? 4 : 3)
deform_conv2d_sample_kernel(const DeformConv2dDims d, const Inputs<T> in, const DeformConv2dOffsetEpilogue epilogue,
                            const SampleLines lines, T* __restrict__ columns) {
    const Groups size(d);
    const int K = size.K, kernel_width = static_cast<int>(d.kw), height = static_cast<int>(d.H), width = static_cast<int>(d.W);
    // In bytes, so that a corner is one addition away; the launch checks that they fit.
    const int x_h = static_cast<int>(d.x_h * sizeof(T)), x_w = static_cast<int>(d.x_w * sizeof(T));
    const float dil_h = static_cast<float>(d.dil_h), dil_w = static_cast<float>(d.dil_w);
    const int64_t units = (int64_t{lines.items} + kSampleThreads - 1) / kSampleThreads * K;
    int64_t unit = units * blockIdx.x / gridDim.x;
    const int64_t last = units * (blockIdx.x + 1) / gridDim.x;
    while (unit < last) {
        const int64_t share = unit / K;
        const int first = static_cast<int>(unit - share * K), end = static_cast<int>(min(last - share * K, int64_t{K}));
        unit = share * K + end;
        SampledPixel<T, Offset> pixel;
        const int item = static_cast<int>(share) * kSampleThreads + threadIdx.x;
        if (!find_pixel<T, Offset, kPacks>(d, in, size, epilogue, lines, item, first, columns, pixel)) continue;
        int kernel_row = first / kernel_width, kernel_column = first - kernel_row * kernel_width;
        Displacement next = load_displacement(pixel);
        for (int k = first; k < end; k++) {
            const Displacement at = next;
            const int ahead = k + 1 < end ? 1 : 0;
            pixel.offset += 2 * ahead, pixel.mask += pixel.mask != nullptr ? ahead : 0;
            next = load_displacement(pixel);
            float y = pixel.row + static_cast<float>(kernel_row) * dil_h + at.y;
            float x = pixel.column + static_cast<float>(kernel_column) * dil_w + at.x;
            if (++kernel_column == kernel_width) kernel_column = 0, kernel_row++;
            const float mask = epilogue.sigmoid ? sigmoid<float>(FastFloat(at.mask)).value : at.mask;
            const bool inside = sample_inside(y, x, in.height, in.width);
            y = inside ? y : 0, x = inside ? x : 0;
            const float floor_y = floorf(y), floor_x = floorf(x), ly = y - floor_y, lx = x - floor_x;
            const int y0 = static_cast<int>(floor_y), x0 = static_cast<int>(floor_x);
            const bool rows[2] = {inside && y0 >= 0, inside && y0 + 1 < height};
            const bool columns_inside[2] = {x0 >= 0, x0 + 1 < width};
            const float of_row[2] = {rows[0] ? (1 - ly) * mask : 0, rows[1] ? ly * mask : 0};
            const float of_column[2] = {columns_inside[0] ? 1 - lx : 0, columns_inside[1] ? lx : 0};
            const char* corner_00 = reinterpret_cast<const char*>(pixel.x) + (y0 * x_h + x0 * x_w);
            // Corners outside the image are not loaded, so that a NaN of a pixel nearby does not become NaN * 0.
            SampleWords corner[kPacks][4] = {};
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int pack = 0; pack < kPacks; pack++)
                    if (rows[n / 2] && columns_inside[n % 2])
                        corner[pack][n] =
                            reinterpret_cast<const SampleWords*>(corner_00 + n / 2 * x_h + n % 2 * x_w)[pack];
            const float weight[4] = {of_row[0] * of_column[0], of_row[0] * of_column[1], of_row[1] * of_column[0],
                                     of_row[1] * of_column[1]};
#pragma unroll
            for (int pack = 0; pack < kPacks; pack++) {
                SampleWords words;
                blend_words<T>(weight, corner[pack], words);
                reinterpret_cast<uint4*>(pixel.to)[pack] =
                    make_uint4(words.value[0], words.value[1], words.value[2], words.value[3]);
            }
            pixel.to += size.channels;
        }
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
