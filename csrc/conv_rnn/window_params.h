// SPDX-License-Identifier: Apache-2.0
// Sizes and addresses of steps of recurrent cells on tensor cores with a window of the map in shared memory (cuda_window.cuh).
#pragma once
#include "conv3x3/window_params.h"
#include "gates/params.h"

namespace fastds {

// Formulas that the kernel computes.
#define FASTDS_WINDOW_GATES(X)                    \
    FASTDS_CONVOLVED_GATES(X)                     \
    X(memory_gates_tanh, MemoryGates<true>, 0, 3) \
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
