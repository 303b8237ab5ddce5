// SPDX-License-Identifier: Apache-2.0
// Pointwise operations of recurrent cells. One driver evaluates the formulas of math.h, which have several inputs and outputs.
//
// An operand has `rows` rows of `run` contiguous elements. It may be one gate of a packed (B, 4C, H, W) tensor: in
// channels_last a row is a pixel and run = C; in contiguous memory a row is a sample and run = C*H*W. The operands of a call
// share rows and run; each has its own address, distance between rows, and dtype.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace fastds {

// All formulas: the name in Python and in GateFormula, and the struct in math.h. The position of a formula in the list is its
// number, which Python passes to the kernels.
#define FASTDS_GATE_FORMULAS(X)                                      \
    X(lstm_gates, LstmGates)                                         \
    X(lstm_gates_backward, LstmGatesBackward)                        \
    X(memory_gates, MemoryGates<false>)                              \
    X(memory_gates_backward, MemoryGatesBackward<false>)             \
    X(memory_gates_tanh, MemoryGates<true>)                          \
    X(memory_gates_tanh_backward, MemoryGatesBackward<true>)         \
    X(st_lstm_gates, StLstmGates)                                    \
    X(st_lstm_gates_backward, StLstmGatesBackward)                   \
    X(output_gate, OutputGate<false>)                                \
    X(output_gate_backward, OutputGateBackward<false>)               \
    X(output_gate_tanh, OutputGate<true>)                            \
    X(output_gate_tanh_backward, OutputGateBackward<true>)           \
    X(gru_reset, GruReset)                                           \
    X(gru_reset_backward, GruResetBackward)                          \
    X(gru_reset_double, GruResetDouble)                              \
    X(gru_update, GruUpdate<false>)                                  \
    X(gru_update_backward, GruUpdateBackward<false>)                 \
    X(gru_update_double, GruUpdateDouble<false>)                     \
    X(gru_update_leaky, GruUpdate<true>)                             \
    X(gru_update_leaky_backward, GruUpdateBackward<true>)            \
    X(gru_update_leaky_double, GruUpdateDouble<true>)                \
    X(gru_reset_kept, GruResetKept)                                  \
    X(gru_update_kept, GruUpdateKept<false>)                         \
    X(gru_update_leaky_kept, GruUpdateKept<true>)                    \
    X(gru_candidate_gradient, GruCandidateGradient<false>)           \
    X(gru_candidate_leaky_gradient, GruCandidateGradient<true>)      \
    X(gru_gates_gradient, GruGatesGradient)                          \
    X(traj_gru_gates, TrajGruGates)                                  \
    X(traj_gru_gates_backward, TrajGruGatesBackward)

// Formulas that every kernel of csrc/conv_rnn has as epilogue of a convolution: number in GateFormula, struct of math.h, first
// input that the convolution computes, and number of such inputs.
#define FASTDS_CONVOLVED_GATES(X)                \
    X(lstm_gates, LstmGates, 0, 4)               \
    X(st_lstm_gates, StLstmGates, 0, 4)          \
    X(memory_gates, MemoryGates<false>, 0, 3)    \
    X(gru_reset, GruReset, 0, 2)                 \
    X(gru_update, GruUpdate<false>, 1, 1)        \
    X(gru_update_leaky, GruUpdate<true>, 1, 1)   \
    X(output_gate, OutputGate<false>, 0, 1)

#define FASTDS_GATE_NUMBER(name, ...) name,
enum class GateFormula : int { FASTDS_GATE_FORMULAS(FASTDS_GATE_NUMBER) count };
#undef FASTDS_GATE_NUMBER

// A tensor that a formula reads or writes. The operands of a call are the inputs of the formula, then its outputs, in the order
// of math.h.
struct GateOperand {
    void* data;   // null: an input of zeros, or an output that is not needed
    int64_t row;  // distance between rows in elements
    int dtype;    // DType
};

constexpr int kGateOperands = 16;

struct GatesParams {
    GateFormula formula;
    bool is_double;  // compute in float64: all operands are float64; otherwise none is
    int64_t rows, run;
    double option;  // gru_update: 1 gives h the weight z, 0 the weight 1 - z
    double slope;   // of the leaky ReLU
    GateOperand operands[kGateOperands];
};

FASTDS_PER_ISA(void gates_cpu(const GatesParams& params, int threads))

void gates_cuda(const GatesParams& params, int device, void* stream);

}  // namespace fastds
