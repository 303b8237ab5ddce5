// SPDX-License-Identifier: Apache-2.0
// The pointwise passes of recurrent cells: one driver for formulas of some maps in and some maps out (math.h).
//
// An operand is one map of `rows` rows of `run` elements side by side, e.g. one gate of a packed (B, 4C, H, W) tensor: in
// channels_last a row is a pixel and run = C, in contiguous memory a row is a sample and run = C*H*W. Operands of one call
// share rows and run, and have their own address, distance between rows, and dtype.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace fastds {

// The one list of formulas: number and name for Python, and the struct of math.h.
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

#define FASTDS_GATE_NUMBER(name, ...) name,
enum class GateFormula : int { FASTDS_GATE_FORMULAS(FASTDS_GATE_NUMBER) count };
#undef FASTDS_GATE_NUMBER

// Operands: the inputs of a formula, then its outputs, in the order of math.h.
struct GateOperand {
    void* data;   // null: an input of zeros, or an output nobody wants
    int64_t row;  // elements from row to row
    int dtype;    // DType
};

constexpr int kGateOperands = 16;

struct GatesParams {
    GateFormula formula;
    bool wide;  // compute in float64: every operand is float64; else none is
    int64_t rows, run;
    double option;  // gru_update: 1 keeps h with weight z, 0 with weight 1 - z
    double slope;   // of the leaky ReLU
    GateOperand operands[kGateOperands];
};

FASTDS_PER_ISA(void gates_cpu(const GatesParams& params, int threads))

void gates_cuda(const GatesParams& params, int device, void* stream);

}  // namespace fastds
