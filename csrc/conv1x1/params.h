// SPDX-License-Identifier: Apache-2.0
// Parameters of conv1x1, a matrix product over the pixels of one or two inputs with bias, residual and activation, and of the
// gradient of its weight.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace fastds {

// A feature map. b, p and c are the strides of images, pixels and channels in elements. Pixels or channels are contiguous: p or
// c is 1.
struct Conv1x1Map {
    const void* data;
    int64_t channels, b, p, c;
};

struct Conv1x1 {
    DType dtype;            // of inputs, residual and y
    int64_t batch, pixels;  // pixels of an image
    int sources;
    Conv1x1Map source[2];  // concatenated along the channels
    int64_t outputs;
    const void* weight;  // weight[o, c] is at o * stride_o + c
    DType weight_dtype;
    int64_t stride_o;
    const void* bias;      // `outputs` values of weight_dtype, or null
    const void* residual;  // same layout as y; null: none
    void* y;               // (batch, pixels, outputs), contiguous
    int act;               // Act of core/activation.h
    float negative_slope;
    int threads;
    bool tiles;  // use AMX tiles for bfloat16
};

// grad_weight[o, c] = sum over pixels of gradient[pixel, o] * source[pixel, c], stored at o * stride_o + c.
struct Conv1x1GradWeight {
    DType dtype;  // of gradient and source
    int64_t batch, pixels;
    Conv1x1Map gradient, source;
    void* grad_weight;
    DType weight_dtype;
    int64_t stride_o;
    int threads;
    bool tiles;  // use AMX tiles for bfloat16
};

// The functions *_bytes return the size in bytes of the workspace, which must be 64-byte aligned. The results do not depend on
// the number of threads.
FASTDS_PER_ISA(int64_t conv1x1_bytes(const Conv1x1& call))
FASTDS_PER_ISA(void conv1x1(const Conv1x1& call, char* workspace))
FASTDS_PER_ISA(int64_t conv1x1_grad_weight_bytes(const Conv1x1GradWeight& call))
FASTDS_PER_ISA(void conv1x1_grad_weight(const Conv1x1GradWeight& call, char* workspace))

}  // namespace fastds
