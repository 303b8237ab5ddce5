// SPDX-License-Identifier: Apache-2.0
// Activation functions that convolution kernels apply to their outputs.
#pragma once
#include "core/masked_io.h"

namespace fastds {

enum Act : int { act_none = 0, act_relu = 1, act_leaky_relu = 2 };

namespace FASTDS_ISA {
namespace {

// Applies the activation `act` to each lane of a vector. `slope` is the negative slope of the leaky ReLU. NaN stays NaN.
FASTDS_HD V activate(V v, int act, float slope) {
    if (act == act_relu) return v < 0.f ? V{} : v;
    if (act == act_leaky_relu) return v < 0.f ? v * slope : v;
    return v;
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
