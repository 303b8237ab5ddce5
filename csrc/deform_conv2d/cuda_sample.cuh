// SPDX-License-Identifier: Apache-2.0
// First of the two passes of deform_conv2d: writes the samples as a matrix, the columns, whose product with the weight is y. The
// caller computes the product with a library, and passes as many lines of pixels as its memory for columns holds.
//
// A lane computes kPacks * 16 bytes of adjacent channels of one pixel, tap after tap. The displacement and the mask of the next
// tap are loaded before the corners of this tap, and there are no branches between the loads. Neighbouring lanes have
// neighbouring channels, and a block has pixels of tiles of 8 x 8, whose corners share lines of the L1 cache.
#pragma once
#include <algorithm>

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

// The displacement and the mask of a sample.
struct Displacement {
    float y, x, mask;
};

// A sample and the first of the four corners around it.
struct SampleCorners {
    bool inside;
    int y0, x0, height, width;
    float ly, lx, mask;  // ly, lx: fractions towards the second row and column

    __device__ __forceinline__ bool has_row(int n) const { return inside && (n == 0 ? y0 >= 0 : y0 + 1 < height); }
    __device__ __forceinline__ bool has_column(int n) const { return n == 0 ? x0 >= 0 : x0 + 1 < width; }
    __device__ __forceinline__ bool has(int n) const { return has_row(n / 2) && has_column(n % 2); }

    // Writes the mask times the weight of each corner, 0 outside the image.
    __device__ __forceinline__ void get_weights(float (&weight)[4]) const {
        const float of_row[2] = {(1 - ly) * mask, ly * mask}, of_column[2] = {1 - lx, lx};
#pragma unroll
        for (int n = 0; n < 4; n++) weight[n] = has(n) ? of_row[n / 2] * of_column[n % 2] : 0;
    }
};

// Distance of the taps in rows and columns, and the number of taps in a row.
struct TapGrid {
    __device__ __forceinline__ explicit TapGrid(const DeformConv2dDims& d)
        : height(static_cast<float>(d.dil_h)), width(static_cast<float>(d.dil_w)), row(static_cast<int>(d.kw)) {}
    float height, width;
    int row;
};

// Returns the sample at a position in the image.
template <class T>
__device__ __forceinline__ SampleCorners find_corners(const DeformConv2dDims& d, const Inputs<T>& in, float y, float x, float mask,
                                                      bool sigmoid_of_mask) {
    SampleCorners sample;
    sample.inside = sample_inside(y, x, in.height, in.width);
    y = sample.inside ? y : 0, x = sample.inside ? x : 0;
    const float floor_y = floorf(y), floor_x = floorf(x);
    sample.y0 = static_cast<int>(floor_y), sample.x0 = static_cast<int>(floor_x);
    sample.height = static_cast<int>(d.H), sample.width = static_cast<int>(d.W);
    sample.ly = y - floor_y, sample.lx = x - floor_x;
    sample.mask = sigmoid_of_mask ? sigmoid<float>(FastFloat(mask)).value : mask;
    return sample;
}

// Loads the corners of kPacks * 16 bytes of channels, of which `x` has the first one. Strides are in bytes. Corners outside the
// image are not loaded, so that a NaN of a pixel nearby does not become NaN * 0.
template <int kPacks, class T>
__device__ __forceinline__ void load_corners(const SampleCorners& sample, const T* x, int x_h, int x_w,
                                             SampleWords (&corner)[kPacks][4]) {
    const char* corner_00 = reinterpret_cast<const char*>(x) + (sample.y0 * x_h + sample.x0 * x_w);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int pack = 0; pack < kPacks; pack++)
            if (sample.has(n))
                corner[pack][n] = reinterpret_cast<const SampleWords*>(corner_00 + n / 2 * x_h + n % 2 * x_w)[pack];
}

// A pixel, its tensors at the channels of a lane, and its row of the columns. Offset is the type of the offsets, T or float, and
// Column is T, or const T for columns that are read.
template <class T, class Offset, class Column>
struct SampledPixel {
    const T* x;
    const Offset* offset;  // of the next tap to load, as mask
    const T* mask;         // null: all ones
    float row, column;     // coordinates of tap (0, 0) before displacement, with the base offset
    Column* at;            // columns of the next tap
    int64_t image, number;          // number: of the pixel in all images
    int kernel_row, kernel_column;  // of the next tap
    Displacement next;

    __device__ __forceinline__ void load_displacement() {
        const auto pair = *reinterpret_cast<const Pack<Offset, 2>*>(offset);
        next = {load(pair.value[0]), load(pair.value[1]), mask != nullptr ? load(*mask) : 1.f};
    }

    // Returns the sample of the next tap, and loads the displacement of the tap after it unless this is the last one. The caller
    // advances `at`.
    __device__ __forceinline__ SampleCorners take_tap(const DeformConv2dDims& d, const Inputs<T>& in, const TapGrid& taps,
                                                      bool sigmoid_of_mask, bool is_last) {
        const Displacement now = next;
        const int ahead = is_last ? 0 : 1;
        offset += 2 * ahead, mask += mask != nullptr ? ahead : 0;
        load_displacement();
        const float y = row + static_cast<float>(kernel_row) * taps.height + now.y;
        const float x = column + static_cast<float>(kernel_column) * taps.width + now.x;
        if (++kernel_column == taps.row) kernel_column = 0, kernel_row++;
        return find_corners(d, in, y, x, now.mask, sigmoid_of_mask);
    }
};

// Finds the pixel of a place in the tiles, for a lane that starts at a channel and a tap. Returns false for places without a
// pixel. The caller loads the first displacement.
template <class T, class Offset, class Column>
__device__ __forceinline__ bool find_pixel(const DeformConv2dDims& d, const Inputs<T>& in, const Groups& size,
                                           const DeformConv2dOffsetEpilogue& epilogue, const SampleLines& lines, int place,
                                           int channel, int tap, Column* columns, SampledPixel<T, Offset, Column>& pixel) {
    const int tile = place / (kSampleTile * kSampleTile), inside = place % (kSampleTile * kSampleTile);
    const int tile_line = tile / lines.tiles_across, width = static_cast<int>(d.Wo), height = static_cast<int>(d.Ho);
    const int line = tile_line * kSampleTile + inside / kSampleTile;
    const int j = (tile - tile_line * lines.tiles_across) * kSampleTile + inside % kSampleTile;
    if (line >= lines.count || j >= width) return false;
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
    pixel.at = columns + ((group * pixels + p) * size.K + tap) * size.channels + (channel - group * size.channels);
    pixel.image = b, pixel.number = int64_t{lines.first} * width + p;
    pixel.kernel_row = tap / static_cast<int>(d.kw), pixel.kernel_column = tap % static_cast<int>(d.kw);
    return true;
}

// The equal share of a block of all (lane, tap), which advances over blocks of lanes and their taps [first, end).
struct SampleShare {
    int first, end;

    __device__ __forceinline__ SampleShare(const SampleLines& lines, int taps) : taps_(taps) {
        const int64_t units = (int64_t{lines.items} + kSampleThreads - 1) / kSampleThreads * taps;
        unit_ = units * blockIdx.x / gridDim.x, last_ = units * (blockIdx.x + 1) / gridDim.x;
    }

    // Returns false at the end of the share. Otherwise `item` is the number of this lane.
    __device__ __forceinline__ bool advance(int& item) {
        if (unit_ >= last_) return false;
        const int64_t lanes = unit_ / taps_;
        first = static_cast<int>(unit_ - lanes * taps_);
        end = static_cast<int>(min(last_ - lanes * taps_, int64_t{taps_}));
        unit_ = lanes * taps_ + end;
        item = static_cast<int>(lanes) * kSampleThreads + threadIdx.x;
        return true;
    }

  private:
    int taps_;
    int64_t unit_, last_;
};

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
    const TapGrid taps(d);
    // In bytes, so that a corner is one addition away; the launch checks that they fit.
    const int x_h = static_cast<int>(d.x_h * sizeof(T)), x_w = static_cast<int>(d.x_w * sizeof(T));
    SampleShare share(lines, size.K);
    for (int item; share.advance(item);) {
        const int place = item / lines.packs, channel = (item - place * lines.packs) * kPacks * kVector<T>;
        SampledPixel<T, Offset, T> pixel;
        if (!find_pixel(d, in, size, epilogue, lines, place, channel, share.first, columns, pixel)) continue;
        pixel.load_displacement();
        for (int k = share.first; k < share.end; k++) {
            const SampleCorners sample = pixel.take_tap(d, in, taps, epilogue.sigmoid, k + 1 == share.end);
            SampleWords corner[kPacks][4] = {};
            load_corners(sample, pixel.x, x_h, x_w, corner);
            float weight[4];
            sample.get_weights(weight);
#pragma unroll
            for (int pack = 0; pack < kPacks; pack++) {
                SampleWords words;
                blend_words<T>(weight, corner[pack], words);
                reinterpret_cast<uint4*>(pixel.at)[pack] =
                    make_uint4(words.value[0], words.value[1], words.value[2], words.value[3]);
            }
            pixel.at += size.channels;
        }
    }
}

// Checks what the kernels on samples require of a call.
template <class T, class Offset, class Tensors>
void check_samples(const DeformConv2dDims& d, const Tensors& t, int64_t first_line, int64_t lines) {
    check_sizes(d);
    FASTDS_CHECK(first_line >= 0 && lines > 0 && first_line + lines <= d.B * d.Ho, "deform_conv2d: lines outside the output");
    const int64_t odd = d.offset_b | d.offset_h | d.offset_w;
    FASTDS_CHECK(can_load_packs<T>(d, t.x) && odd % 2 == 0 && reinterpret_cast<uintptr_t>(t.offset) % (2 * sizeof(Offset)) == 0,
                 "deform_conv2d: channels, strides and addresses must permit loads of 16 bytes and of pairs of offsets");
    FASTDS_CHECK(((d.H + 1) * d.x_h + (d.W + 1) * d.x_w) * static_cast<int64_t>(sizeof(T)) <= INT32_MAX && d.B * d.Ho + kSampleTile <= INT32_MAX &&
                     d.Ho * d.stride_h + d.pad_h <= INT32_MAX && d.Wo * d.stride_w + d.pad_w <= INT32_MAX,
                 "deform_conv2d: an image is larger than 32-bit positions reach");
}

// Returns the lines of a launch with `packs` lanes for each pixel.
inline SampleLines make_lines(const DeformConv2dDims& d, int64_t first_line, int64_t count, int64_t packs) {
    const int64_t across = ceil_div(d.Wo, kSampleTile);
    const int64_t items = across * ceil_div(count, kSampleTile) * kSampleTile * kSampleTile * packs;
    FASTDS_CHECK(items <= INT32_MAX - kSampleThreads, "deform_conv2d: too many lines for one launch");
    return {static_cast<int>(first_line), static_cast<int>(count), static_cast<int>(across), static_cast<int>(packs),
            static_cast<int>(items)};
}

// Returns the number of blocks of a launch of which `blocks` are resident on a multiprocessor.
inline unsigned count_sample_blocks(const DeformConv2dDims& d, const SampleLines& lines, int blocks, int device) {
    const int64_t units = ceil_div(lines.items, kSampleThreads) * d.kh * d.kw;
    return get_grid_size(std::min(units, int64_t{blocks} * count_multiprocessors(device)));
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
