// SPDX-License-Identifier: Apache-2.0
// Sizes, strides and addresses of one deform_conv2d call, in plain structs shared by the binding and the kernels.
//
// 4-D tensors have channel stride 1 (channels_last). x, offset and mask have batch, row and pixel strides in elements, so that
// channel slices of one tensor need no copy. y, grad_y and the gradients of x, offset and mask are contiguous NHWC. If `planar`
// is set (only in the forward pass on a CPU), offset, mask and y are contiguous NCHW. On the CPU, weight and grad_weight are
// contiguous (O, C/groups, kh, kw). For tap k = kh_index*kw + kw_index of offset group g, channel (g*K + k)*2 of offset is the
// row displacement in pixels and the next channel the column displacement. Channel g*K + k of mask is the factor of the sample.
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
    bool tiles;  // use AMX tiles for bfloat16
};

struct DeformConv2dForward {
    const void *x, *offset;
    const void* mask;  // null: all ones
    const void* weight;
    const void* bias;  // null: zeros
    void* y;
};

// A gradient whose address is null is not computed. On the CPU, all elements of each computed gradient are written.
struct DeformConv2dBackward {
    const void *grad_y, *x, *offset, *mask, *weight;
    void *grad_x, *grad_offset, *grad_mask, *grad_weight, *grad_bias;
    void* workspace;  // deform_conv2d_workspace(dims) bytes
};

FASTDS_PER_ISA(void deform_conv2d_forward(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, int threads))
FASTDS_PER_ISA(void deform_conv2d_backward(const DeformConv2dDims& dims, const DeformConv2dBackward& tensors, int threads))

// CUDA kernels. weight is contiguous: (O, K, C/groups) in the forward pass and (K, O, C/groups) in the backward pass. The
// backward pass has two functions, each of which ignores the members of the other.
// deform_conv2d_backward_samples_cuda computes grad_x, grad_offset and grad_mask. Without a workspace it adds grad_x to memory
// that the caller has zeroed, in the compute type. With a zeroed workspace of deform_conv2d_ordered_workspace(dims) bytes it
// writes grad_x in its own type with a result that does not depend on the order of the additions; mask must then be contiguous.
// deform_conv2d_backward_weight_cuda computes grad_weight with a workspace of deform_conv2d_weight_workspace(dims) bytes. The
// caller computes grad_bias.
void deform_conv2d_forward_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, int device, void* stream);

// Operations that deform_conv2d_guided_cuda fuses into the forward pass. `base` is (B, 2, Ho, Wo): (dy, dx) of each pixel,
// added to all its offsets, or null. If `sigmoid` is true, mask holds logits. `slope` is the negative slope of a leaky ReLU on
// the output; 1 means none. The function requires that deform_conv2d_window_fits returns true.
struct DeformConv2dOffsetEpilogue {
    const float* base;
    bool sigmoid;
    float slope;
};
bool deform_conv2d_window_fits(const DeformConv2dDims& dims, const DeformConv2dForward& tensors, int device);
void deform_conv2d_guided_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors,
                               const DeformConv2dOffsetEpilogue& epilogue,
                               int device, void* stream);
// The same in one kernel whose warps either sample or multiply, for 16-bit types. deform_conv2d_fused_fits returns whether the
// sums of `terms` terms for `outputs` outputs of a group fit in shared memory and the code is for compute capability 8.0.
bool deform_conv2d_fused_fits(int64_t terms, int64_t outputs, int device);
void deform_conv2d_fused_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors,
                              const DeformConv2dOffsetEpilogue& epilogue, int device, void* stream);
// Writes the samples of `lines` rows of output pixels, of all images from the row `first_line` on, to tensors.y as columns
// (groups, lines * Wo, K, C/groups), with the type of x. `slope` and the weight are not used.
void deform_conv2d_sample_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors,
                               const DeformConv2dOffsetEpilogue& epilogue, int64_t first_line, int64_t lines, int device,
                               void* stream);
// The gradients of the maps. Those whose address is null are not computed. `x` is contiguous NHWC. The elements of a pixel in
// `offset` and `mask` are adjacent, and `offset_step` and `mask_step` elements are between two pixels. They have the type of x
// or float32.
struct DeformConv2dMapGradients {
    float* x;
    void *offset, *mask;
    int64_t offset_step, mask_step;
    bool offset_in_float32, mask_in_float32;
};
// Adds to grads.x and writes grads.offset and grads.mask, from the gradients of the columns of deform_conv2d_sample_cuda. The
// weight, bias and y are not used.
void deform_conv2d_scatter_cuda(const DeformConv2dDims& dims, const DeformConv2dForward& tensors,
                                const DeformConv2dOffsetEpilogue& epilogue, const void* columns,
                                const DeformConv2dMapGradients& grads, int64_t first_line, int64_t lines, int device,
                                void* stream);
void deform_conv2d_backward_samples_cuda(const DeformConv2dDims& dims, const DeformConv2dBackward& tensors, int device,
                                         void* stream);
void deform_conv2d_backward_weight_cuda(const DeformConv2dDims& dims, const DeformConv2dBackward& tensors, int device,
                                        void* stream);
int64_t deform_conv2d_ordered_workspace(const DeformConv2dDims& dims);
int64_t deform_conv2d_weight_workspace(const DeformConv2dDims& dims);

}  // namespace fastds
