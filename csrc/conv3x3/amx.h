// SPDX-License-Identifier: Apache-2.0
// The convolution as plain sums of products of bfloat16 on matrix tiles (AMX): how filters and pixels lie. See cpu_amx.cpp.
#pragma once
#include "conv3x3/tiles.h"
#include "core/amx.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// How the input pixels of an output are multiplied: as nine windows of one pixel; or three windows of three pixels of a row,
// whose numbers follow each other, where that saves a third of the multiplications (they begin anywhere in a cache line then:
// less is not worth it).
struct PixelRows {
    int64_t window, taps;   // pixels of a window, windows of an output
    int64_t pixel;          // numbers of bfloat16 from pixel to pixel, even
    int64_t depth, steps;   // numbers of a window, and the multiplications that take them
    int64_t in_step;        // numbers of one of them

    explicit PixelRows(int64_t channels) {
        const int64_t even = round_up(channels, 2), parts = parts_of(channels, kTileDepth);
        window = parts_of(3 * even, kTileDepth) <= 2 * parts ? 3 : 1;
        taps = 9 / window;
        depth = window == 3 ? 3 * even : parts * kTileDepth;
        steps = parts_of(depth, kTileDepth);
        in_step = least(depth, kTileDepth);
        // Single pixels: an odd number of cache lines, which fall into different sets.
        pixel = window == 3 ? even : (parts | 1) * kTileDepth;
    }
    // The first number of a step: the last one takes some again, with weights of zero, rather than those behind the window.
    int64_t first(int64_t step) const { return least(step * kTileDepth, depth - in_step); }
    // Packed filters: for every two vectors of columns (or the last one), every step and every tap, their tiles B.
    int64_t packed_pairs(int64_t vectors) const { return taps * steps * kTileDepth * vectors * kTileColumns / 2; }
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
