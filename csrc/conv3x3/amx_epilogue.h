// SPDX-License-Identifier: Apache-2.0
// Epilogue of the convolution with AMX tiles: bias, residual, activation and storage of the outputs.
#pragma once
#include "conv3x3/amx_products.h"
#include "conv3x3/epilogue.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

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

    // Adds the residual of `count` adjacent pixels of a row to their sums. The sums of consecutive pixels are `row` floats
    // apart.
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

// Computes the places of all rows of sums of a block, and of one more group of rows for prefetching.
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
