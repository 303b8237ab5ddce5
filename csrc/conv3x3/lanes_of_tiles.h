// SPDX-License-Identifier: Apache-2.0
// How the sums of the weight gradient are cut. Narrow layers: a lane is a range of tiles with sums of its own. Wide layers,
// whose sums are too large for lanes: the threads go through stretches of tiles together.
#pragma once
#include "conv3x3/tiles.h"
#include "core/turn.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kLaneBytes = 700 << 10;  // of the sums of a lane at most

// A power of two that follows from the shape alone; bytes: of the sums of one; two: tiles that are enough for two lanes.
inline int64_t lanes_of_sums(int64_t tiles, int64_t bytes, int64_t two) {
    constexpr int64_t lane_tiles = 64;  // at least, of more lanes than two
    if (tiles < two) return 1;
    int64_t lanes = 8;
    while (lanes > 2 && (lanes * lane_tiles > tiles || lanes * bytes > 4 * kLaneBytes)) lanes /= 2;
    return lanes;
}

// Of a stretch of transformed tiles: the caches' size, or more. Every stretch reads and writes all sums: it is no shorter than
// half of them.
inline int64_t stretch_bytes(int64_t bytes) { return bytes / 2 > 4 << 20 ? bytes / 2 : 4 << 20; }

// The gradient of the bias, where it is wanted: the sum of all lanes, `row` floats apart.
template <class T>
void finish_bias(const Conv3x3GradWeight& call, const float* lanes, int64_t count, int64_t row) {
    if (call.grad_bias == nullptr) return;
    const ColumnMap map{call.gradients.channels(), call.shuffle};
    for (int64_t column = 0; column < map.columns; column++) {
        float sum = lanes[column];
        for (int64_t lane = 1; lane < count; lane++) sum += lanes[lane * row + column];
        static_cast<T*>(call.grad_bias)[map.output(column)] = store<T>(sum);
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
