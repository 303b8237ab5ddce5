// SPDX-License-Identifier: Apache-2.0
// conv_rnn: a 3x3 convolution whose epilogue is a formula of csrc/gates. The pre-activations are written to memory only if
// the backward pass needs them.
#pragma once
#include "conv3x3/params.h"
#include "gates/params.h"

namespace fastds {

// Formulas that can be an epilogue: number in GateFormula, struct of gates/math.h, first input that the convolution computes,
// and number of such inputs.
#define FASTDS_CONV_GATES(X)                                     \
    X(lstm_gates, LstmGates, 0, 4)                               \
    X(gru_reset, GruReset, 0, 2)                                 \
    X(gru_update, GruUpdate<false>, 1, 1)                        \
    X(gru_update_leaky, GruUpdate<true>, 1, 1)                   \
    X(gru_reset_kept, GruResetKept, 0, 2)                        \
    X(gru_update_kept, GruUpdateKept<false>, 1, 1)               \
    X(gru_update_leaky_kept, GruUpdateKept<true>, 1, 1)          \
    X(memory_gates, MemoryGates<false>, 0, 3)                    \
    X(st_lstm_gates, StLstmGates, 0, 4)                          \
    X(output_gate, OutputGate<false>, 0, 1)

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
