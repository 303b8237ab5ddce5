// SPDX-License-Identifier: Apache-2.0
// conv_cells: a 3x3 convolution on the Winograd engine with a formula of csrc/gates in its output stage, so that the
// pre-activations are not written, or only for the backward.
#pragma once
#include "conv3x3/params.h"
#include "gates/params.h"

namespace fastds {

// Number in GateFormula, struct of gates/math.h, the first of its inputs that the convolution gives, how many it gives.
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
    bool wide;  // float32 beside 16-bit maps
};

// call: as Conv3x3Cell asks; its dtype is that of the sources, the pre-activations and all operands but wide ones.
struct ConvGates {
    Conv3x3Call call;
    GateFormula formula;
    double option, slope;                      // see GatesParams
    ConvGatesOperand operands[kGateOperands];  // inputs that the convolution does not give, then outputs, in the formula's order
};

FASTDS_PER_ISA(void conv_gates(const ConvGates& cell, const Conv3x3Plan& plan, float* workspace))

}  // namespace fastds
