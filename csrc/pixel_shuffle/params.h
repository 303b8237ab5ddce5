// SPDX-License-Identifier: Apache-2.0
// pixel_shuffle: (B, C*r*r, H, W) <-> (B, C, r*H, r*W), channels_last, with bias and activation in the same pass.
//
// Every tensor is dense NHWC; on the CPU all of a call may be dense NCHW. Coarse channel c*r*r + i*r + j is channel c of
// sub-pixel (i, j). Vectors over the coarse channels (bias and its gradient) are in the compute type; those of the
// kernels lie sub-pixel first, element (i*r + j)*C + c, which a caller of the CUDA functions sees to.
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
    const void* bias;  // null: a plain permutation, without activation
    void* y;
    bool planes;  // x and y are NCHW; on the CPU
};

struct PixelShuffleBackward {
    const void* grad_y;
    const void* y;    // the forward's result; null without activation
    void* grad_x;     // null: not wanted
    void* grad_bias;  // null: not wanted
    void* partials;   // pixel_shuffle_partials(params) * C*r*r elements of the compute type; null without grad_bias
    bool planes;      // all maps are NCHW; on the CPU
};

FASTDS_PER_ISA(void pixel_shuffle_forward(const PixelShuffleParams& params, const PixelShuffleForward& tensors, int threads))
FASTDS_PER_ISA(void pixel_shuffle_backward(const PixelShuffleParams& params, const PixelShuffleBackward& tensors, int threads))

// Nothing is launched for an empty tensor: grad_bias is then left to the caller.
void pixel_shuffle_forward_cuda(const PixelShuffleParams& params, const PixelShuffleForward& tensors, int device,
                                void* stream);
void pixel_shuffle_backward_cuda(const PixelShuffleParams& params, const PixelShuffleBackward& tensors, int device,
                                 void* stream);

// Partial sums of the bias gradient: rows of coarse pixels are summed in this many pieces, a function of the shape alone.
static inline int64_t pixel_shuffle_partials(const PixelShuffleParams& params) {
    const int64_t rows = params.B * params.H;
    return rows < 64 ? rows : 64;
}

// The same on a CPU, where a piece of few pixels costs as much as it sums. A power of two: threads get equal numbers of them.
static inline int64_t pixel_shuffle_cpu_partials(const PixelShuffleParams& params) {
    const int64_t fitting = 2 + params.B * params.H * params.W / 256, most = pixel_shuffle_partials(params);
    int64_t pieces = 2;
    while (pieces < fitting) pieces *= 2;
    return pieces < most ? pieces : most;
}

}  // namespace fastds
