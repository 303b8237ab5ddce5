// SPDX-License-Identifier: Apache-2.0
// How the convolution on matrix tiles (AMX) lays out inputs and outputs.
//
// Outputs stand at positions: those of a row one after the other, two more positions without outputs, then the next row; behind
// the last row of an image two such rows. Where the input pixels lie at positions in the same way (V), position p reads
// p + y * row + x for 0 <= x, y < 3, whatever p is: 16 positions in succession and 16 filters are one product of a tap.
#pragma once
#include "conv3x3/amx.h"
#include "core/turn.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kGroup = 2 * kTileRows;   // positions of a product
constexpr int64_t kBlockBytes = 512 << 10;  // of V, which shares an L2 cache with filters and sums
constexpr int64_t kBlockPositions = 4096;   // whose places are looked up
constexpr int64_t kBlockRows = 8;           // at least, where images are not higher: each block copies two rows more

// The rows of all images, cut into strips of columns where they are long.
struct Rows {
    int64_t strips, width;  // of an image; outputs of a row of a strip
    int64_t row, high;      // positions of a row; rows of an image
    int64_t count;          // rows of all strips of all images

    Rows(const Conv3x3Geometry& g, const PixelRows& pixels) : high(g.Ho + 2) {
        const int64_t bytes = pixels.pixel * sizeof(BFloat16);
        const int64_t most = least(kBlockBytes / bytes / (kBlockRows + 2), kBlockPositions / kBlockRows) - 2;
        strips = parts_of(g.Wo, most > kTileRows ? most : kTileRows);
        width = parts_of(g.Wo, strips > 0 ? strips : 1);
        row = width + 2;
        count = g.B * strips * high;
    }
};

// A row of a strip: its first output, and their number.
struct Place {
    int64_t b, y, x, width;
};

inline Place row_at(const Conv3x3Geometry& g, const Rows& rows, int64_t index) {
    const int64_t strip = index / rows.high, x = strip % rows.strips * rows.width;
    return {strip / rows.strips, index % rows.high, x, index % rows.high < g.Ho ? least(rows.width, g.Wo - x) : 0};
}

// Calls take(position, pixel, n) for n outputs in succession, at most `most` and never across a multiple of it, of the positions
// of a block, whose first row is `first`.
template <class Take>
void for_outputs(const Conv3x3Geometry& g, const Rows& rows, int64_t first, Range positions, int64_t most, const Take& take) {
    for (int64_t p = positions.begin, n; p < positions.end; p += n) {
        const Place row = row_at(g, rows, first + p / rows.row);
        const int64_t column = p % rows.row;
        n = least(least(rows.row - column, positions.end - p), most - p % most);
        if (column < row.width) {
            n = least(n, row.width - column);
            take(p, Tile{row.b, row.y, row.x + column}, n);
        }
    }
}

#if defined(__AVX512BF16__)
// `count` pixels of `channels` channels, `step` numbers apart, into rows of V. sign: as in Conv3x3View, same steps.
template <bool Signed>
inline void copy_pixels(const BFloat16* from, const BFloat16* sign, int64_t step, int64_t count, int64_t channels, float slope,
                        BFloat16* to, int64_t row) {
    constexpr int lanes = Signed ? kL : 2 * kL;
    for (int64_t channel = 0; channel < channels; channel += lanes) {
        const int64_t rest = least(lanes, channels - channel);
        const __mmask32 mask = rest == 32 ? ~0u : (1u << rest) - 1;
        for (int64_t i = 0; i < count; i++) {
            const BFloat16* at = from + i * step + channel;
            BFloat16* out = to + i * row + channel;
            if constexpr (Signed) {
                const int n = static_cast<int>(rest);
                store_lanes(out, activation_gradient(load_lanes(at, n), load_lanes(sign + i * step + channel, n), slope), n);
            } else if (rest == lanes) {
                _mm512_storeu_si512(out, _mm512_loadu_si512(at));
            } else {
                _mm512_mask_storeu_epi16(out, mask, _mm512_maskz_loadu_epi16(mask, at));
            }
        }
    }
}

// `count` pixels of an image's row from column x on, continued beyond its edges, `pixel` numbers apart.
template <bool Signed>
void copy_row(const Conv3x3Call& call, int64_t b, int64_t y, int64_t x, int64_t count, const BFloat16* zeros, BFloat16* out,
              int64_t pixel) {
    const Conv3x3Geometry& g = call.geometry;
    const int64_t row = continued(y, g.H, g.mode_h);
    for (int s = 0; s < call.sources.count; out += call.sources.view[s++].channels) {
        const Conv3x3View& view = call.sources.view[s];
        const int64_t line = b * view.b + row * view.h;
        const bool dense = !Signed && view.c == 1 && view.w == view.channels && pixel == view.channels;
        // Pixels [i, i + n), which lie side by side from `column` on; -1: zeros.
        const auto copy = [&](int64_t i, int64_t n, int64_t column) {
            const bool outside = row < 0 || column < 0;
            const int64_t at = line + column * view.w;
            const BFloat16* from = outside ? zeros : static_cast<const BFloat16*>(view.data) + at;
            if (view.c != 1 && !outside)
                return turn(reinterpret_cast<const uint16_t*>(from), view.c, view.channels, n,
                            reinterpret_cast<uint16_t*>(out + i * pixel), pixel);
            if (dense && !outside) return static_cast<void>(__builtin_memcpy(out + i * pixel, from, n * pixel * sizeof(*out)));
            copy_pixels<Signed>(from, outside || !Signed ? zeros : static_cast<const BFloat16*>(view.sign) + at,
                                outside ? 0 : view.w, n, view.channels, call.negative_slope, out + i * pixel, pixel);
        };
        if (row < 0) {
            copy(0, count, -1);
            continue;
        }
        const int64_t begin = x < 0 ? least(-x, count) : 0, inside = least(g.W - x, count), end = inside > begin ? inside : begin;
        for (int64_t i = 0; i < begin; i++) copy(i, 1, continued(x + i, g.W, g.mode_w));
        if (end > begin) copy(begin, end - begin, x + begin);
        for (int64_t i = end; i < count; i++) copy(i, 1, continued(x + i, g.W, g.mode_w));
    }
}

#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
