// SPDX-License-Identifier: Apache-2.0
// Memory layout of filters and pixels for the convolution with AMX tiles, which sums products of bfloat16 directly, without a
// Winograd transform (cpu_amx.cpp).
#pragma once
#include "conv3x3/tiles.h"
#include "core/amx.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Decomposition of the nine input pixels of an output into windows that are multiplied at once. The first choice is nine
// windows of one pixel. The second is three windows of three adjacent pixels of a row, whose channels are contiguous. The
// second is used only if it saves at least a third of the multiplications, because its windows start at arbitrary positions in
// a cache line.
struct PixelRows {
    int64_t window, taps;   // pixels of a window; windows of an output
    int64_t pixel;          // distance between pixels in bfloat16 elements; even
    int64_t depth, steps;   // elements of a window; multiplications that one window needs
    int64_t in_step;        // elements of one such multiplication

    explicit PixelRows(int64_t channels) {
        const int64_t even = round_up(channels, 2), parts = count_parts(channels, kTileDepth);
        window = count_parts(3 * even, kTileDepth) <= 2 * parts ? 3 : 1;
        taps = 9 / window;
        depth = window == 3 ? 3 * even : parts * kTileDepth;
        steps = count_parts(depth, kTileDepth);
        in_step = min_of(depth, kTileDepth);
        // For windows of one pixel, the distance is an odd number of cache lines, so that pixels are spread over the sets of
        // the cache.
        pixel = window == 3 ? even : (parts | 1) * kTileDepth;
    }
    // Returns the first element of a step. The last step overlaps the step before, with weights of zero for the elements that
    // were already multiplied, so that it does not read beyond the window.
    int64_t first(int64_t step) const { return min_of(step * kTileDepth, depth - in_step); }
    // Returns the position in the packed filters, in pairs of elements, of the given vector of columns. The order is: every two
    // vectors of columns (or the last one), every step, every tap; each has its tiles of B.
    int64_t packed_pairs(int64_t vectors) const { return taps * steps * kTileDepth * vectors * kTileColumns / 2; }
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
