// SPDX-License-Identifier: Apache-2.0
// Sizes, strides and addresses of one deform_conv2d call; plain data shared by the binding and the kernels.
//
// Every 4-D tensor has channel stride 1 (channels_last). x, offset and mask carry their own batch, row and pixel strides in
// elements, so that slices of one guide map need no copy; y, grad_y and all gradients are dense NHWC. With `planar`, in the
// forward on a CPU, offset, mask and y are dense NCHW. weight and grad_weight are dense (O, C/groups, kh, kw). For tap k = kh_index*kw + kw_index of offset group g, channel (g*K + k)*2 of offset is the
// row displacement in pixels, the next one the column displacement, and channel g*K + k of mask the sample's factor.
#pragma once
#include <stdint.h>

#include "core/isa.h"

namespace fastds {

struct DeformConv2dDims {
    int dtype, offset_dtype;  // DType; offset_dtype is dtype or f32
    int64_t B, C, H, W, O, Ho, Wo, kh, kw;
    int64_t stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
    int64_t groups, offset_groups, planar;
    int64_t x_b, x_h, x_w, offset_b, offset_h, offset_w, mask_b, mask_h, mask_w;
    bool tiles;  // bfloat16 on matrix tiles (AMX)
};

struct DeformConv2dForward {
    const void *x, *offset;
    const void* mask;  // null: all ones
    const void* weight;
    const void* bias;  // null: zeros
    void* y;
};

// A null gradient is not computed; every other one is written completely.
struct DeformConv2dBackward {
    const void *grad_y, *x, *offset, *mask, *weight;
    void *grad_x, *grad_offset, *grad_mask, *grad_weight, *grad_bias;
    void* workspace;  // deform_conv2d_workspace(dims) bytes
};

FASTDS_PER_ISA(void deform_conv2d_forward(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, int threads))
FASTDS_PER_ISA(void deform_conv2d_backward(const DeformConv2dDims& dims, const DeformConv2dBackward& tensors, int threads))

// CUDA kernels. weight is dense (O, K, C/groups) in the forward and (K, O, C/groups) in the backward. The backward comes in two
// calls, each of which ignores what belongs to the other. Samples: grad_x, grad_offset and grad_mask; grad_x is added to zeros in
// the compute type, unless there is a workspace of zeros, deform_conv2d_ordered_workspace(dims) bytes: then it is written in its
// own type and the same for any order of the additions, and mask must be dense. Weight: grad_weight, with a workspace of
// deform_conv2d_weight_workspace(dims) bytes. grad_bias is the caller's.
void deform_conv2d_forward_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, int device, void* stream);

// What the guided op adds, in the forward on CUDA where deform_conv2d_window_fits: base (B, 2, Ho, Wo), (dy, dx) of a pixel added
// to all its offsets, or null; whether mask is what a sigmoid is yet to be taken of; the slope of a leaky ReLU, 1 for none.
struct DeformConv2dGuide {
    const float* base;
    bool sigmoid;
    float slope;
};
bool deform_conv2d_window_fits(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, int device);
void deform_conv2d_guided_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, const DeformConv2dGuide& guide,
                               int device, void* stream);
void deform_conv2d_backward_samples_cuda(const DeformConv2dDims& dims, const DeformConv2dBackward& tensors, int device,
                                         void* stream);
void deform_conv2d_backward_weight_cuda(const DeformConv2dDims& dims, const DeformConv2dBackward& tensors, int device,
                                        void* stream);
int64_t deform_conv2d_ordered_workspace(const DeformConv2dDims& dims);
int64_t deform_conv2d_weight_workspace(const DeformConv2dDims& dims);

}  // namespace fastds
