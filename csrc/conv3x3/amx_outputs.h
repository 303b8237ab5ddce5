// SPDX-License-Identifier: Apache-2.0
// What becomes of the sums of the convolution on matrix tiles (AMX): bias, residual, activation, and where they are stored.
#pragma once
#include "conv3x3/amx_products.h"
#include "conv3x3/output.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

#if defined(__AVX512BF16__)
// Lanes of a vector of columns that fall into one view.
struct Piece {
    const Conv3x3View* view;
    int64_t from;  // of the view's channels, that of lane 0
    int vector;    // of those that are summed together
    __mmask16 lanes;
};

struct Pieces {
    int count = 0;
    Piece piece[2 * kL];

    // Of the vectors [vectors.begin, vectors.end) of columns.
    Pieces(const Conv3x3Views& views, Range vectors, int64_t columns) {
        for (int64_t vector = vectors.begin; vector < vectors.end; vector++) {
            int64_t first = 0;
            for (int s = 0; s < views.count; first += views.view[s++].channels) {
                const int64_t column = vector * kL, begin = first - column, end = first + views.view[s].channels - column;
                const int64_t from = begin > 0 ? begin : 0, to = least(least(kL, columns - column), end);
                if (from >= to || views.view[s].data == nullptr) continue;
                piece[count++] = {&views.view[s], column - first, static_cast<int>(vector - vectors.begin),
                                  static_cast<__mmask16>((1u << to) - (1u << from))};
            }
        }
    }
};

// What becomes of the sums of one or two vectors of columns: y = act(sum + bias + residual), stored as T.
template <class T>
struct Outputs {
    const Conv3x3Call& call;
    const float* bias;  // of the first column
    Pieces sinks, residual;
    Range columns;

    Outputs(const Conv3x3Call& call_, const float* all, Range vectors, int64_t count)
        : call(call_), bias(all + vectors.begin * kL), sinks(call_.sinks, vectors, count),
          residual(call_.residual, call_.shuffle > 1 ? Range{0, 0} : vectors, count),
          columns{vectors.begin * kL, least(vectors.end * kL, count)} {}

    static T* pixel_of(const Piece& piece, const Tile& pixel) {
        return static_cast<T*>(piece.view->data) + piece.view->offset(pixel.b, pixel.y, pixel.x) + piece.from;
    }

    // Adds the residual of `count` pixels of a row to their sums, `row` floats apart.
    void add_residual(const Tile& pixel, int64_t count, float* sums, int64_t row) const {
        if (call.shuffle > 1 && call.residual.count > 0) return add_shuffled(pixel, count, sums, row);
        for (int p = 0; p < residual.count; p++) {
            const Piece& piece = residual.piece[p];
            const T* from = pixel_of(piece, pixel);
            float* at = sums + piece.vector * kL;
            for (int64_t i = 0; i < count; i++, from += piece.view->w, at += row)
                store_vec<kL>(at, load_vec<kL>(at) + load_masked(from, piece.lanes));
        }
    }

    // The same where it has the channel order before the shuffle.
    void add_shuffled(const Tile& pixel, int64_t count, float* sums, int64_t row) const {
        const Conv3x3View& view = call.residual.view[0];
        const ColumnMap map = columns_of(call);
        const T* from = static_cast<const T*>(view.data) + view.offset(pixel.b, pixel.y, pixel.x);
        for (int64_t i = 0; i < count; i++, from += view.w, sums += row)
            for (int64_t c = columns.begin; c < columns.end; c++) sums[c - columns.begin] += load(from[map.output(c)]);
    }

    void store(const Tile& pixel, int64_t count, const float* sums, int64_t row) const {
        for (int p = 0; p < sinks.count; p++) {
            const Piece& piece = sinks.piece[p];
            const V add = load_vec<kL>(bias + piece.vector * kL);
            const float* at = sums + piece.vector * kL;
            T* to = pixel_of(piece, pixel);
            for (int64_t i = 0; i < count; i++, at += row, to += piece.view->w)
                store_masked(to, activate(load_vec<kL>(at) + add, call.act, call.negative_slope), piece.lanes);
        }
    }
};

// Where the output of a line of sums lies in a view of its own; all lanes of a vector, or none where it has no output.
struct LinePlace {
    int64_t offset;
    __mmask32 lanes;
};

// Whether all outputs go to one view, and what is added to them lies in the same way: then they are looked up line by line.
inline bool has_lines(const Conv3x3Call& call) {
    const Conv3x3View &sink = call.sinks.view[0], &add = call.residual.view[0];
    const bool adds = call.residual.count > 0 && add.data != nullptr;
    return call.sinks.count == 1 && call.residual.count <= 1 &&
           (!adds || (add.b == sink.b && add.h == sink.h && add.w == sink.w));
}

// The places of the lines of a block, and of as many more as are fetched ahead.
inline void find_places(const Conv3x3Call& call, const Rows& rows, const Block& block, LinePlace* places) {
    const Conv3x3View& sink = call.sinks.view[0];
    __builtin_memset(places, 0, (block.groups() + 1) * kGroup * sizeof(*places));
    const Range all{0, block.tiles.count};
    for_runs(call.geometry, rows, block.tiles, all, [&](int64_t tile, int64_t i, const Tile& pixel, int64_t n) {
        LinePlace* place = places + tile * kTileRows + i;
        const int64_t at = sink.offset(pixel.b, pixel.y, pixel.x);
        for (int64_t j = 0; j < n; j++) place[j] = {at + j * sink.w, ~0u};
    });
}

#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
