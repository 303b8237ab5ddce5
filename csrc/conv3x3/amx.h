// SPDX-License-Identifier: Apache-2.0
// The convolution as plain sums of products of bfloat16 on matrix tiles (AMX), in the blocks of the engine: V[p][tile][channel]
// holds the 36 input pixels of every tile, M[q][tile][column] the sums of its 16 output pixels in float32. Output q reads the
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

FASTDS_HD int64_t steps_of(int64_t channels) { return (channels + kTileDepth - 1) / kTileDepth; }

// Numbers of bfloat16 in a tile's row of V: whole steps, and an odd number of cache lines, which fall into different sets.
FASTDS_HD int64_t pixel_row(int64_t channels) { return (steps_of(channels) | 1) * kTileDepth; }

// Packed filters: for every two vectors of columns (or the last one), every step and every tap, their tiles B.
FASTDS_HD int64_t packed_pairs(int64_t inputs, int64_t vectors) {
    return 9 * steps_of(inputs) * kTileDepth * vectors * kTileColumns / 2;
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

// Copies the 36 input pixels of `count` tiles side by side; out[p * plane + i * row + channel].
template <bool Signed>
inline void copy_tiles(const Conv3x3Call& call, const Tile& tile, int64_t count, const BFloat16* zeros, BFloat16* out, int64_t row,
                       int64_t plane) {
    const Conv3x3Geometry& g = call.geometry;
    for (int s = 0; s < call.sources.count; out += call.sources.view[s++].channels) {
        const Conv3x3View& view = call.sources.view[s];
        for (int p = 0; p < kPoints; p++) {
            const int64_t y = continued(tile.y - g.pad_h + p / 6, g.H, g.mode_h), x = tile.x - g.pad_w + p % 6;
            const int64_t line = tile.b * view.b + y * view.h;
            // Tiles [i, i + n), whose pixels lie 4 columns apart from this one on.
            const auto copy = [&](int64_t i, int64_t n, int64_t column) {
                const bool outside = y < 0 || column < 0;
                const int64_t at = line + column * view.w;
                copy_pixels<Signed>(outside ? zeros : static_cast<const BFloat16*>(view.data) + at,
                                    outside || !Signed ? zeros : static_cast<const BFloat16*>(view.sign) + at,
                                    outside ? 0 : 4 * view.w, n, view.channels, call.negative_slope,
                                    out + p * plane + i * row, row);
            };
            const int64_t begin = x < 0 ? 1 : 0, inside = (g.W - x + 3) / 4, end = least(count, inside > begin ? inside : begin);
            if (begin > 0) copy(0, 1, continued(x, g.W, g.mode_w));
            copy(begin, end - begin, x + 4 * begin);
            for (int64_t i = end; i < count; i++) copy(i, 1, continued(x + 4 * i, g.W, g.mode_w));
        }
    }
}

inline void copy_block(const Conv3x3Call& call, int64_t first, int64_t count, const BFloat16* zeros, BFloat16* v, int64_t row,
                       int64_t plane) {
    const auto copy = call.sources.view[0].sign != nullptr ? copy_tiles<true> : copy_tiles<false>;
    const int64_t across = call.geometry.tiles_w();
    for (int64_t i = 0, next; i < count; i = next) {
        next = least(count, i + across - (first + i) % across);  // the end of the tile's row
        copy(call, tile_at(call.geometry, first + i), next - i, zeros, v + i * row, row, plane);
    }
}

// The channels of V that the last step reads beyond those of the sources; copies do not touch them.
inline void clear_rest(int64_t channels, int64_t rows, BFloat16* v, int64_t row, int64_t plane) {
    const int64_t end = steps_of(channels) * kTileDepth;
    for (int p = 0; channels < end && p < kPoints; p++)
        for (int64_t i = 0; i < rows; i++) __builtin_memset(v + p * plane + i * row + channels, 0, (end - channels) * sizeof(BFloat16));
}

// One step of one output: Rows x Columns tiles (1 or 2 each) of M (+)= V * packed.
template <int Rows, int Columns>
FASTDS_HD void add_step(const BFloat16* v, int64_t row, int64_t plane, const BFloat16* packed, bool first, float* m, int64_t m_row) {
    using Sums = TileSums<Rows, Columns>;
    constexpr int64_t tile = kTileDepth * kTileColumns;
    Sums::begin(m, m_row, first);
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; tap++, packed += Columns * tile)
        Sums::add(v + (tap / 3 * 6 + tap % 3) * plane, row * sizeof(BFloat16), packed, kTileLine, tile * sizeof(BFloat16));
    Sums::end(m, m_row);
}

template <int Rows, int Columns>
inline void sum_products(const BFloat16* v, int64_t row, int64_t plane, const BFloat16* packed, int64_t steps, float* m,
                         int64_t m_row, int64_t m_plane) {
    for (int64_t step = 0; step < steps; step++, v += kTileDepth, packed += 9 * Columns * kTileDepth * kTileColumns)
        for (int q = 0; q < kSums; q++)
            add_step<Rows, Columns>(v + (q / 4 * 6 + q % 4) * plane, row, plane, packed, step == 0, m + q * m_plane, m_row);
}

// M of `count` tiles and of the vectors of columns [begin, end), begin even; m: of column vector `begin`.
inline void multiply_pixels(const Conv3x3Call& call, int64_t count, const BFloat16* v, int64_t row, int64_t plane, float* m,
                            int64_t m_row, int64_t m_plane, Range vectors) {
    const int64_t steps = steps_of(call.sources.channels());
    const BFloat16* packed = reinterpret_cast<const BFloat16*>(call.packed);
    for (int64_t vector = vectors.begin; vector < vectors.end; vector += 2) {
        const auto sums = vector + 1 < vectors.end
                              ? [](bool two) { return two ? sum_products<2, 2> : sum_products<1, 2>; }
                              : [](bool two) { return two ? sum_products<2, 1> : sum_products<1, 1>; };
        for (int64_t i = 0; i < count; i += 2 * kTileRows)
            sums(count - i > kTileRows)(v + i * row, row, plane, packed + 9 * steps * kTileDepth * kTileColumns * vector, steps,
                                        m + i * m_row + (vector - vectors.begin) * kL, m_row, m_plane);
    }
}
#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
