// SPDX-License-Identifier: Apache-2.0
// conv_rnn: a 3x3 convolution whose epilogue is a formula of csrc/gates. The pre-activations are written to memory only if
// the backward pass needs them.
#pragma once
#include "conv3x3/params.h"
#include "gates/params.h"

namespace fastds {

// Formulas that can be an epilogue on a CPU; the last three also write what their gradients need.
#define FASTDS_CONV_GATES(X)                            \
    FASTDS_CONVOLVED_GATES(X)                           \
    X(gru_reset_kept, GruResetKept, 0, 2)               \
    X(gru_update_kept, GruUpdateKept<false>, 1, 1)      \
    X(gru_update_leaky_kept, GruUpdateKept<true>, 1, 1)

struct ConvGatesOperand {
    Conv3x3View view;
    bool is_float32;  // float32 with 16-bit feature maps
};

// `call` satisfies the requirements of Conv3x3Cell. The sources, the pre-activations and all operands except those marked as
// float32 have the same dtype.
struct ConvGates {
    Conv3x3Call call;
    GateFormula formula;
    double option, slope;                      // see GatesParams
    // The inputs that the convolution does not compute, then the outputs, in the order of the formula.
    ConvGatesOperand operands[kGateOperands];
};

FASTDS_PER_ISA(void conv_gates(const ConvGates& cell, const Conv3x3Plan& plan, float* workspace))

}  // namespace fastds
