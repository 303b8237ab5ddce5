// SPDX-License-Identifier: Apache-2.0
// Last step of the weight gradient in the Winograd domain: the filters G^T sums G from the sums over tiles.
#pragma once
#include "conv3x3/epilogue.h"
#include "core/transpose_simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

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

// Writes the filters of one vector of columns and up to as many inputs to grad_weight (O, C, 3, 3), contiguous. The nine
// elements of successive inputs are contiguous, so that vectors of columns are transposed into vectors of (input, tap). `sums`
// starts at these inputs and columns.
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
