// SPDX-License-Identifier: Apache-2.0
// pixel_shuffle: (B, C*r*r, H, W) <-> (B, C, r*H, r*W) in channels_last, fused with bias and activation.
//
// All tensors are contiguous NHWC; on the CPU all tensors of a call may be contiguous NCHW instead. Coarse channel c*r*r + i*r
// + j is channel c of sub-pixel (i, j). Bias and its gradient have one value per coarse channel in the compute type. The
// kernels expect them in the order (sub-pixel, channel), element (i*r + j)*C + c; for the CUDA functions the caller reorders
// them.
#pragma once
#include <stdint.h>

#include "core/isa.h"

namespace fastds {

enum class ShuffleAct : int { none = 0, relu = 1, leaky_relu = 2 };

struct PixelShuffleParams {
    int dtype;             // DType
    int64_t B, C, H, W;    // C fine channels, H x W coarse pixels
    int r;                 // 1 to 8
    ShuffleAct act;
    double negative_slope;  // of leaky_relu
};

struct PixelShuffleForward {
    const void* x;
    const void* bias;  // null: a permutation without activation
    void* y;
    bool planes;  // x and y are NCHW (only on the CPU)
};

struct PixelShuffleBackward {
    const void* grad_y;
    const void* y;    // result of the forward pass; null without activation
    void* grad_x;     // null: not computed
    void* grad_bias;  // null: not computed
    void* partials;   // pixel_shuffle_partials(params) * C*r*r elements of the compute type; null without grad_bias
    bool planes;      // all tensors are NCHW (only on the CPU)
};

FASTDS_PER_ISA(void pixel_shuffle_forward(const PixelShuffleParams& params, const PixelShuffleForward& tensors, int threads))
FASTDS_PER_ISA(void pixel_shuffle_backward(const PixelShuffleParams& params, const PixelShuffleBackward& tensors, int threads))

// For empty tensors no kernel is launched, and the caller must set grad_bias.
void pixel_shuffle_forward_cuda(const PixelShuffleParams& params, const PixelShuffleForward& tensors, int device,
                                void* stream);
void pixel_shuffle_backward_cuda(const PixelShuffleParams& params, const PixelShuffleBackward& tensors, int device,
                                 void* stream);

// Returns the number of parts into which the rows of coarse pixels are divided for the sum of the bias gradient. It depends
// only on the shape.
static inline int64_t pixel_shuffle_partials(const PixelShuffleParams& params) {
    const int64_t rows = params.B * params.H;
    return rows < 64 ? rows : 64;
}

// Returns the number of parts on a CPU. A part has a fixed cost there, so that few pixels have fewer parts. The number is a
// power of two, so that threads get equal numbers of parts, unless pixel_shuffle_partials() limits it.
static inline int64_t pixel_shuffle_cpu_partials(const PixelShuffleParams& params) {
    const int64_t fitting = 2 + params.B * params.H * params.W / 256, most = pixel_shuffle_partials(params);
    int64_t parts = 2;
    while (parts < fitting) parts *= 2;
    return parts < most ? parts : most;
}

}  // namespace fastds
