// SPDX-License-Identifier: Apache-2.0
// Partition of the two backward passes of inr_query into tasks. It depends only on the shape, so that each sum has one order.
#pragma once
#include "core/parallel.h"
#include "inr_query/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

struct InrBackwardPartition {
    explicit InrBackwardPartition(const InrQueryDims& d) : samples(d.B), parameters(kInrOffsetRows * d.D + 2 * d.heads) {
        // Each band after the first needs a copy of the gradient of the maps.
        constexpr int64_t kTasks = 8, kBandQueries = 2048, kMaxBands = 4;
        bands = d.B > 0 ? (kTasks + d.B - 1) / d.B : 1;
        if (bands > kMaxBands) bands = kMaxBands;
        if (bands > d.Q / kBandQueries) bands = d.Q / kBandQueries;
        if (bands < 1) bands = 1;
    }
    int64_t tasks() const { return samples * bands; }

    int64_t samples, bands;
    int64_t parameters;  // elements of one partial sum
};

// Partition for the trunk. A task is a sequence of panels of rows, with partial sums of the gradients of all layers.
struct InrTrunkPartition {
    explicit InrTrunkPartition(const InrQueryDims& d) {
        constexpr int64_t kPanelRows = 96, kTaskPanels = 4, kMaxTasks = 32;
        panel_queries = kPanelRows / inr_rows_per_query(d);
        panels = count_parts(d.B * d.Q, panel_queries);
        tasks = min_of(panels / kTaskPanels, kMaxTasks);
        if (tasks < 1) tasks = 1;
        for (int l = 0; l < d.layers; l++) {
            first[l] = elements;
            elements += d.width[l] * row(d, l) + round_up(d.width[l], kPad);
        }
    }
    // Returns the number of elements in a row of a layer's weight gradient, rounded up to whole vectors.
    static int64_t row(const InrQueryDims& d, int layer) { return round_up(inr_layer_inputs(d, layer), kPad); }

    static constexpr int64_t kPad = 16;
    int64_t panel_queries, panels, tasks;
    int64_t first[kInrLayers];  // position of each layer in the sums of a task: the rows of its weight, then the bias
    int64_t elements = 0;       // elements of the sums of a task
};

// Sums `count` arrays of n elements in ascending order. The arrays have a stride of `stride` elements. `target` may be the
// first array.
template <class A>
void sum_in_order(A* target, const A* parts, int64_t count, int64_t stride, int64_t n, int threads) {
    parallel_for(n, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            A sum = parts[i];
            for (int64_t k = 1; k < count; k++) sum += parts[k * stride + i];
            target[i] = sum;
        }
    });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
