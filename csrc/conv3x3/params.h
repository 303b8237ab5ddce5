// SPDX-License-Identifier: Apache-2.0
// Sizes and addresses of the 3x3 convolution engine; plain data shared by the binding and the kernels.
//
// One engine runs forward and grad_x: it reads the virtual concatenation of `sources` and writes the virtual concatenation of
// `sinks`. Both are views with channel stride 1; matrix tiles also take sources with channels apart and pixel stride 1. A pixel-shuffled tensor of factor r is r*r such views, one per sub-pixel, so
// that the packed weights carry the channels in the order (sub-pixel, channel).
#pragma once
#include <stdint.h>

#include "core/dtype.h"
#include "core/isa.h"

namespace fastds {

constexpr int kConv3x3Views = 64;  // shuffle up to 8

enum Conv3x3Padding : int { pad_zeros = 0, pad_replicate = 1, pad_wrap = 2 };

// Strides in elements. sign: output of the activation behind this gradient, same strides; null: no activation.
struct Conv3x3View {
    void* data;
    const void* sign;
    int64_t channels, b, h, w, c;
    FASTDS_HD int64_t offset(int64_t image, int64_t row, int64_t column) const { return image * b + row * h + column * w; }
};

// A tensor as views side by side in its channels.
struct Conv3x3Views {
    DType dtype;
    int count;
    Conv3x3View view[kConv3x3Views];
    FASTDS_HD int64_t channels() const {
        int64_t sum = 0;
        for (int i = 0; i < count; i++) sum += view[i].channels;
        return sum;
    }
};

// Rows -pad_h .. of the input, continued by mode_h beyond its H rows, meet output row 0; columns likewise.
struct Conv3x3Geometry {
    int64_t B, H, W;    // of the sources
    int64_t Ho, Wo;     // of the sinks
    int pad_h, pad_w;   // 1: same size, 2: gradient of the padded input
    int mode_h, mode_w; // Conv3x3Padding
    FASTDS_HD int64_t tiles_h() const { return (Ho + 3) / 4; }
    FASTDS_HD int64_t tiles_w() const { return (Wo + 3) / 4; }
    FASTDS_HD int64_t tiles() const { return B * tiles_h() * tiles_w(); }
};

// weight[o, c, i, j] at o*stride_o + c*stride_c + i*stride_h + j*stride_w, i and j < size.
//
// A filter of more than 3x3 taps is cut into blocks of 3x3, zeros behind the last tap: the sum of as many 3x3 convolutions of
// shifted maps. Their sources are views side by side, row of blocks by row, each with all C channels (O in the adjoint).
struct Conv3x3Weight {
    const void* data;
    DType dtype;
    int64_t O, C, stride_o, stride_c, stride_h, stride_w, size;
    FASTDS_HD int64_t side() const { return (size + 2) / 3; }  // blocks in a row
    FASTDS_HD int64_t blocks() const { return side() * side(); }
};

// A weight for forward or (adjoint) grad_x; shuffle is the factor of the convolution's output.
struct Conv3x3Filters {
    Conv3x3Weight weight;
    bool adjoint;
    int64_t shuffle;
};

struct Conv3x3Call {
    Conv3x3Geometry geometry;
    Conv3x3Views sources, sinks;
    const float* packed;  // conv3x3_pack_weight; null: the engine packs `filters` part by part
    Conv3x3Filters filters;
    const void* bias;     // O values of bias_dtype in the order of the weight, or null
    DType bias_dtype;
    // Added to the sinks before shuffle and activation, side by side as many channels; count 0 or a view without data: nothing.
    Conv3x3Views residual;
    int64_t shuffle;       // of the sinks
    int act;               // Act of core/activation.h
    float negative_slope;  // of act, or of the activation that the sources' sign belongs to
    bool amx;              // sums of products on matrix tiles; sources of bfloat16, filters packed for it
};

struct Conv3x3GradWeight {
    Conv3x3Geometry geometry;
    Conv3x3Views sources, gradients;  // gradients: of the convolution's output
    DType dtype;                      // of grad_weight and grad_bias, dense
    void* grad_weight;
    void* grad_bias;       // null: not wanted
    int64_t shuffle;       // factor behind the gradients' views
    float negative_slope;  // of the activation that the gradients' sign belongs to
    int threads;
};

// A recurrent cell behind a convolution. The call's sources are x and h; its sinks ONE view with all outputs, in which the
// pre-activations are kept for the backward, or whose data is null; no activation. Its residual: none, or what is added to the
// pre-activations: where the x-part of all steps was convolved at once, sources is h alone and residual that part. Its plan makes
// all outputs in one pass: conv3x3_one_pass.
struct Conv3x3Cell {
    // Takes pre[g * plane + i], i < n, of each gate g: the channels of pixel (b, y, x) and, when dense, of those behind it in its
    // row. Runs for every pixel once, on any thread: it must not change shared state.
    void (*row)(const void* context, int64_t b, int64_t y, int64_t x, int64_t n, const float* pre, int64_t plane);
    const void* context;
    int64_t channels;  // gate g is outputs [g * channels, (g + 1) * channels) of the convolution
    bool dense;        // pixels of all its tensors follow each other without gaps
};

// A map whose pixels or whose channels lie side by side: w or c is 1. Strides in elements.
struct Conv3x3Map {
    const void* data;
    DType dtype;
    int64_t channels, b, c, h, w;
};

// A convolution of few outputs, for which each output is a plane that products of planes are added to; forward or grad_x.
struct Conv3x3Planes {
    Conv3x3Geometry geometry;
    int sources;  // 1 or 2, side by side
    Conv3x3Map source[2];
    const float* filters;  // filter of output o and input i at o * stride_o + i * stride_i, its nine taps dense
    int64_t outputs, stride_o, stride_i;
    bool adjoint;          // taps from the last to the first
    const float* bias;     // null: none
    const void* residual;  // as y, added before the activation; null: none
    void* y;               // dense, channels_last
    DType y_dtype;
    int act;
    float negative_slope;
    int threads;
};

// The weight gradient of a convolution with few channels on one side, of which `few` is the map, `many` that of the other side.
struct Conv3x3FewGradWeight {
    Conv3x3Geometry geometry;
    Conv3x3Map few, many;  // the channels of many lie side by side
    bool gradients;        // few is the gradient of the outputs, many the input; else few is the input
    DType dtype;
    void* grad_weight;  // (outputs, inputs, 3, 3), dense
    int threads;
};

// Columns that a pass works on, and where its planes lie; functions of shape and threads, never of the result.
struct Conv3x3Plan {
    int64_t block_tiles, blocks;   // tiles transformed at once at most, number of such blocks
    int64_t group_tiles;           // multiplied at once: blocks are whole groups but for the last tiles
    int64_t block_vectors;         // output vectors per pass over the 36 products
    int64_t thread_floats, bytes;  // workspace
    int threads, store;            // store: how outputs are written, see output.h
    int sharing;                   // threads that work on the only block together, where tiles are few and filters many; else 0
};

// clang-format off
// cell: the call is that of a Conv3x3Cell.
FASTDS_PER_ISA(Conv3x3Plan conv3x3_plan(const Conv3x3Call& call, bool cell, int threads))
FASTDS_PER_ISA(void conv3x3_run(const Conv3x3Call& call, const Conv3x3Plan& plan, float* workspace))
FASTDS_PER_ISA(void conv3x3_run_cell(const Conv3x3Call& call, const Conv3x3Plan& plan, const Conv3x3Cell& cell, float* workspace))
FASTDS_PER_ISA(bool conv3x3_one_pass(int64_t inputs, int64_t outputs))
FASTDS_PER_ISA(int64_t conv3x3_packed_size(const Conv3x3Weight& weight, bool adjoint, bool amx))
FASTDS_PER_ISA(void conv3x3_pack_weight(const Conv3x3Filters& filters, bool amx, float* packed, int threads))
FASTDS_PER_ISA(int64_t conv3x3_grad_weight_bytes(const Conv3x3GradWeight& call))
FASTDS_PER_ISA(void conv3x3_grad_weight(const Conv3x3GradWeight& call, float* workspace))
// The same on matrix tiles, of sources and gradients in bfloat16.
FASTDS_PER_ISA(int64_t conv3x3_amx_grad_weight_bytes(const Conv3x3GradWeight& call))
FASTDS_PER_ISA(void conv3x3_amx_grad_weight(const Conv3x3GradWeight& call, float* workspace))
// Few outputs, or a weight gradient with few channels on one side.
FASTDS_PER_ISA(int64_t conv3x3_planes_bytes(const Conv3x3Planes& call))
FASTDS_PER_ISA(void conv3x3_planes(const Conv3x3Planes& call, float* workspace))
FASTDS_PER_ISA(int64_t conv3x3_few_grad_weight_bytes(const Conv3x3FewGradWeight& call))
FASTDS_PER_ISA(void conv3x3_few_grad_weight(const Conv3x3FewGradWeight& call, float* workspace))
// Forward and grad_x on matrix tiles. The plan is for conv3x3_amx_run; cell: null, or of conv3x3_run_cell.
FASTDS_PER_ISA(Conv3x3Plan conv3x3_amx_plan(const Conv3x3Call& call, bool cell, int threads))
FASTDS_PER_ISA(void conv3x3_amx_run(const Conv3x3Call& call, const Conv3x3Cell* cell, const Conv3x3Plan& plan, float* workspace))
// clang-format on

}  // namespace fastds
