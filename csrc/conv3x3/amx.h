// SPDX-License-Identifier: Apache-2.0
// The convolution as plain sums of products of bfloat16 on matrix tiles (AMX), in the blocks of the engine: V[p][tile][number]
// holds the input pixels of every tile, M[q][tile][column] the sums of its 16 output pixels in float32. Output q reads the
// inputs q + (0..2, 0..2).
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

// Runs of so many pixels in a row of six.
FASTDS_HD constexpr int64_t across_of(int64_t pixels) { return 7 - pixels; }

// How V holds the pixels of a tile: 36 planes of one pixel, of which an output reads nine; or, where the depth of a multiplication
// has room for it, 24 planes of three pixels of a row side by side, of which it reads three.
struct PixelPlanes {
    int64_t pixels, across, taps;  // of a plane; planes of a row of pixels; planes that an output reads
    int64_t depth, steps;          // numbers of a tile's row, and the multiplications that take them

    explicit PixelPlanes(int64_t channels) {
        pixels = 3 * channels <= kTileDepth ? 3 : 1;
        across = across_of(pixels);
        taps = 9 / pixels;
        depth = pixels * channels;
        steps = parts_of(depth, kTileDepth);
    }
    int64_t count() const { return 6 * across; }
    // Numbers of bfloat16 in a row: whole steps, and an odd number of cache lines, which fall into different sets.
    int64_t row() const { return (steps | 1) * kTileDepth; }
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

// Copies the input pixels of `count` tiles side by side; out[p * plane + i * row + number].
template <bool Signed>
inline void copy_tiles(const Conv3x3Call& call, const PixelPlanes& planes, const Tile& tile, int64_t count, const BFloat16* zeros,
                       BFloat16* out, int64_t row, int64_t plane) {
    const Conv3x3Geometry& g = call.geometry;
    const int64_t channels = call.sources.channels();
    for (int s = 0; s < call.sources.count; out += call.sources.view[s++].channels) {
        const Conv3x3View& view = call.sources.view[s];
        const bool dense = view.channels == channels && view.w == channels;
        for (int64_t p = 0; p < planes.count(); p++) {
            const int64_t y = continued(tile.y - g.pad_h + p / planes.across, g.H, g.mode_h);
            const int64_t x = tile.x - g.pad_w + p % planes.across, line = tile.b * view.b + y * view.h;
            BFloat16* to = out + p * plane;
            // Tiles [i, i + n), whose pixels lie 4 columns apart from this one on; pixel: of the plane's.
            const auto copy = [&](int64_t i, int64_t n, int64_t column, int64_t pixel, int64_t numbers) {
                const bool outside = y < 0 || column < 0;
                const int64_t at = line + column * view.w;
                copy_pixels<Signed>(outside ? zeros : static_cast<const BFloat16*>(view.data) + at,
                                    outside || !Signed ? zeros : static_cast<const BFloat16*>(view.sign) + at,
                                    outside ? 0 : 4 * view.w, n, numbers, call.negative_slope, to + i * row + pixel * channels, row);
            };
            const auto copy_edge = [&](int64_t i) {
                for (int64_t k = 0; k < planes.pixels; k++) copy(i, 1, continued(x + 4 * i + k, g.W, g.mode_w), k, view.channels);
            };
            const int64_t begin = x < 0 ? 1 : 0, inside = (g.W - x - planes.pixels + 4) / 4;
            const int64_t end = least(count, inside > begin ? inside : begin);
            if (begin > 0) copy_edge(0);
            if (dense && y >= 0)  // the zeros are of one pixel
                copy(begin, end - begin, x + 4 * begin, 0, planes.depth);
            else
                for (int64_t k = 0; k < planes.pixels; k++) copy(begin, end - begin, x + 4 * begin + k, k, view.channels);
            for (int64_t i = end; i < count; i++) copy_edge(i);
        }
    }
}

inline void copy_block(const Conv3x3Call& call, int64_t first, int64_t count, const BFloat16* zeros, BFloat16* v, int64_t row,
                       int64_t plane) {
    const PixelPlanes planes(call.sources.channels());
    const auto copy = call.sources.view[0].sign != nullptr ? copy_tiles<true> : copy_tiles<false>;
    const int64_t across = call.geometry.tiles_w();
    for (int64_t i = 0, next; i < count; i = next) {
        next = least(count, i + across - (first + i) % across);  // the end of the tile's row
        copy(call, planes, tile_at(call.geometry, first + i), next - i, zeros, v + i * row, row, plane);
    }
}

// The numbers of V that the last step reads beyond those of the sources; copies do not touch them.
inline void clear_rest(const PixelPlanes& planes, int64_t rows, BFloat16* v, int64_t row, int64_t plane) {
    const int64_t end = planes.steps * kTileDepth;
    for (int64_t p = 0; planes.depth < end && p < planes.count(); p++)
        for (int64_t i = 0; i < rows; i++)
            __builtin_memset(v + p * plane + i * row + planes.depth, 0, (end - planes.depth) * sizeof(BFloat16));
}

// One step of one output: Rows x Columns tiles (1 or 2 each) of M (+)= V * packed. Pixels: of a plane.
template <int Rows, int Columns, int Pixels>
FASTDS_HD void add_step(const BFloat16* v, int64_t row, int64_t plane, const BFloat16* packed, bool first, float* m, int64_t m_row) {
    using Sums = TileSums<Rows, Columns>;
    constexpr int64_t tile = kTileDepth * kTileColumns, across = across_of(Pixels);
    constexpr int in_row = 3 / Pixels;
    Sums::begin(m, m_row, first);
#pragma GCC unroll 9
    for (int tap = 0; tap < 3 * in_row; tap++, packed += Columns * tile)
        Sums::add(v + (tap / in_row * across + tap % in_row) * plane, row * sizeof(BFloat16), packed, kTileLine,
                  tile * sizeof(BFloat16));
    Sums::end(m, m_row);
}

template <int Rows, int Columns, int Pixels>
inline void sum_products(const BFloat16* v, int64_t row, int64_t plane, const BFloat16* packed, int64_t steps, float* m,
                         int64_t m_row, int64_t m_plane) {
    constexpr int64_t across = across_of(Pixels), packed_step = 9 / Pixels * Columns * kTileDepth * kTileColumns;
    for (int64_t step = 0; step < steps; step++, v += kTileDepth, packed += packed_step)
        for (int64_t q = 0; q < kSums; q++)
            add_step<Rows, Columns, Pixels>(v + (q / 4 * across + q % 4) * plane, row, plane, packed, step == 0, m + q * m_plane,
                                            m_row);
}

template <int Rows, int Columns>
constexpr auto products_of(int64_t pixels) {
    return pixels == 1 ? sum_products<Rows, Columns, 1> : sum_products<Rows, Columns, 3>;
}

// M of `count` tiles and of the vectors of columns [begin, end), begin even; m: of column vector `begin`.
inline void multiply_pixels(const Conv3x3Call& call, int64_t count, const BFloat16* v, int64_t row, int64_t plane, float* m,
                            int64_t m_row, int64_t m_plane, Range vectors) {
    const PixelPlanes planes(call.sources.channels());
    const BFloat16* packed = reinterpret_cast<const BFloat16*>(call.packed);
    for (int64_t vector = vectors.begin; vector < vectors.end; vector += 2) {
        const bool pair = vector + 1 < vectors.end;
        for (int64_t i = 0; i < count; i += 2 * kTileRows) {
            const bool two = count - i > kTileRows;
            const auto products = pair ? (two ? products_of<2, 2>(planes.pixels) : products_of<1, 2>(planes.pixels))
                                       : (two ? products_of<2, 1>(planes.pixels) : products_of<1, 1>(planes.pixels));
            products(v + i * row, row, plane, packed + 2 * planes.packed_pairs(vector), planes.steps,
                     m + i * m_row + (vector - vectors.begin) * kL, m_row, m_plane);
        }
    }
}
#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
