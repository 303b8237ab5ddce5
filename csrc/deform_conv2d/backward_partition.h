// SPDX-License-Identifier: Apache-2.0
// Partition of the backward pass of deform_conv2d into tasks. It depends only on the shape, so that the order of each sum does
// not depend on the number of threads and the size of the workspace is known before the call.
//
// A task is a chunk of images, a slice of channels and a band of output rows. A slice consists of whole offset groups, so that
// each offset and mask gradient is computed by one task. If images and slices give too few tasks, the output rows of each image
// are divided into bands. The contributions of the bands to grad_x are added in the order of the bands (cpu_backward.h).
#pragma once
#include "core/dtype.h"
#include "deform_conv2d/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

struct BackwardPartition {
    explicit BackwardPartition(const DeformConv2dDims& d) {
        constexpr int64_t kSliceChannels = 64, kTasks = 16, kMaxTasks = 64, kBandPixels = 512;
        const int64_t per_group = d.C / d.offset_groups, pixels = d.Ho * d.Wo;
        slice_groups = (kSliceChannels + per_group - 1) / per_group;
        if (slice_groups > d.offset_groups) slice_groups = d.offset_groups;
        slice_channels = slice_groups * per_group;
        slices = (d.offset_groups + slice_groups - 1) / slice_groups;
        chunks = kMaxTasks / slices > 1 ? kMaxTasks / slices : 1;
        if (chunks > d.B) chunks = d.B;
        const int64_t required = d.B > 0 ? (kTasks + d.B * slices - 1) / (d.B * slices) : 1;
        bands = required < pixels / kBandPixels ? required : pixels / kBandPixels;
        if (bands > d.Ho) bands = d.Ho;
        if (bands < 1) bands = 1;
        if (bands > 1) chunks = d.B;  // a band belongs to one image
    }

    int64_t slice_groups, slice_channels;  // of a complete slice; the last slice may be smaller
    int64_t slices, chunks, bands;

    int64_t partials() const { return chunks * bands; }  // number of partial grad_weight and grad_bias, which are summed in order
    int64_t tasks() const { return partials() * slices; }
};

constexpr int64_t kOrderedRows = 8;  // image rows that a band adds to grad_x at a time
inline int64_t count_row_chunks(const DeformConv2dDims& d) { return (d.H + kOrderedRows - 1) / kOrderedRows; }

// Layout of the workspace. It holds partial grad_weight and grad_bias. If there are several bands, the counters that order
// their additions follow, and, if grad_x has a 16-bit type, the float32 sums for grad_x.
struct BackwardWorkspace {
    BackwardWorkspace(const DeformConv2dDims& d, const BackwardPartition& partition, int64_t accumulator_bytes) {
        const auto aligned = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
        const bool narrow = d.dtype != f32 && d.dtype != f64;
        weight = d.O * (d.C / d.groups) * d.kh * d.kw;
        bias_at = aligned(partition.partials() * weight * accumulator_bytes);
        counters_at = bias_at + aligned(partition.partials() * d.O * accumulator_bytes);
        sums_at = counters_at + (partition.bands > 1 ? aligned(d.B * partition.slices * count_row_chunks(d) * 4) : 0);
        bytes = sums_at + (partition.bands > 1 && narrow ? d.B * d.H * d.W * d.C * accumulator_bytes : 0);
    }
    int64_t weight;  // elements of one partial grad_weight
    int64_t bias_at, counters_at, sums_at, bytes;
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
