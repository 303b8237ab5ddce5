// SPDX-License-Identifier: Apache-2.0
// The sums of products on matrix tiles (AMX) of a block of positions, see amx_positions.h.
//
// The channels are walked in steps of 32, and 512 positions take one step before the next: the weights of a step stay in the L1
// cache (a quarter faster than whole sums, though the sums M are read again in every step).
#pragma once
#include "conv3x3/amx_positions.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kGroup = 2 * kTileRows;    // positions of a product, two tiles
constexpr int64_t kPair = 2 * kTileColumns;  // columns of a product
constexpr int64_t kChunk = 16 * kGroup;      // positions that take a step before the next

#if defined(__AVX512BF16__)
// Sums of one group of Rows x Columns tiles (1 or 2 each) and one step. at: its first position; below: bytes from there to the
// second tile. after(part): after each tap, with a part of kGroup lines.
template <int Rows, int Columns, int Window, class After>
FASTDS_HD void add_step(const BFloat16* at, int64_t below, int64_t pixel, int64_t row, const BFloat16* packed, bool first,
                        float* m, int64_t m_row, const After& after) {
    using Sums = TileSums<Rows, Columns>;
    constexpr int64_t tile = kTileDepth * kTileColumns;
    constexpr int across = 3 / Window;
    Sums::begin(m, m_row, first);
#pragma GCC unroll 3
    for (int y = 0; y < 3; y++, at += row) {
        const BFloat16* a = opaque(at);
#pragma GCC unroll 3
        for (int x = 0; x < across; x++, a = opaque(a + pixel), packed = opaque(packed + Columns * tile)) {
            Sums::add(a, pixel * sizeof(BFloat16), below, packed, kTileLine, tile * sizeof(BFloat16));
            after(part_of(kGroup, 3 * across, y * across + x));
        }
    }
    Sums::end(m, m_row);
}

// A block: V, whose rows are `row` numbers apart, and M, whose lines, kTileRows of a tile, are m_row floats apart.
struct Block {
    const BFloat16* v;
    int64_t row;
    float* m;
    int64_t m_row, m_group;
    Runs tiles;

    int64_t groups() const { return parts_of(tiles.count, 2); }
};

// Sums of the groups [groups.begin, groups.end), at most kChunk, into m; packed: of one or two vectors of columns.
// take(g, m, part) takes lines of the sums of group g, while the next group is summed: its stores take no time of their own then.
template <int Columns, int Window, class Take>
void sum_products(const Block& block, const PixelRows& pixels, const BFloat16* packed, float* m, Range groups, const Take& take) {
    constexpr int64_t packed_step = 9 / Window * Columns * kTileDepth * kTileColumns;
    const int64_t line = pixels.pixel * static_cast<int64_t>(sizeof(BFloat16));
    const auto nothing = [](Range) {};
    for (int64_t step = 0; step < pixels.steps; step++, packed += packed_step)
        for (int64_t g = groups.begin; g < groups.end; g++) {
            float* sums = m + (g - groups.begin) * block.m_group;
            const int32_t* begin = block.tiles.begin + 2 * g;
            const BFloat16* at = block.v + *begin * pixels.pixel + pixels.first(step);
            const bool two = 2 * g + 1 < block.tiles.count, taken = g > groups.begin && step + 1 == pixels.steps;
            const int64_t below = two ? (begin[1] - begin[0]) * line : 0;
            if (two && taken)
                add_step<2, Columns, Window>(at, below, pixels.pixel, block.row, packed, step == 0, sums, block.m_row,
                                             [&](Range part) { take(g - 1, sums - block.m_group, part); });
            else if (two)
                add_step<2, Columns, Window>(at, below, pixels.pixel, block.row, packed, step == 0, sums, block.m_row, nothing);
            else
                add_step<1, Columns, Window>(at, below, pixels.pixel, block.row, packed, step == 0, sums, block.m_row, nothing);
            if (!two && taken) take(g - 1, sums - block.m_group, Range{0, kGroup});
        }
    take(groups.end - 1, m + (groups.end - 1 - groups.begin) * block.m_group, Range{0, kGroup});
}

template <int Columns, class Take>
void sum_products(const Block& block, const PixelRows& pixels, const BFloat16* packed, float* m, Range groups, const Take& take) {
    if (pixels.window == 1)
        sum_products<Columns, 1>(block, pixels, packed, m, groups, take);
    else
        sum_products<Columns, 3>(block, pixels, packed, m, groups, take);
}

#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
