// SPDX-License-Identifier: Apache-2.0
// The weight gradient: partition of the reduction, Winograd transform of the gradients of outputs, and inverse transform of the
// sums.
#pragma once
#include "conv3x3/epilogue.h"
#include "conv3x3/tiles.h"
#include "core/transpose_simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Partition of the weight-gradient reduction. With few channels, ranges of tiles have private accumulators. With many channels,
// the sums are too large for private accumulators; the threads then process stretches of tiles together and add to one
// accumulator.

constexpr int64_t kAccumulatorBytes = 700 << 10;  // maximum size of the sums of one accumulator

// Returns the number of private accumulators, a power of two that depends only on the shape. `bytes` is the size of the sums of
// one accumulator, `two` the number of tiles that is enough for two accumulators.
inline int64_t count_accumulators(int64_t tiles, int64_t bytes, int64_t two) {
    constexpr int64_t accumulator_tiles = 64;  // minimum number of tiles per accumulator if there are more than two
    if (tiles < two) return 1;
    int64_t accumulators = 8;
    while (accumulators > 2 && (accumulators * accumulator_tiles > tiles || accumulators * bytes > 4 * kAccumulatorBytes))
        accumulators /= 2;
    return accumulators;
}

// Returns the size in bytes of a stretch of transformed tiles. `bytes` is the size of all sums. A stretch is at least half as
// large as the sums, because all sums are read and written for each stretch.
inline int64_t get_stretch_bytes(int64_t bytes) { return bytes / 2 > 4 << 20 ? bytes / 2 : 4 << 20; }

// Writes the bias gradient, if it is requested: the sum over all accumulators, which have a stride of `row` floats.
template <class T>
void finish_bias(const Conv3x3GradWeight& call, const float* accumulators, int64_t count, int64_t row) {
    if (call.grad_bias == nullptr) return;
    const ColumnMap map{call.gradients.channels(), call.shuffle};
    for (int64_t column = 0; column < map.columns; column++) {
        float sum = accumulators[column];
        for (int64_t accumulator = 1; accumulator < count; accumulator++) sum += accumulators[accumulator * row + column];
        static_cast<T*>(call.grad_bias)[map.output(column)] = store<T>(sum);
    }
}

// Winograd transform of the gradients of 4x4 outputs into 36 planes. The weight gradient is the product of these planes with
// those of the inputs.

// Computes A g A^T for the channels of one view of a tile in 36 planes, and the sum of the gradients in a 37th plane.
template <bool Inside, class T, bool Signed>
void transform_gradient_view(const Conv3x3View& view, const Tile& tile, const int64_t* row, const int64_t* column, float slope,
                             const T* zeros, float* out, int64_t plane) {
    Pixels<T, 4> data, sign;
    find_pixels<Inside>(data, view.data, view, tile.b, row, column, zeros);
    if (Signed) find_pixels<Inside>(sign, view.sign, view, tile.b, row, column, zeros);
    for (int64_t channel = 0; channel < view.channels; channel += kL) {
        const int count = static_cast<int>(min_of(kL, view.channels - channel));
        V sum = {};
        transform_planes<4>(
            [&](int c, V(&g)[4]) {
                load_column<Inside, Signed>(data, sign, c, channel, count, slope, g);
                sum += (g[0] + g[1]) + (g[2] + g[3]);
            },
            [](const V(&g)[4], V(&m)[6]) { transform_output_adjoint(g, m); }, out + channel, plane);
        store_vec<kL>(out + kPoints * plane + channel, sum);
    }
}

// Transforms all channels of one tile of `count` views to out[p * plane + channel], like transform_tile.
template <class T, bool Signed>
void transform_gradient_tile(const Conv3x3Geometry& g, const Conv3x3View* views, int count, const Tile& tile, float slope,
                             const T* zeros, float* out, int64_t plane) {
    int64_t row[4], column[4];
    for (int i = 0; i < 4; i++) {
        row[i] = tile.y + i < g.Ho ? tile.y + i : -1;
        column[i] = tile.x + i < g.Wo ? tile.x + i : -1;
    }
    for (int s = 0; s < count; s++) {
        const Conv3x3View& view = views[s];
        if (row[3] >= 0 && column[3] >= 0)
            transform_gradient_view<true, T, Signed>(view, tile, row, column, slope, zeros, out, plane);
        else
            transform_gradient_view<false, T, Signed>(view, tile, row, column, slope, zeros, out, plane);
        out += view.channels;
    }
}

// Returns the part of a view with the given vectors of channels.
template <class T>
Conv3x3View select_channels(Conv3x3View view, Range vectors) {
    view.channels = min_of(vectors.end * kL, view.channels) - vectors.begin * kL;
    view.data = static_cast<T*>(view.data) + vectors.begin * kL;
    if (view.sign != nullptr) view.sign = static_cast<const T*>(view.sign) + vectors.begin * kL;
    return view;
}

// Last step of the weight gradient in the Winograd domain: the filters G^T sums G from the sums over tiles.

// Layout of sums[accumulator][point][input][column]; strides are in floats.
struct SumsLayout {
    int64_t accumulators, row, plane, accumulator;

    SumsLayout() = default;
    SumsLayout(int64_t accumulators, int64_t inputs, int64_t columns)
        : accumulators(accumulators),
          row(columns),
          plane(round_up((inputs + 3) * columns, 32) + 16),  // add_products may write three rows beyond the last
          accumulator(kPoints * plane) {}
};

// Computes G^T sums G for one input and one vector of columns, after adding the sums of all accumulators.
inline void finish_taps(const SumsLayout& at, const float* sums, float (&taps)[9][kL]) {
    V half[3][6];
#pragma GCC unroll 6
    for (int q = 0; q < 6; q++) {
        V u[6], g[3];
#pragma GCC unroll 6
        for (int r = 0; r < 6; r++) {
            const float* accumulators = sums + (r * 6 + q) * at.plane;
            u[r] = load_vec<kL>(accumulators);
            for (int64_t accumulator = 1; accumulator < at.accumulators; accumulator++)
                u[r] += load_vec<kL>(accumulators + accumulator * at.accumulator);
        }
        transform_weight_adjoint(u, g);
#pragma GCC unroll 3
        for (int r = 0; r < 3; r++) half[r][q] = g[r];
    }
#pragma GCC unroll 3
    for (int r = 0; r < 3; r++) {
        V g[3];
        transform_weight_adjoint(half[r], g);
#pragma GCC unroll 3
        for (int q = 0; q < 3; q++) store_vec<kL>(taps[r * 3 + q], g[q]);
    }
}

// Writes the filters of one vector of columns and up to kL inputs to the contiguous grad_weight (O, C, 3, 3). The nine elements
// of successive inputs are contiguous, so that vectors of columns are transposed into vectors of (input, tap). `sums` points to
// the sum of the first input and column.
template <class T>
void finish_filters(const Conv3x3GradWeight& call, const SumsLayout& at, Range inputs, Range columns, const float* sums) {
    const ColumnMap outputs{call.gradients.channels(), call.shuffle};
    const int64_t numbers = (inputs.end - inputs.begin) * 9;
    float taps[kL][9][kL] = {};
    for (int64_t i = 0; i < inputs.end - inputs.begin; i++) finish_taps(at, sums + i * at.row, taps[i]);
    for (int64_t first = 0; first < numbers; first += kL) {
        V square[kL];
        for (int i = 0; i < kL; i++) square[i] = load_vec<kL>(taps[0][0] + (first + i) * kL);
        transpose_registers(square);
        for (int64_t i = 0; i < columns.end - columns.begin; i++) {
            const int64_t filter = outputs.output(columns.begin + i) * call.sources.channels() + inputs.begin;
            store_first<kL>(static_cast<T*>(call.grad_weight) + filter * 9 + first, square[i], numbers - first);
        }
    }
}

// Writes the filters of a range of inputs and columns. Both ranges start at a multiple of a vector.
template <class T>
void finish_block(const Conv3x3GradWeight& call, const SumsLayout& at, Range inputs, Range columns, const float* sums) {
    for (int64_t c = inputs.begin; c < inputs.end; c += kL)
        for (int64_t column = columns.begin; column < columns.end; column += kL)
            finish_filters<T>(call, at, {c, min_of(c + kL, inputs.end)}, {column, min_of(column + kL, columns.end)},
                              sums + (c - inputs.begin) * at.row + column - columns.begin);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
