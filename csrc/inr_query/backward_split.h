// SPDX-License-Identifier: Apache-2.0
// How the backward of inr_query is cut into tasks: a function of the shape alone, so that every sum has one order.
#pragma once
#include "inr_query/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

struct InrBackwardSplit {
    explicit InrBackwardSplit(const InrQueryDims& d) : samples(d.B), parameters(kInrOffsetRows * d.D + 2 * d.heads) {
        constexpr int64_t kTasks = 8, kBandQueries = 2048, kMostBands = 4;  // each band beyond the first holds a copy of the maps
        bands = d.B > 0 ? (kTasks + d.B - 1) / d.B : 1;
        if (bands > kMostBands) bands = kMostBands;
        if (bands > d.Q / kBandQueries) bands = d.Q / kBandQueries;
        if (bands < 1) bands = 1;
    }
    int64_t tasks() const { return samples * bands; }

    int64_t samples, bands;
    int64_t parameters;  // elements of one partial sum
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
