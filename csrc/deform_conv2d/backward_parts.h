// SPDX-License-Identifier: Apache-2.0
// Intersections of the channel slices of the backward pass (backward_partition.h) with the convolution groups.
#pragma once
#include "core/gemm.h"
#include "deform_conv2d/backward_partition.h"
#include "deform_conv2d/samples.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// The channels [begin, end) that a slice and a convolution group have in common. In a row of columns (tap, channel of the
// slice) they form one run if they are the whole slice, otherwise one run per tap.
struct Part {
    int64_t group, begin, end;
    // Number of runs in a row of columns, columns of a run, position of the first run, distance between runs.
    int64_t runs, run_columns, first, stride;
    int64_t packed, partial;                   // elements before this part in the packed weights and in a partial grad_weight
    int64_t slice;
};

// All parts, ordered by slice. The parts of a slice are [begin[slice], begin[slice + 1]).
struct Parts {
    // `blocking` is that of the packed weights.
    template <class Step>
    Parts(const DeformConv2dDims& d, const BackwardPartition& partition, Step, Blocking blocking)
        : list(d.groups + partition.slices), begin(partition.slices + 1), K(d.kh * d.kw), out(d.O / d.groups) {
        const int64_t in = d.C / d.groups;
        for (int64_t slice = 0; slice < partition.slices; slice++) {
            begin[slice] = count;
            const int64_t c0 = slice * partition.slice_channels;
            const int64_t c1 = c0 + partition.slice_channels < d.C ? c0 + partition.slice_channels : d.C;
            for (int64_t g = c0 / in; g * in < c1; g++) {
                Part part{};
                part.group = g;
                part.slice = slice;
                part.begin = g * in > c0 ? g * in : c0;
                part.end = (g + 1) * in < c1 ? (g + 1) * in : c1;
                const int64_t width = part.end - part.begin, whole = width == c1 - c0;
                part.runs = whole ? 1 : K;
                part.run_columns = whole ? K * width : width;
                part.first = part.begin - c0;
                part.stride = c1 - c0;
                part.packed = packed_elements;
                part.partial = partial_elements;
                packed_elements += part.runs * packed_size<Step>(part.run_columns, out, blocking);
                partial_elements += out * K * width;
                list[count++] = part;
            }
        }
        begin[partition.slices] = count;
    }
    const Buffer<Part> list;
    const Buffer<int64_t> begin;
    const int64_t K, out;
    int64_t count = 0, packed_elements = 0, partial_elements = 0;
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
