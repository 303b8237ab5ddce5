// SPDX-License-Identifier: Apache-2.0
// Sizes and addresses of 3x3 convolutions on tensor cores with a window of the map in shared memory (cuda_window.cuh), which
// recurrent cells share.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace fastds {

// A feature map with channel stride 1; strides are in elements. A map without channels is absent.
struct WindowMap {
    const void* data;
    int64_t channels, b, h, w;
};

// The convolution of a kernel with a window, in float16 or bfloat16 with stride 1 and padding 1.
struct WindowCall {
    DType dtype;         // of all maps and the weight
    int64_t B, H, W, O;  // O: outputs
    WindowMap source[2];                     // concatenated along the channels
    const void* weight;                      // weight[o, c, i, j] is at o * weight_o + (3 i + j) * weight_tap + c
    int64_t weight_o, weight_tap;
    const void* bias;                        // null: none
    DType bias_dtype;                        // dtype or f32
    WindowMap residual;                      // O channels
};

// y = shuffle(act(conv(concat(sources), weight) + bias + residual)).
struct Conv3x3Window : WindowCall {
    void* y;                                 // (B, O / shuffle^2, shuffle H, shuffle W), dense, channels_last
    int mode_h, mode_w;                      // Conv3x3Padding of params.h
    int64_t shuffle;                         // factor of the pixel shuffle, 1: none
    float slope;                             // for negative values: 1 without activation, 0 for ReLU
};

// Returns whether the weights of some outputs and the windows of a tile fit in the shared memory of a block.
bool conv3x3_window_fits(int64_t channels, int64_t outputs, int device);

void conv3x3_window_cuda(const Conv3x3Window& call, int device, void* stream);

}  // namespace fastds
