// SPDX-License-Identifier: Apache-2.0
// Sums of products of the convolution with AMX tiles, for a block of positions (amx_positions.h).
//
// The channels are processed in steps of 32, and up to 512 positions complete one step before the next. The weights of a step
// then stay in the L1 cache, which saves more time than reading the sums M again in each step costs.
#pragma once
#include "conv3x3/amx_positions.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kGroup = 2 * kTileRows;    // positions of a product (two tiles)
constexpr int64_t kPair = 2 * kTileColumns;  // columns of a product
constexpr int64_t kChunk = 16 * kGroup;      // positions that complete a step before the next step

#if defined(__AVX512BF16__)
// Adds the products of one step to the sums of one group of Rows x Columns tiles, 1 or 2 in each direction. `at` is the first
// position of the group, `below` the distance in bytes to the second tile. after(part) is called after each tap with one part
// of kGroup rows of sums.
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
            Sums::add(a, pixel * sizeof(BFloat16), below, packed, kTileRowBytes, tile * sizeof(BFloat16));
            after(get_part(kGroup, 3 * across, y * across + x));
        }
    }
    Sums::end(m, m_row);
}

// Memory of a block. The image rows of V are `row` elements apart. In M, rows of sums (kTileRows for each tile) are m_row
// floats apart and groups m_group floats.
struct Block {
    const BFloat16* v;
    int64_t row;
    float* m;
    int64_t m_row, m_group;
    Runs tiles;

    int64_t groups() const { return count_parts(tiles.count, 2); }
};

// Computes the sums of the groups [groups.begin, groups.end), at most kChunk positions, into m. `packed` holds the filters of
// one or two vectors of columns. take(g, m, part) receives rows of the sums of group g while the next group is summed, so that
// its stores overlap with the products.
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
