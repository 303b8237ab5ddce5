// SPDX-License-Identifier: Apache-2.0
// Parts of the convolution with AMX tiles (cpu_amx.cpp), which sums products of bfloat16 directly, without a Winograd
// transform: the layout of filters and pixels, the arrangement of positions, the sums of products and the epilogue.
#pragma once
#include "conv3x3/epilogue.h"
#include "conv3x3/tiles.h"
#include "core/amx.h"
#include "core/transpose_simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Decomposition of the nine input pixels of an output into windows that are multiplied at once. There are either nine windows
// of one pixel, or three windows of three adjacent pixels of a row, whose channels are contiguous. Three windows are used only
// if they save at least a third of the multiplications, because they start at arbitrary positions in a cache line.
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
    // Returns the first element of a step. So that the last step does not read beyond the window, it may overlap the step
    // before; weights of zero then belong to the elements that were already multiplied.
    int64_t first(int64_t step) const { return min_of(step * kTileDepth, depth - in_step); }
    // Returns the position in the packed filters, in pairs of elements, at which the given vector of columns starts. The
    // filters are ordered by pairs of vectors of columns (the last vector may be alone), then by steps, then by taps.
    int64_t packed_pairs(int64_t vectors) const { return taps * steps * kTileDepth * vectors * kTileColumns / 2; }
};

// Arrangement of inputs and outputs for the convolution with AMX tiles.
//
// Outputs have consecutive positions. Each row of outputs is followed by two positions without outputs, and each image by two
// rows without outputs. Input pixels (V) have positions in the same arrangement, so that output position p reads the inputs p +
// y * row + x with 0 <= x, y < 3. 16 consecutive positions form a tile; one tap of a tile times 16 filters is one tile product.
// Each tile starts at the first output that no earlier tile holds and thereby skips positions without outputs.

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

// Calls take(run, i, pixel, n) for each sequence of n adjacent outputs at the positions i, i + 1, ... of a run, for the runs
// [some.begin, some.end).
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
// Copies `count` pixels of `channels` channels into rows of V. The stride of the source pixels is `step` elements, that of
// the rows of V `row` elements. If Signed is true, values are multiplied by the derivative of the activation at `sign`
// (Conv3x3View::sign), whose pixels have the stride `step`, too.
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

// Copies `count` pixels of an image row from column x on, with padding beyond the edges. The stride of the copied pixels is
// `pixel` elements.
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

// Sums of products of the convolution with AMX tiles, for a block of positions.
//
// The channels are processed in steps of 32, and up to 512 positions complete one step before the next. The weights of a step
// then stay in the L1 cache, which saves more time than reading the sums M again in each step costs.

constexpr int64_t kGroup = 2 * kTileRows;    // positions of a product (two tiles)
constexpr int64_t kPair = 2 * kTileColumns;  // columns of a product
constexpr int64_t kChunk = 16 * kGroup;      // positions that complete a step before the next step

#if defined(__AVX512BF16__)
// Adds the products of one step to the sums of one group of Rows x Columns tiles, 1 or 2 in each direction. `at` is the first
// position of the group, and `below` is the distance in bytes to the second tile. The rows [0, kGroup) are divided into as many
// parts as there are windows, and after(part) is called with one part after each window.
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

// Memory of a block: the input pixels V and the sums M. The stride of the image rows of V is `row` elements. In M, the
// stride of the rows of sums (kTileRows for each tile) is m_row floats, and the stride of the groups is m_group floats.
struct Block {
    const BFloat16* v;
    int64_t row;
    float* m;
    int64_t m_row, m_group;
    Runs tiles;

    int64_t groups() const { return count_parts(tiles.count, 2); }
};

// Computes the sums of products of the groups [groups.begin, groups.end) of positions and writes them to m. `packed` holds the
// filters of one or two vectors of columns. take(g, sums, part) stores the rows `part` of the sums of group g. It is called
// while the next group is computed, so that its stores overlap with the products.
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

// Epilogue of the convolution with AMX tiles: bias, residual, activation and storage of the outputs.

#if defined(__AVX512BF16__)
// Lanes of a vector of columns that belong to one view.
struct ViewLanes {
    const Conv3x3View* view;
    int64_t from;  // channel of the view at lane 0 (negative if the view starts at a later lane)
    int vector;    // index among the vectors that are summed together
    __mmask16 lanes;
};

struct ViewLanesList {
    int count = 0;
    ViewLanes item[2 * kL];

    // Finds the lanes of each view in the vectors [vectors.begin, vectors.end) of columns.
    ViewLanesList(const Conv3x3Views& views, Range vectors, int64_t columns) {
        for (int64_t vector = vectors.begin; vector < vectors.end; vector++) {
            int64_t first = 0;
            for (int s = 0; s < views.count; first += views.view[s++].channels) {
                const int64_t column = vector * kL, begin = first - column, end = first + views.view[s].channels - column;
                const int64_t from = begin > 0 ? begin : 0, to = min_of(min_of(kL, columns - column), end);
                if (from >= to || views.view[s].data == nullptr) continue;
                item[count++] = {&views.view[s], column - first, static_cast<int>(vector - vectors.begin),
                                  static_cast<__mmask16>((1u << to) - (1u << from))};
            }
        }
    }
};

// Epilogue for one or two vectors of columns: y = act(sum + bias + residual), stored as T.
template <class T>
struct OutputEpilogue {
    const Conv3x3Call& call;
    const float* bias;  // bias of the first column
    ViewLanesList sinks, residual;
    Range columns;

    OutputEpilogue(const Conv3x3Call& call_, const float* all, Range vectors, int64_t count)
        : call(call_), bias(all + vectors.begin * kL), sinks(call_.sinks, vectors, count),
          residual(call_.residual, call_.shuffle > 1 ? Range{0, 0} : vectors, count),
          columns{vectors.begin * kL, min_of(vectors.end * kL, count)} {}

    static T* get_pixel_address(const ViewLanes& item, const Tile& pixel) {
        return static_cast<T*>(item.view->data) + item.view->offset(pixel.b, pixel.y, pixel.x) + item.from;
    }

    // Adds the residual of `count` adjacent pixels of a row to their sums. The stride of the sums of consecutive
    // pixels is `row` floats.
    void add_residual(const Tile& pixel, int64_t count, float* sums, int64_t row) const {
        if (call.shuffle > 1 && call.residual.count > 0) return add_shuffled(pixel, count, sums, row);
        for (int p = 0; p < residual.count; p++) {
            const ViewLanes& item = residual.item[p];
            const T* from = get_pixel_address(item, pixel);
            float* at = sums + item.vector * kL;
            for (int64_t i = 0; i < count; i++, from += item.view->w, at += row)
                store_vec<kL>(at, load_vec<kL>(at) + load_masked(from, item.lanes));
        }
    }

    // Like add_residual, for a residual whose channels are in the order before the pixel shuffle.
    void add_shuffled(const Tile& pixel, int64_t count, float* sums, int64_t row) const {
        const Conv3x3View& view = call.residual.view[0];
        const ColumnMap map = get_column_map(call);
        const T* from = static_cast<const T*>(view.data) + view.offset(pixel.b, pixel.y, pixel.x);
        for (int64_t i = 0; i < count; i++, from += view.w, sums += row)
            for (int64_t c = columns.begin; c < columns.end; c++) sums[c - columns.begin] += load(from[map.output(c)]);
    }

    void store(const Tile& pixel, int64_t count, const float* sums, int64_t row) const {
        for (int p = 0; p < sinks.count; p++) {
            const ViewLanes& item = sinks.item[p];
            const V add = load_vec<kL>(bias + item.vector * kL);
            const float* at = sums + item.vector * kL;
            T* to = get_pixel_address(item, pixel);
            for (int64_t i = 0; i < count; i++, at += row, to += item.view->w)
                store_masked(to, activate(load_vec<kL>(at) + add, call.act, call.negative_slope), item.lanes);
        }
    }
};

// Position of the outputs of one row of sums in a view that holds all outputs. `lanes` has all bits set, or none if the row of
// sums has no output.
struct OutputPosition {
    int64_t offset;
    __mmask32 lanes;
};

// Returns whether all outputs go to one view and the residual (if any) has the same strides, so that one offset per row of sums
// is enough.
inline bool has_single_view(const Conv3x3Call& call) {
    const Conv3x3View &sink = call.sinks.view[0], &add = call.residual.view[0];
    const bool adds = call.residual.count > 0 && add.data != nullptr;
    return call.sinks.count == 1 && call.residual.count <= 1 &&
           (!adds || (add.b == sink.b && add.h == sink.h && add.w == sink.w));
}

// Computes the output positions of all rows of sums of a block. Zeros follow for one more group, which is only prefetched.
inline void find_output_positions(const Conv3x3Call& call, const Rows& rows, const Block& block, OutputPosition* places) {
    const Conv3x3View& sink = call.sinks.view[0];
    __builtin_memset(places, 0, (block.groups() + 1) * kGroup * sizeof(*places));
    const Range all{0, block.tiles.count};
    for_runs(call.geometry, rows, block.tiles, all, [&](int64_t tile, int64_t i, const Tile& pixel, int64_t n) {
        OutputPosition* place = places + tile * kTileRows + i;
        const int64_t at = sink.offset(pixel.b, pixel.y, pixel.x);
        for (int64_t j = 0; j < n; j++) place[j] = {at + j * sink.w, ~0u};
    });
}

#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
