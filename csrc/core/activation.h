// SPDX-License-Identifier: Apache-2.0
// The activation behind a convolution.
#pragma once
#include "core/lanes.h"

namespace fastds {

enum Act : int { act_none = 0, act_relu = 1, act_leaky_relu = 2 };

namespace FASTDS_ISA {
namespace {

// NaN stays NaN.
FASTDS_HD V activate(V v, int act, float slope) {
    if (act == act_relu) return v < 0.f ? V{} : v;
    if (act == act_leaky_relu) return v < 0.f ? v * slope : v;
    return v;
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
