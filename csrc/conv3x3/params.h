// SPDX-License-Identifier: Apache-2.0
// Sizes and addresses of the 3x3 convolution engine, in plain structs shared by the binding and the kernels.
//
// The same engine computes forward and grad_x: it reads the concatenation of `sources` and writes the concatenation of `sinks`
// along the channels, without copying either. Both consist of views with channel stride 1. With AMX, sources may have pixel
// stride 1 instead. A tensor that is pixel-shuffled by the factor r is represented by r*r views, one per sub-pixel, so that the
// channels of the packed weights are in the order (sub-pixel, channel).
#pragma once
#include <stdint.h>

#include "core/dtype.h"
#include "core/isa.h"

namespace fastds {

constexpr int kConv3x3Views = 64;  // permits shuffle factors up to 8

enum Conv3x3Padding : int { pad_zeros = 0, pad_replicate = 1, pad_wrap = 2 };

// A view of a tensor; strides are in elements. If `data` is a gradient that must be multiplied by the derivative of an
// activation, `sign` is the output of that activation, with the same strides. Otherwise `sign` is null.
struct Conv3x3View {
    void* data;
    const void* sign;
    int64_t channels, b, h, w, c;
    FASTDS_HD int64_t offset(int64_t image, int64_t row, int64_t column) const { return image * b + row * h + column * w; }
};

// Views that are concatenated along the channels.
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

// Geometry of the convolution. Output row 0 is computed from the input rows that start at -pad_h; rows outside [0, H) are
// defined by mode_h. The same holds for columns.
struct Conv3x3Geometry {
    int64_t B, H, W;    // sizes of the sources
    int64_t Ho, Wo;     // sizes of the sinks
    int pad_h, pad_w;   // 1: same size; 2: gradient with respect to the padded input
    int mode_h, mode_w; // Conv3x3Padding
    FASTDS_HD int64_t tiles_h() const { return (Ho + 3) / 4; }
    FASTDS_HD int64_t tiles_w() const { return (Wo + 3) / 4; }
    FASTDS_HD int64_t tiles() const { return B * tiles_h() * tiles_w(); }
};

// A weight; weight[o, c, i, j] is at o*stride_o + c*stride_c + i*stride_h + j*stride_w, with i and j < size.
//
// A filter larger than 3x3 is split into blocks of 3x3 taps, padded with zeros after the last tap. The convolution is then the
// sum of 3x3 convolutions of shifted inputs. Their sources are concatenated views in row-major order of the blocks, each with
// all C channels (O channels for the adjoint).
struct Conv3x3Weight {
    const void* data;
    DType dtype;
    int64_t O, C, stride_o, stride_c, stride_h, stride_w, size;
    FASTDS_HD int64_t side() const { return (size + 2) / 3; }  // blocks in a row
    FASTDS_HD int64_t blocks() const { return side() * side(); }
};

// A weight for the forward pass or, if `adjoint` is true, for grad_x. `shuffle` is the pixel-shuffle factor of the
// convolution's output.
struct Conv3x3Filters {
    Conv3x3Weight weight;
    bool adjoint;
    int64_t shuffle;
};

struct Conv3x3Call {
    Conv3x3Geometry geometry;
    Conv3x3Views sources, sinks;
    const float* packed;  // from conv3x3_pack_weight; null: the engine packs `filters` in parts
    Conv3x3Filters filters;
    const void* bias;     // O values of bias_dtype in the order of the weight, or null
    DType bias_dtype;
    // Tensor that is added to the outputs before shuffle and activation. The concatenated views have as many channels as the
    // sinks. Nothing is added if the count is 0 or for views whose data is null.
    Conv3x3Views residual;
    int64_t shuffle;       // pixel-shuffle factor of the sinks
    int act;               // Act of core/activation.h
    float negative_slope;  // of `act`, or of the activation whose output is the sources' `sign`
    bool amx;              // use AMX tiles: the sources are bfloat16 and the filters are packed for AMX
};

struct Conv3x3GradWeight {
    Conv3x3Geometry geometry;
    Conv3x3Views sources, gradients;  // gradients: with respect to the outputs of the convolution
    DType dtype;                      // of grad_weight and grad_bias, which are contiguous
    void* grad_weight;
    void* grad_bias;       // null: not computed
    int64_t shuffle;       // pixel-shuffle factor of the outputs
    float negative_slope;  // of the activation whose output is the gradients' `sign`
    int threads;
};

// A recurrent cell that processes the outputs of a convolution. The sources of the call are x and h. The sinks are a single
// view of all outputs, which stores the pre-activations for the backward pass; its data is null if they are not needed. The
// call has no activation. A residual is added to the pre-activations: if the convolution of x was computed for all time steps
// at once, the only source is h and that result is the residual. The plan computes all outputs in one pass (conv3x3_one_pass).
struct Conv3x3Cell {
    // Processes the pre-activations pre[g * plane + i], i < n, of each gate g. They are the channels of pixel (b, y, x) and, if
    // `dense` is true, of the pixels that follow in its row. Each pixel is passed to one call, on any thread. The function must
    // not modify shared state.
    void (*row)(const void* context, int64_t b, int64_t y, int64_t x, int64_t n, const float* pre, int64_t plane);
    const void* context;
    int64_t channels;  // gate g is the outputs [g * channels, (g + 1) * channels) of the convolution
    bool dense;        // the pixels of all tensors of the cell are contiguous
};

// A feature map in which the pixels of a row (w is 1) or the channels of a pixel (c is 1) are contiguous. Strides are in
// elements.
struct Conv3x3Map {
    const void* data;
    DType dtype;
    int64_t channels, b, c, h, w;
};

// A convolution with few outputs, forward or grad_x. Each output is a plane to which products of input planes are added.
struct Conv3x3Planes {
    Conv3x3Geometry geometry;
    int sources;  // 1 or 2, concatenated along the channels
    Conv3x3Map source[2];
    const float* filters;  // the filter of output o and input i starts at o * stride_o + i * stride_i; its nine taps are contiguous
    int64_t outputs, stride_o, stride_i;
    bool adjoint;          // use the taps in reversed order
    const float* bias;     // null: none
    const void* residual;  // like y, added before the activation; null: none
    void* y;               // contiguous channels_last
    DType y_dtype;
    int act;
    float negative_slope;
    int threads;
};

// The weight gradient of a convolution with few channels on one side. `few` is the feature map of that side, `many` that of the
// other.
struct Conv3x3FewGradWeight {
    Conv3x3Geometry geometry;
    Conv3x3Map few, many;  // the channels of `many` are contiguous
    bool gradients;        // true: `few` is the gradient of the outputs and `many` the input; false: the other way round
    DType dtype;
    void* grad_weight;  // (outputs, inputs, 3, 3), contiguous
    int threads;
};

// Partition of a call and size of its workspace. It depends on the shape, the alignment of the outputs and the
// number of threads, and never changes the result.
struct Conv3x3Plan {
    int64_t block_tiles, blocks;   // maximum number of tiles transformed at once; number of such blocks
    int64_t group_tiles;           // tiles multiplied at once: blocks are whole groups, except for the last tiles
    int64_t block_vectors;         // output vectors per pass over the 36 products
    int64_t thread_floats, bytes;  // size of the workspace
    int threads, store;            // store: how outputs are written (enum Store in epilogue.h)
    // Number of threads that process one block together. It is 0 unless the filters are not packed, or there are few tiles and
    // many filters.
    int sharing;
};

// clang-format off
// Returns the partition of a call. `cell` is true if the outputs are processed by a Conv3x3Cell.
FASTDS_PER_ISA(Conv3x3Plan conv3x3_plan(const Conv3x3Call& call, bool cell, int threads))
FASTDS_PER_ISA(void conv3x3_run(const Conv3x3Call& call, const Conv3x3Plan& plan, float* workspace))
FASTDS_PER_ISA(void conv3x3_run_cell(const Conv3x3Call& call, const Conv3x3Plan& plan, const Conv3x3Cell& cell, float* workspace))
FASTDS_PER_ISA(bool conv3x3_one_pass(int64_t inputs, int64_t outputs))
FASTDS_PER_ISA(int64_t conv3x3_packed_size(const Conv3x3Weight& weight, bool adjoint, bool amx))
FASTDS_PER_ISA(void conv3x3_pack_weight(const Conv3x3Filters& filters, bool amx, float* packed, int threads))
FASTDS_PER_ISA(int64_t conv3x3_grad_weight_bytes(const Conv3x3GradWeight& call))
FASTDS_PER_ISA(void conv3x3_grad_weight(const Conv3x3GradWeight& call, float* workspace))
// Versions with AMX tiles; sources and gradients are bfloat16.
FASTDS_PER_ISA(int64_t conv3x3_amx_grad_weight_bytes(const Conv3x3GradWeight& call))
FASTDS_PER_ISA(void conv3x3_amx_grad_weight(const Conv3x3GradWeight& call, float* workspace))
// Versions for a convolution with few outputs, and for a weight gradient with few channels on one side.
FASTDS_PER_ISA(int64_t conv3x3_planes_bytes(const Conv3x3Planes& call))
FASTDS_PER_ISA(void conv3x3_planes(const Conv3x3Planes& call, float* workspace))
FASTDS_PER_ISA(int64_t conv3x3_few_grad_weight_bytes(const Conv3x3FewGradWeight& call))
FASTDS_PER_ISA(void conv3x3_few_grad_weight(const Conv3x3FewGradWeight& call, float* workspace))
// Forward and grad_x with AMX tiles. conv3x3_amx_plan returns the plan for conv3x3_amx_run, whose `cell` is null or the cell of
// conv3x3_run_cell.
FASTDS_PER_ISA(Conv3x3Plan conv3x3_amx_plan(const Conv3x3Call& call, bool cell, int threads))
FASTDS_PER_ISA(void conv3x3_amx_run(const Conv3x3Call& call, const Conv3x3Cell* cell, const Conv3x3Plan& plan, float* workspace))
// clang-format on

}  // namespace fastds
