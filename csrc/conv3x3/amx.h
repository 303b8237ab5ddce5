// SPDX-License-Identifier: Apache-2.0
// The convolution as plain sums of products of bfloat16 on matrix tiles (AMX), in the blocks of the engine: V holds rows of input
// pixels, M[q][tile][column] the sums of a tile's 16 output pixels in float32. Output q of all tiles is one product: the rows of
// its factor are pixels four (or six) columns apart.
//
// The channels are walked in steps of 32, and all outputs take one step before the next: the nine inputs of an output and the
// weights of a step lie in the L1 cache then (a quarter faster than whole sums, though M is read again in every step).
#pragma once
#include "conv3x3/tiles.h"
#include "core/amx.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kSums = 16;

// How V holds the input pixels of a block of tiles: as six rows of pixels, tile_step() of them from tile to tile. An output reads
// nine windows of one pixel; or three windows of three pixels of a row, whose numbers follow each other, where that saves a third
// of the multiplications (they begin anywhere in a cache line then: less is not worth it).
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

// `count` pixels of an image's row from column x on, continued beyond its edges, into a row of V.
template <bool Signed>
inline void copy_row(const Conv3x3Call& call, int64_t pixel, int64_t b, int64_t y, int64_t x, int64_t count, const BFloat16* zeros,
                     BFloat16* out) {
    const Conv3x3Geometry& g = call.geometry;
    const int64_t row = continued(y, g.H, g.mode_h);
    for (int s = 0; s < call.sources.count; out += call.sources.view[s++].channels) {
        const Conv3x3View& view = call.sources.view[s];
        const int64_t line = b * view.b + row * view.h;
        const bool dense = !Signed && view.w == view.channels && pixel == view.channels;
        // Pixels [i, i + n), which lie side by side from `column` on; -1: zeros.
        const auto copy = [&](int64_t i, int64_t n, int64_t column) {
            const bool outside = row < 0 || column < 0;
            const int64_t at = line + column * view.w;
            const BFloat16* from = outside ? zeros : static_cast<const BFloat16*>(view.data) + at;
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

// The input pixels of the tiles [first, first + count). tile, row: numbers of V from tile to tile and from row to row.
inline void copy_block(const Conv3x3Call& call, int64_t first, int64_t count, const BFloat16* zeros, BFloat16* v, int64_t tile,
                       int64_t row) {
    const Conv3x3Geometry& g = call.geometry;
    const PixelRows rows(call.sources.channels());
    const auto copy = call.sources.view[0].sign != nullptr ? copy_row<true> : copy_row<false>;
    const int64_t across = g.tiles_w();
    for (int64_t i = 0, next; i < count; i = next) {
        next = g.gap == 0 ? i + 1 : least(count, i + across - (first + i) % across);  // the end of the tile's row
        const Tile at = tile_at(g, first + i);
        for (int64_t r = 0; r < 6; r++)
            copy(call, rows.pixel, at.b, at.y - g.pad_h + r, at.x - g.pad_w, 4 * (next - i) + 2, zeros, v + r * row + i * tile);
    }
}

// The numbers of V that the last step reads beyond those of the sources; copies do not touch them.
inline void clear_rest(const PixelRows& rows, int64_t channels, int64_t row, BFloat16* v) {
    const int64_t end = rows.depth / rows.window;
    for (int64_t r = 0; channels < end && r < 6; r++)
        for (int64_t at = 0; at + end <= row; at += rows.pixel)
            __builtin_memset(v + r * row + at + channels, 0, (end - channels) * sizeof(BFloat16));
}

// Where V lies, and the numbers from tile to tile and from row to row.
struct PixelBlock {
    const BFloat16* data;
    int64_t tile, row;
};

// One step of one output: Rows x Columns tiles (1 or 2 each) of M (+)= V * packed.
template <int Rows, int Columns, int Window>
FASTDS_HD void add_step(const PixelBlock& v, int64_t pixel, const BFloat16* at, const BFloat16* packed, bool first, float* m,
                        int64_t m_row) {
    using Sums = TileSums<Rows, Columns>;
    constexpr int64_t tile = kTileDepth * kTileColumns;
    constexpr int in_row = 3 / Window;
    Sums::begin(m, m_row, first);
#pragma GCC unroll 9
    for (int tap = 0; tap < 3 * in_row; tap++, packed += Columns * tile)
        Sums::add(at + tap / in_row * v.row + tap % in_row * pixel, v.tile * sizeof(BFloat16), packed, kTileLine,
                  tile * sizeof(BFloat16));
    Sums::end(m, m_row);
}

template <int Rows, int Columns, int Window>
inline void sum_products(const PixelBlock& v, const PixelRows& rows, const BFloat16* packed, float* m, int64_t m_row,
                         int64_t m_plane) {
    constexpr int64_t packed_step = 9 / Window * Columns * kTileDepth * kTileColumns;
    for (int64_t step = 0; step < rows.steps; step++, packed += packed_step)
        for (int64_t q = 0; q < kSums; q++)
            add_step<Rows, Columns, Window>(v, rows.pixel, v.data + rows.first(step) + q / 4 * v.row + q % 4 * rows.pixel, packed,
                                            step == 0, m + q * m_plane, m_row);
}

template <int Rows, int Columns>
constexpr auto products_of(int64_t window) {
    return window == 1 ? sum_products<Rows, Columns, 1> : sum_products<Rows, Columns, 3>;
}

// M of `count` tiles and of the vectors of columns [begin, end), begin even; m: of column vector `begin`. tile, row: as above.
inline void multiply_pixels(const Conv3x3Call& call, int64_t count, const BFloat16* v, int64_t tile, int64_t row, float* m,
                            int64_t m_row, int64_t m_plane, Range vectors) {
    const PixelRows rows(call.sources.channels());
    const BFloat16* packed = reinterpret_cast<const BFloat16*>(call.packed);
    for (int64_t vector = vectors.begin; vector < vectors.end; vector += 2) {
        const bool pair = vector + 1 < vectors.end;
        for (int64_t i = 0; i < count; i += 2 * kTileRows) {
            const bool two = count - i > kTileRows;
            const auto products = pair ? (two ? products_of<2, 2>(rows.window) : products_of<1, 2>(rows.window))
                                       : (two ? products_of<2, 1>(rows.window) : products_of<1, 1>(rows.window));
            products({v + i * tile, tile, row}, rows, packed + 2 * rows.packed_pairs(vector), m + i * m_row + (vector - vectors.begin) * kL,
                     m_row, m_plane);
        }
    }
}
#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
