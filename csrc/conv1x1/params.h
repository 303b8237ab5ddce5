// SPDX-License-Identifier: Apache-2.0
// conv1x1: one matrix product over the pixels of one or two maps, with what follows it; and the gradient of its weight.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace fastds {

// Strides in elements, of images, pixels and channels. Pixels or channels lie side by side: p or c is 1.
struct Conv1x1Map {
    const void* data;
    int64_t channels, b, p, c;
};

struct Conv1x1 {
    DType dtype;            // of maps, residual and y
    int64_t batch, pixels;  // of an image
    int sources;
    Conv1x1Map source[2];  // side by side in their channels
    int64_t outputs;
    const void* weight;  // weight[o, c] at o * stride_o + c
    DType weight_dtype;
    int64_t stride_o;
    const void* bias;      // `outputs` values of weight_dtype, or null
    const void* residual;  // null: none; as y
    void* y;               // (batch, pixels, outputs), dense
    int act;               // Act of core/activation.h
    float negative_slope;
    int threads;
    bool tiles;  // bfloat16 on matrix tiles (AMX)
};

// grad_weight[o, c] = sum over pixels of gradient[pixel, o] * source[pixel, c], at o * stride_o + c.
struct Conv1x1GradWeight {
    DType dtype;  // of the maps
    int64_t batch, pixels;
    Conv1x1Map gradient, source;
    void* grad_weight;
    DType weight_dtype;
    int64_t stride_o;
    int threads;
    bool tiles;  // bfloat16 on matrix tiles (AMX)
};

// Bytes of workspace, and the functions that need them, 64-byte aligned. The numbers do not depend on threads.
FASTDS_PER_ISA(int64_t conv1x1_bytes(const Conv1x1& call))
FASTDS_PER_ISA(void conv1x1(const Conv1x1& call, char* workspace))
FASTDS_PER_ISA(int64_t conv1x1_grad_weight_bytes(const Conv1x1GradWeight& call))
FASTDS_PER_ISA(void conv1x1_grad_weight(const Conv1x1GradWeight& call, char* workspace))

}  // namespace fastds
