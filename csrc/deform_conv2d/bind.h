// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/arguments.h"
#include "deform_conv2d/backward_partition.h"
#include "deform_conv2d/params.h"

namespace fastds {

// Returns the size in bytes of the workspace of the backward pass. Like the partition of its sums, it depends only on the
// shape.
inline int64_t deform_conv2d_workspace(const DeformConv2dDims& dims) {
    const int64_t accumulator_bytes = dims.dtype == f64 ? 8 : 4;
    return FASTDS_ISA::BackwardWorkspace(dims, FASTDS_ISA::BackwardPartition(dims), accumulator_bytes).bytes;
}

namespace deform_conv2d_bind {

inline void check(const DeformConv2dDims& d) {
    to_dtype(d.dtype);
    FASTDS_CHECK(d.offset_dtype == d.dtype || d.offset_dtype == f32, "deform_conv2d: offset_dtype must be dtype or float32");
    FASTDS_CHECK(d.C > 0 && d.O > 0 && d.H > 0 && d.W > 0 && d.kh > 0 && d.kw > 0 && d.B >= 0 && d.Ho >= 0 && d.Wo >= 0,
                 "deform_conv2d: sizes must be positive");
    FASTDS_CHECK(d.groups > 0 && d.C % d.groups == 0 && d.O % d.groups == 0, "deform_conv2d: groups must divide C and O");
    FASTDS_CHECK(d.offset_groups > 0 && d.C % d.offset_groups == 0, "deform_conv2d: offset_groups must divide C");
}

struct Size {
    const char* name;
    int64_t DeformConv2dDims::*member;
};
#define FASTDS_SIZE(name) {#name, &DeformConv2dDims::name}
constexpr Size kSizes[] = {
    FASTDS_SIZE(B),        FASTDS_SIZE(C),        FASTDS_SIZE(H),        FASTDS_SIZE(W),      FASTDS_SIZE(O),
    FASTDS_SIZE(Ho),       FASTDS_SIZE(Wo),       FASTDS_SIZE(kh),       FASTDS_SIZE(kw),     FASTDS_SIZE(stride_h),
    FASTDS_SIZE(stride_w), FASTDS_SIZE(pad_h),    FASTDS_SIZE(pad_w),    FASTDS_SIZE(dil_h),  FASTDS_SIZE(dil_w),
    FASTDS_SIZE(groups),   FASTDS_SIZE(x_b),      FASTDS_SIZE(x_h),      FASTDS_SIZE(x_w),    FASTDS_SIZE(offset_groups),
    FASTDS_SIZE(offset_b), FASTDS_SIZE(offset_h), FASTDS_SIZE(offset_w), FASTDS_SIZE(mask_b), FASTDS_SIZE(mask_h),
    FASTDS_SIZE(mask_w),   FASTDS_SIZE(planar)};
#undef FASTDS_SIZE

inline DeformConv2dDims make_dims(const py::kwargs& given) {
    Keywords keywords(given);
    DeformConv2dDims dims{};
    dims.dtype = keywords.take<int>("dtype");
    dims.offset_dtype = keywords.take<int>("offset_dtype");
    for (const Size& size : kSizes) dims.*size.member = keywords.take<int64_t>(size.name);
    dims.tiles = has_amx();
    keywords.check_unused();
    check(dims);
    return dims;
}

}  // namespace deform_conv2d_bind

inline void register_deform_conv2d(py::module_& m) {
    using namespace deform_conv2d_bind;
    // Local, so that tests can load several modules with changed kernels.
    py::class_<DeformConv2dDims>(m, "DeformConv2dDims", "Sizes and element strides of one deform_conv2d call", py::module_local())
        .def(py::init(&make_dims));
    bind(
        m, "deform_conv2d_forward",
        [](intptr_t x, intptr_t offset, intptr_t mask, intptr_t weight, intptr_t bias, intptr_t y,
           const DeformConv2dDims& dims, int threads) {
            py::gil_scoped_release release;
            const DeformConv2dForward tensors{to_pointer(x),      to_pointer(offset), to_pointer(mask),
                                              to_pointer(weight), to_pointer(bias),   to_pointer(y)};
            FASTDS_DISPATCH_TYPED(dims.dtype == f64, deform_conv2d_forward, dims, tensors, threads);
        },
        "Compute y. The addresses mask and bias may be 0.");
    bind(
        m, "deform_conv2d_backward",
        [](intptr_t grad_y, intptr_t x, intptr_t offset, intptr_t mask, intptr_t weight, intptr_t grad_x,
           intptr_t grad_offset, intptr_t grad_mask, intptr_t grad_weight, intptr_t grad_bias, intptr_t workspace,
           const DeformConv2dDims& dims, int threads) {
            py::gil_scoped_release release;
            const DeformConv2dBackward tensors{to_pointer(grad_y),      to_pointer(x),         to_pointer(offset),
                                               to_pointer(mask),        to_pointer(weight),    to_pointer(grad_x),
                                               to_pointer(grad_offset), to_pointer(grad_mask), to_pointer(grad_weight),
                                               to_pointer(grad_bias),   to_pointer(workspace)};
            FASTDS_DISPATCH_TYPED(dims.dtype == f64, deform_conv2d_backward, dims, tensors, threads);
        },
        "Compute the gradients whose address is not 0. workspace has deform_conv2d_workspace(dims) bytes.");
    bind(
        m, "deform_conv2d_workspace", [](const DeformConv2dDims& dims) { return deform_conv2d_workspace(dims); },
        "Return the size in bytes of the workspace of the backward pass; it does not depend on the number of threads.");
#if FASTDS_BUILD_CUDA
    bind(
        m, "deform_conv2d_forward_cuda",
        [](intptr_t x, intptr_t offset, intptr_t mask, intptr_t weight, intptr_t bias, intptr_t y,
           const DeformConv2dDims& dims, int device, intptr_t stream) {
            py::gil_scoped_release release;
            const DeformConv2dForward tensors{to_pointer(x),      to_pointer(offset), to_pointer(mask),
                                              to_pointer(weight), to_pointer(bias),   to_pointer(y)};
            deform_conv2d_forward_cuda(dims, tensors, device, to_pointer(stream));
        },
        "Compute y. weight is (O, K, C/groups); the addresses mask and bias may be 0.");
    bind(
        m, "deform_conv2d_window_fits",
        [](intptr_t x, intptr_t offset, intptr_t weight, const DeformConv2dDims& dims, int device) {
            const DeformConv2dForward tensors{to_pointer(x), to_pointer(offset), nullptr, to_pointer(weight), nullptr, nullptr};
            return deform_conv2d_window_fits(dims, tensors, device);
        },
        "Return whether the forward pass reads its samples from a window in shared memory, as deform_conv2d_guided_cuda requires.");
    bind(
        m, "deform_conv2d_guided_cuda",
        [](intptr_t x, intptr_t offset, intptr_t mask, intptr_t weight, intptr_t bias, intptr_t y, intptr_t base, bool sigmoid,
           double slope, const DeformConv2dDims& dims, int device, intptr_t stream) {
            py::gil_scoped_release release;
            const DeformConv2dForward tensors{to_pointer(x),      to_pointer(offset), to_pointer(mask),
                                              to_pointer(weight), to_pointer(bias),   to_pointer(y)};
            const DeformConv2dOffsetEpilogue epilogue{static_cast<const float*>(to_pointer(base)), sigmoid,
                                                      static_cast<float>(slope)};
            deform_conv2d_guided_cuda(dims, tensors, epilogue, device, to_pointer(stream));
        },
        "Like deform_conv2d_forward_cuda with the offsets + base, sigmoid(mask) and a leaky ReLU on y. The address base may be 0.");
    bind(
        m, "deform_conv2d_fused_fits",
        [](int64_t terms, int64_t outputs, int device) { return deform_conv2d_fused_fits(terms, outputs, device); },
        "Return whether deform_conv2d_fused_cuda can compute sums of `terms` terms for `outputs` outputs of a group.");
    bind(
        m, "deform_conv2d_fused_cuda",
        [](intptr_t x, intptr_t offset, intptr_t mask, intptr_t weight, intptr_t bias, intptr_t y, intptr_t base, bool sigmoid,
           double slope, const DeformConv2dDims& dims, int device, intptr_t stream) {
            py::gil_scoped_release release;
            const DeformConv2dForward tensors{to_pointer(x),      to_pointer(offset), to_pointer(mask),
                                              to_pointer(weight), to_pointer(bias),   to_pointer(y)};
            const DeformConv2dOffsetEpilogue epilogue{static_cast<const float*>(to_pointer(base)), sigmoid,
                                                      static_cast<float>(slope)};
            deform_conv2d_fused_cuda(dims, tensors, epilogue, device, to_pointer(stream));
        },
        "Like deform_conv2d_guided_cuda by a kernel whose warps either sample or multiply.");
    bind(
        m, "deform_conv2d_sample_cuda",
        [](intptr_t x, intptr_t offset, intptr_t mask, intptr_t columns, intptr_t base, bool sigmoid,
           const DeformConv2dDims& dims, int64_t first_line, int64_t lines, int device, intptr_t stream) {
            py::gil_scoped_release release;
            const DeformConv2dForward tensors{to_pointer(x), to_pointer(offset), to_pointer(mask),
                                              nullptr,       nullptr,            to_pointer(columns)};
            const DeformConv2dOffsetEpilogue epilogue{static_cast<const float*>(to_pointer(base)), sigmoid, 1.f};
            deform_conv2d_sample_cuda(dims, tensors, epilogue, first_line, lines, device, to_pointer(stream));
        },
        "Write the samples of `lines` rows of output pixels as columns (groups, pixels, K, C/groups). The addresses mask and base "
        "may be 0.");
    bind(
        m, "deform_conv2d_scatter_cuda",
        [](intptr_t x, intptr_t offset, intptr_t mask, intptr_t columns, intptr_t base, bool sigmoid, intptr_t grad_x,
           intptr_t grad_offset, int64_t offset_step, bool offset_in_float32, intptr_t grad_mask, int64_t mask_step,
           bool mask_in_float32, const DeformConv2dDims& dims, int64_t first_line, int64_t lines, int device, intptr_t stream) {
            py::gil_scoped_release release;
            const DeformConv2dForward tensors{to_pointer(x), to_pointer(offset), to_pointer(mask), nullptr, nullptr, nullptr};
            const DeformConv2dOffsetEpilogue epilogue{static_cast<const float*>(to_pointer(base)), sigmoid, 1.f};
            const DeformConv2dMapGradients grads{static_cast<float*>(to_pointer(grad_x)), to_pointer(grad_offset),
                                                 to_pointer(grad_mask), offset_step, mask_step, offset_in_float32,
                                                 mask_in_float32};
            deform_conv2d_scatter_cuda(dims, tensors, epilogue, to_pointer(columns), grads, first_line, lines, device,
                                       to_pointer(stream));
        },
        "Add to grad_x, in float32, and write grad_offset and grad_mask, from the gradients of the columns of "
        "deform_conv2d_sample_cuda, unless their address is 0. Pixels of grad_offset and grad_mask are `step` elements apart.");
    bind(
        m, "deform_conv2d_backward_samples_cuda",
        [](intptr_t grad_y, intptr_t x, intptr_t offset, intptr_t mask, intptr_t weight, intptr_t grad_x,
           intptr_t grad_offset, intptr_t grad_mask, intptr_t workspace, const DeformConv2dDims& dims, int device,
           intptr_t stream) {
            py::gil_scoped_release release;
            const DeformConv2dBackward tensors{
                to_pointer(grad_y),      to_pointer(x),         to_pointer(offset), to_pointer(mask), to_pointer(weight),   to_pointer(grad_x),
                to_pointer(grad_offset), to_pointer(grad_mask), nullptr,         nullptr,       to_pointer(workspace)};
            deform_conv2d_backward_samples_cuda(dims, tensors, device, to_pointer(stream));
        },
        "Add to grad_x (with a workspace: write it deterministically) and write grad_offset and grad_mask, unless their address is 0. "
        "weight is (K, O, C/groups).");
    bind(
        m, "deform_conv2d_backward_weight_cuda",
        [](intptr_t grad_y, intptr_t x, intptr_t offset, intptr_t mask, intptr_t grad_weight, intptr_t workspace,
           const DeformConv2dDims& dims, int device, intptr_t stream) {
            py::gil_scoped_release release;
            const DeformConv2dBackward tensors{
                to_pointer(grad_y), to_pointer(x), to_pointer(offset),      to_pointer(mask), nullptr,           nullptr,
                nullptr,         nullptr,    to_pointer(grad_weight), nullptr,       to_pointer(workspace)};
            deform_conv2d_backward_weight_cuda(dims, tensors, device, to_pointer(stream));
        },
        "Compute grad_weight. workspace has deform_conv2d_weight_workspace(dims) bytes.");
    bind(m, "deform_conv2d_ordered_workspace", &deform_conv2d_ordered_workspace,
         "Return the size in bytes of the zeroed workspace for a deterministic grad_x.");
    bind(m, "deform_conv2d_weight_workspace", &deform_conv2d_weight_workspace,
         "Return the size in bytes of the workspace for grad_weight.");
#endif
}

}  // namespace fastds
