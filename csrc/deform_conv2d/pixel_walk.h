// SPDX-License-Identifier: Apache-2.0
// Order in which output pixels are processed.
#pragma once
#include "core/buffer.h"
#include "core/gemm.h"
#include "deform_conv2d/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

struct RowRange {
    int64_t begin, end;
};

// Walk over the output pixels of the rows [row_begin, row_end) of each image, in strips of columns. All rows of a strip follow
// each other, so that the part of x that their samples read stays in the L2 cache.
struct PixelWalk {
    PixelWalk(const DeformConv2dDims& d, int64_t row_begin, int64_t row_end, int64_t get_row_bytes)
        : row_begin(row_begin), row_end(row_end), columns(d.Wo) {
        // Rows of a strip are the contiguous parts in which NCHW planes are read and written.
        const int64_t least = d.planar ? 128 : 16;
        // Estimated number of rows of x that the samples of one row of a strip read.
        constexpr int64_t kWindowBytes = 256 << 10, kWindowRows = 16;
        const int64_t fits = kWindowBytes * d.Wo / (kWindowRows * get_row_bytes), most = fits < least ? least : fits;
        const int64_t strips = (d.Wo + most - 1) / most;
        strip = (d.Wo + strips - 1) / strips;
    }
    void start(int64_t position) {
        const int64_t height = row_end - row_begin, pixels = height * columns;
        b = position / pixels;
        position %= pixels;
        begin = position / (height * strip) * strip;
        end = begin + strip < columns ? begin + strip : columns;
        position -= begin * height;
        i = row_begin + position / (end - begin);
        j = begin + position % (end - begin);
    }
    void next() { advance(1); }
    // Advances by a number of pixels within one row of the strip.
    void advance(int64_t pixels) {
        j += pixels;
        if (j < end) return;
        j = begin;
        if (++i < row_end) return;
        i = row_begin;
        begin = end < columns ? end : 0;
        if (begin == 0) b++;
        end = begin + strip < columns ? begin + strip : columns;
        j = begin;
    }
    // Returns how many of the next `most` pixels are in the current row of the strip.
    int64_t run(int64_t most) const { return end - j < most ? end - j : most; }

    int64_t row_begin, row_end, columns, strip;
    int64_t b = 0, i = 0, j = 0, begin = 0, end = 0;
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
