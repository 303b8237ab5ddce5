// SPDX-License-Identifier: Apache-2.0
// Arrangement of inputs and outputs for the convolution with AMX tiles.
//
// Outputs have consecutive positions. Each row of outputs is followed by two positions without outputs, and each image by two
// rows without outputs. Input pixels (V) have positions in the same arrangement, so that output position p reads the inputs p +
// y * row + x with 0 <= x, y < 3. 16 consecutive positions form a tile; one tap of a tile times 16 filters is one tile product.
// Each tile starts at the first output that no earlier tile holds and thereby skips positions without outputs.
#pragma once
#include "conv3x3/amx.h"
#include "core/transpose_simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kBlockRows = 8;  // minimum rows of a block (unless images are lower), because each block copies two rows more

// The rows of all images. Long rows are divided into strips of columns. `most` is the approximate number of positions in a
// block.
struct Rows {
    int64_t strips, width;  // strips per image; outputs in a row of a strip
    int64_t row, high;      // positions in a row; rows of an image, including the two rows without outputs
    int64_t count;          // rows of all strips of all images

    Rows(const Conv3x3Geometry& g, int64_t most) : high(g.Ho + 2) {
        const int64_t widest = most / kBlockRows - 2;
        strips = count_parts(g.Wo, widest > kTileRows ? widest : kTileRows);
        width = count_parts(g.Wo, strips > 0 ? strips : 1);
        row = width + 2;
        count = g.B * strips * high;
    }
};

// A row of a strip: image, row and column of its first output, and its number of outputs.
struct RowPosition {
    int64_t b, y, x, width;
};

inline RowPosition get_row(const Conv3x3Geometry& g, const Rows& rows, int64_t index) {
    const int64_t strip = index / rows.high, x = strip % rows.strips * rows.width;
    return {strip / rows.strips, index % rows.high, x, index % rows.high < g.Ho ? min_of(rows.width, g.Wo - x) : 0};
}

inline void advance_row(const Conv3x3Geometry& g, const Rows& rows, RowPosition& row) {
    if (++row.y == rows.high) {
        row.y = 0;
        row.x += rows.width;
        if (row.x >= g.Wo) row.x = 0, row.b++;
    }
    row.width = row.y < g.Ho ? min_of(rows.width, g.Wo - row.x) : 0;
}

// Calls take(position, pixel, n) for each sequence of n adjacent outputs among the given positions of a block. `first` is the
// first row of the block.
template <class Take>
void for_outputs(const Conv3x3Geometry& g, const Rows& rows, int64_t first, Range positions, const Take& take) {
    if (positions.begin == positions.end) return;
    RowPosition row = get_row(g, rows, first + positions.begin / rows.row);
    int64_t column = positions.begin % rows.row;
    for (int64_t p = positions.begin - column; p < positions.end; p += rows.row, column = 0, advance_row(g, rows, row)) {
        const int64_t n = min_of(row.width, positions.end - p) - column;
        if (n > 0) take(p + column, Tile{row.b, row.y, row.x + column}, n);
    }
}

// Runs of `length` positions that together hold all outputs of a block. Each run starts at the first output that no earlier run
// holds.
struct Runs {
    int64_t first, positions;  // first row of the block; number of its positions
    int64_t length, count;
    const int32_t* begin;
};

// Finds the runs of a block of rows. `memory` holds their starts; it needs at most count_parts(positions, length) elements.
inline Runs find_runs(const Conv3x3Geometry& g, const Rows& rows, Range block, int64_t length, int32_t* memory) {
    Runs runs{block.begin, (block.end - block.begin) * rows.row, length, 0, memory};
    int64_t next = 0;  // end of the last run
    for_outputs(g, rows, runs.first, Range{0, runs.positions}, [&](int64_t p, const Tile&, int64_t n) {
        for (; next < p + n; next = memory[runs.count++] + length) memory[runs.count] = static_cast<int32_t>(next > p ? next : p);
    });
    return runs;
}

// Calls take(run, i, pixel, n) for each sequence of n adjacent outputs at the positions i, i + 1, ... of a run.
template <class Take>
void for_runs(const Conv3x3Geometry& g, const Rows& rows, const Runs& runs, Range some, const Take& take) {
    if (some.begin == some.end) return;
    int64_t run = some.begin;
    const auto end = [&](int64_t i) { return runs.begin[i] + runs.length; };
    const Range positions{runs.begin[run], min_of(end(some.end - 1), runs.positions)};
    for_outputs(g, rows, runs.first, positions, [&](int64_t p, Tile pixel, int64_t n) {
        for (const int64_t last = p + n; p < last; p += n, pixel.x += n) {
            run += p >= end(run);
            n = min_of(last, end(run)) - p;
            take(run, p - runs.begin[run], pixel, n);
        }
    });
}

// Calls take(i, n, row, column) for `count` pixels of a row from column x on, including pixels beyond the image that padding
// supplies. The pixels [i, i + n) are adjacent in memory from (row, column) on; a column of -1 means zeros.
template <class Take>
void for_pixels(const Conv3x3Geometry& g, int64_t y, int64_t x, int64_t count, const Take& take) {
    const int64_t row = apply_padding(y, g.H, g.mode_h);
    if (row < 0) return take(0, count, -1, -1);
    const int64_t begin = x < 0 ? min_of(-x, count) : 0, inside = min_of(g.W - x, count), end = inside > begin ? inside : begin;
    for (int64_t i = 0; i < begin; i++) take(i, 1, row, apply_padding(x + i, g.W, g.mode_w));
    if (end > begin) take(begin, end - begin, row, x + begin);
    for (int64_t i = end; i < count; i++) take(i, 1, row, apply_padding(x + i, g.W, g.mode_w));
}

#if defined(__AVX512BF16__)
// Copies `count` pixels of `channels` channels into rows of V. The source pixels are `step` elements apart, the rows of V
// `row`. `sign` is that of Conv3x3View, with the same step.
template <bool Signed>
inline void copy_pixels(const BFloat16* from, const BFloat16* sign, int64_t step, int64_t count, int64_t channels, float slope,
                        BFloat16* to, int64_t row) {
    constexpr int lanes = Signed ? kL : 2 * kL;
    for (int64_t channel = 0; channel < channels; channel += lanes) {
        const int64_t rest = min_of(lanes, channels - channel);
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

// Copies `count` pixels of an image row from column x on, with padding beyond the edges. The copied pixels are `pixel` elements
// apart.
template <bool Signed>
void copy_row(const Conv3x3Geometry& g, const Conv3x3Views& sources, float slope, int64_t b, int64_t y, int64_t x, int64_t count,
              const BFloat16* zeros, BFloat16* out, int64_t pixel) {
    for (int s = 0; s < sources.count; out += sources.view[s++].channels) {
        const Conv3x3View& view = sources.view[s];
        const bool dense = !Signed && view.c == 1 && view.w == view.channels && pixel == view.channels;
        for_pixels(g, y, x, count, [&](int64_t i, int64_t n, int64_t row, int64_t column) {
            BFloat16* to = out + i * pixel;
            if (column < 0) return copy_pixels<false>(zeros, zeros, 0, n, view.channels, 0.f, to, pixel);
            const int64_t at = view.offset(b, row, column);
            const BFloat16* from = static_cast<const BFloat16*>(view.data) + at;
            if (dense)
                __builtin_memcpy(to, from, n * pixel * sizeof(*to));
            else if (view.c != 1)
                transpose_rows(reinterpret_cast<const uint16_t*>(from), view.c, view.channels, n,
                               reinterpret_cast<uint16_t*>(to), pixel);
            else
                copy_pixels<Signed>(from, Signed ? static_cast<const BFloat16*>(view.sign) + at : zeros, view.w, n, view.channels,
                                    slope, to, pixel);
        });
    }
}
#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
