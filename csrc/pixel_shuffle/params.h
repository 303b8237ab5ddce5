// SPDX-License-Identifier: Apache-2.0
// pixel_shuffle: (B, C*r*r, H, W) <-> (B, C, r*H, r*W) in channels_last, fused with bias and activation.
//
// All tensors are contiguous NHWC; on the CPU all tensors of a call may be contiguous NCHW instead. Coarse channel c*r*r + i*r
// + j is channel c of sub-pixel (i, j). Bias and its gradient have one value per coarse channel in the compute type. The
// CUDA function of the forward pass expects the bias in the order (sub-pixel, channel), element (i*r + j)*C + c.
#pragma once
#include <stdint.h>

#include "core/dtype.h"
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

// Partition of the coarse pixels into tiles for the CUDA kernel of the gradients. A tile has `pixels` coarse pixels and
// `channels` fine channels, which are all C unless the elements of one pixel exceed a tile. There are `tiles` tiles for each
// slice of channels. `parts` blocks process consecutive tiles of a slice, and each sums its part of the bias gradient. All
// depends only on the shape and the dtype, so that sums have the same bits on each GPU.
struct PixelUnshuffleTiling {
    int pixels, channels;
    int64_t tiles, parts;
};

constexpr int kUnshuffleTileBytes = 8192;

static inline PixelUnshuffleTiling make_pixel_unshuffle_tiling(const PixelShuffleParams& params) {
    constexpr int64_t few = 256, most = 1024;  // parts; `few` occupy a GPU
    const int taps = params.r * params.r, elements = kUnshuffleTileBytes / (params.dtype == f64 ? 8 : params.dtype == f32 ? 4 : 2);
    PixelUnshuffleTiling t{1, elements / taps / 8 * 8, 0, 0};
    if (params.C * taps <= elements) {
        t.channels = static_cast<int>(params.C);
        t.pixels = elements / (t.channels * taps);
    }
    t.tiles = (params.B * params.H * params.W + t.pixels - 1) / t.pixels;
    // Parts are large enough that the time to write and read their sums is small compared with that of their tiles.
    const int64_t least = t.pixels < 8 ? 32 / t.pixels : 4, fitting = t.tiles / least;
    t.parts = t.tiles < few ? t.tiles : fitting < few ? few : fitting < most ? fitting : most;
    return t;
}

// Returns the number of partial sums of the bias gradient on CUDA.
static inline int64_t pixel_shuffle_partials(const PixelShuffleParams& params) {
    return make_pixel_unshuffle_tiling(params).parts;
}

// Returns the number of parts on a CPU. A part has a fixed cost there, so that few pixels have fewer parts. The number is a
// power of two, so that threads get equal numbers of parts, unless the rows limit it.
static inline int64_t pixel_shuffle_cpu_partials(const PixelShuffleParams& params) {
    const int64_t fitting = 2 + params.B * params.H * params.W / 256, rows = params.B * params.H;
    const int64_t most = rows < 64 ? rows : 64;
    int64_t parts = 2;
    while (parts < fitting) parts *= 2;
    return parts < most ? parts : most;
}

}  // namespace fastds
