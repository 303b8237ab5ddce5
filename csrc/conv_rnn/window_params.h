// SPDX-License-Identifier: Apache-2.0
// Sizes and addresses of steps of recurrent cells on tensor cores with a window of the map in shared memory (cuda_window.cuh).
#pragma once
#include "conv3x3/window_params.h"
#include "gates/params.h"

namespace fastds {

// Formulas that the kernel computes: number in GateFormula, struct of gates/math.h, first input that the convolution computes,
// and number of such inputs.
#define FASTDS_WINDOW_GATES(X)                        \
    X(lstm_gates, LstmGates, 0, 4)                    \
    X(st_lstm_gates, StLstmGates, 0, 4)               \
    X(memory_gates, MemoryGates<false>, 0, 3)         \
    X(memory_gates_tanh, MemoryGates<true>, 0, 3)     \
    X(gru_reset, GruReset, 0, 2)                      \
    X(gru_update, GruUpdate<false>, 1, 1)             \
    X(gru_update_leaky, GruUpdate<true>, 1, 1)        \
    X(output_gate, OutputGate<false>, 0, 1)           \
    X(output_gate_tanh, OutputGate<true>, 0, 1)

constexpr int kWindowOperands = 2;  // most inputs that the convolution does not compute, and most results

struct WindowResult {
    void* data;  // (B, C, H, W), dense, channels_last
    bool is_float32;
};

// A convolution with gates * C outputs, and the formula of its epilogue.
struct ConvGatesWindow : WindowCall {
    GateFormula formula;
    float option, slope;                // see GatesParams
    int64_t C;                          // channels of the state
    WindowMap other[kWindowOperands];   // inputs that the convolution does not compute, in the order of the formula
    bool is_float32[kWindowOperands];   // of `other`; false: the dtype of the sources
    WindowResult result[kWindowOperands];
    void* pre;                          // pre-activations in the dtype of the sources, dense, channels_last; null: not stored
};

// Returns whether the weights of some outputs and the windows of a tile fit in the shared memory of a block.
bool conv_gates_window_fits(int64_t inputs, int64_t channels, int gates, int device);

void conv_gates_window_cuda(const ConvGatesWindow& call, int device, void* stream);

}  // namespace fastds
