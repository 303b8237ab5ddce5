// SPDX-License-Identifier: Apache-2.0
// How the convolution on matrix tiles (AMX) lays out inputs and outputs.
//
// Outputs stand at positions: those of a row one after the other, two more positions without outputs, then the next row; behind
// the last row of an image two such rows. Where the input pixels lie at positions in the same way (V), position p reads
// p + y * row + x for 0 <= x, y < 3, whatever p is: 16 positions in succession, a tile, and 16 filters are one product of a tap.
// A tile begins at the first output that those before it do not hold: so it skips positions without outputs where it can.
#pragma once
#include "conv3x3/amx.h"
#include "core/turn.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kBlockRows = 8;  // at least, where images are not higher: each block has two rows more

// The rows of all images, cut into strips of columns where they are long. most: positions of a block, about.
struct Rows {
    int64_t strips, width;  // of an image; outputs of a row of a strip
    int64_t row, high;      // positions of a row; rows of an image
    int64_t count;          // rows of all strips of all images

    Rows(const Conv3x3Geometry& g, int64_t most) : high(g.Ho + 2) {
        const int64_t widest = most / kBlockRows - 2;
        strips = parts_of(g.Wo, widest > kTileRows ? widest : kTileRows);
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

inline void to_next(const Conv3x3Geometry& g, const Rows& rows, Place& row) {
    if (++row.y == rows.high) {
        row.y = 0;
        row.x += rows.width;
        if (row.x >= g.Wo) row.x = 0, row.b++;
    }
    row.width = row.y < g.Ho ? least(rows.width, g.Wo - row.x) : 0;
}

// Calls take(position, pixel, n) for n outputs in succession of these positions of a block, whose first row is `first`.
template <class Take>
void for_outputs(const Conv3x3Geometry& g, const Rows& rows, int64_t first, Range positions, const Take& take) {
    if (positions.begin == positions.end) return;
    Place row = row_at(g, rows, first + positions.begin / rows.row);
    int64_t column = positions.begin % rows.row;
    for (int64_t p = positions.begin - column; p < positions.end; p += rows.row, column = 0, to_next(g, rows, row)) {
        const int64_t n = least(row.width, positions.end - p) - column;
        if (n > 0) take(p + column, Tile{row.b, row.y, row.x + column}, n);
    }
}

// Runs of `length` positions that hold all outputs of a block: each begins at the first that those before it do not hold.
struct Runs {
    int64_t first, positions;  // of the block: its first row, and all of them
    int64_t length, count;
    const int32_t* begin;
};

// memory: for parts_of(positions, length) numbers, the most that are needed.
inline Runs find_runs(const Conv3x3Geometry& g, const Rows& rows, Range block, int64_t length, int32_t* memory) {
    Runs runs{block.begin, (block.end - block.begin) * rows.row, length, 0, memory};
    int64_t next = 0;  // behind the last run
    for_outputs(g, rows, runs.first, Range{0, runs.positions}, [&](int64_t p, const Tile&, int64_t n) {
        for (; next < p + n; next = memory[runs.count++] + length) memory[runs.count] = static_cast<int32_t>(next > p ? next : p);
    });
    return runs;
}

// Calls take(run, i, pixel, n) for n outputs in succession, at positions i and following of a run.
template <class Take>
void for_runs(const Conv3x3Geometry& g, const Rows& rows, const Runs& runs, Range some, const Take& take) {
    if (some.begin == some.end) return;
    int64_t run = some.begin;
    const auto end = [&](int64_t i) { return runs.begin[i] + runs.length; };
    const Range positions{runs.begin[run], least(end(some.end - 1), runs.positions)};
    for_outputs(g, rows, runs.first, positions, [&](int64_t p, Tile pixel, int64_t n) {
        for (const int64_t behind = p + n; p < behind; p += n, pixel.x += n) {
            run += p >= end(run);
            n = least(behind, end(run)) - p;
            take(run, p - runs.begin[run], pixel, n);
        }
    });
}

// Calls take(i, n, row, column) for `count` pixels of a row from column x on, continued beyond the edges of an image: pixels
// [i, i + n) lie side by side from there on, or are zeros (column -1).
template <class Take>
void for_pixels(const Conv3x3Geometry& g, int64_t y, int64_t x, int64_t count, const Take& take) {
    const int64_t row = continued(y, g.H, g.mode_h);
    if (row < 0) return take(0, count, -1, -1);
    const int64_t begin = x < 0 ? least(-x, count) : 0, inside = least(g.W - x, count), end = inside > begin ? inside : begin;
    for (int64_t i = 0; i < begin; i++) take(i, 1, row, continued(x + i, g.W, g.mode_w));
    if (end > begin) take(begin, end - begin, row, x + begin);
    for (int64_t i = end; i < count; i++) take(i, 1, row, continued(x + i, g.W, g.mode_w));
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
                turn(reinterpret_cast<const uint16_t*>(from), view.c, view.channels, n, reinterpret_cast<uint16_t*>(to), pixel);
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
