// SPDX-License-Identifier: Apache-2.0
// Partition of the weight-gradient reduction. With few channels, ranges of tiles have private accumulators. With many
// channels, whose sums are too large for that, the threads process stretches of tiles together and add to one accumulator.
#pragma once
#include "conv3x3/tiles.h"
#include "core/transpose_simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

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

// Returns the size in bytes of a stretch of transformed tiles, given the size in bytes of all sums. Each stretch reads and
// writes all sums, so that it is at least half as large as they are.
inline int64_t get_stretch_bytes(int64_t bytes) { return bytes / 2 > 4 << 20 ? bytes / 2 : 4 << 20; }

// Writes the bias gradient, if it is requested: the sum over all accumulators, which are `row` floats apart.
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

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
