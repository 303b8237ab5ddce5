// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <pybind11/pybind11.h>

#include "core/arguments.h"
#include "deform_conv2d/backward_split.h"
#include "deform_conv2d/params.h"

namespace fastds {

namespace py = pybind11;

// Bytes of scratch that the backward needs; a function of the shape alone, as is the split of its sums.
inline int64_t deform_conv2d_workspace(const DeformConv2dDims& dims) {
    const int64_t accumulator_bytes = dims.dtype == f64 ? 8 : 4;
    return FASTDS_ISA::BackwardWorkspace(dims, FASTDS_ISA::BackwardSplit(dims), accumulator_bytes).bytes;
}

namespace deform_conv2d_bind {

inline void check(const DeformConv2dDims& d) {
    to_dtype(d.dtype);
    FASTDS_CHECK(d.offset_dtype == d.dtype || d.offset_dtype == f32, "deform_conv2d: offset_dtype must be dtype or float32");
    FASTDS_CHECK(d.C > 0 && d.O > 0 && d.H > 0 && d.W > 0 && d.kh > 0 && d.kw > 0 && d.B >= 0 && d.Ho >= 0 && d.Wo >= 0,
                 "deform_conv2d: a size is not positive");
    FASTDS_CHECK(d.groups > 0 && d.C % d.groups == 0 && d.O % d.groups == 0, "deform_conv2d: groups must divide C and O");
    FASTDS_CHECK(d.offset_groups > 0 && d.C % d.offset_groups == 0, "deform_conv2d: offset_groups must divide C");
}

inline DeformConv2dDims make_dims(int dtype, int offset_dtype, int64_t B, int64_t C, int64_t H, int64_t W, int64_t O, int64_t Ho,
                           int64_t Wo, int64_t kh, int64_t kw, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                           int64_t pad_w, int64_t dil_h, int64_t dil_w, int64_t groups, int64_t offset_groups, int64_t x_b,
                           int64_t x_h, int64_t x_w, int64_t offset_b, int64_t offset_h, int64_t offset_w, int64_t mask_b,
                           int64_t mask_h, int64_t mask_w) {
    const DeformConv2dDims dims{dtype, offset_dtype, B,     C,        H,        W,        O,      Ho,     Wo,    kh,
                                kw,    stride_h,     stride_w, pad_h, pad_w,    dil_h,    dil_w,  groups, offset_groups, x_b,
                                x_h,   x_w,          offset_b, offset_h, offset_w, mask_b, mask_h, mask_w};
    check(dims);
    return dims;
}

}  // namespace deform_conv2d_bind

inline void register_deform_conv2d(py::module_& m) {
    using namespace deform_conv2d_bind;
    using py::arg;
    py::class_<DeformConv2dDims>(m, "DeformConv2dDims", "Sizes and element strides of one deform_conv2d call")
        .def(py::init(&make_dims), py::kw_only(), arg("dtype"), arg("offset_dtype"), arg("B"), arg("C"), arg("H"), arg("W"),
             arg("O"), arg("Ho"), arg("Wo"), arg("kh"), arg("kw"), arg("stride_h"), arg("stride_w"), arg("pad_h"),
             arg("pad_w"), arg("dil_h"), arg("dil_w"), arg("groups"), arg("offset_groups"), arg("x_b"), arg("x_h"),
             arg("x_w"), arg("offset_b"), arg("offset_h"), arg("offset_w"), arg("mask_b"), arg("mask_h"), arg("mask_w"));
    m.def(
        "deform_conv2d_forward",
        [](intptr_t x, intptr_t offset, intptr_t mask, intptr_t weight, intptr_t bias, intptr_t y,
           const DeformConv2dDims& dims, int threads) {
            py::gil_scoped_release release;
            const DeformConv2dForward tensors{pointer(x),      pointer(offset), pointer(mask),
                                              pointer(weight), pointer(bias),   pointer(y)};
            FASTDS_DISPATCH_TYPED(dims.dtype == f64, deform_conv2d_forward, dims, tensors, threads);
        },
        "y from x; mask and bias may be 0");
    m.def(
        "deform_conv2d_backward",
        [](intptr_t grad_y, intptr_t x, intptr_t offset, intptr_t mask, intptr_t weight, intptr_t grad_x,
           intptr_t grad_offset, intptr_t grad_mask, intptr_t grad_weight, intptr_t grad_bias, intptr_t workspace,
           const DeformConv2dDims& dims, int threads) {
            py::gil_scoped_release release;
            const DeformConv2dBackward tensors{pointer(grad_y),      pointer(x),         pointer(offset),
                                               pointer(mask),        pointer(weight),    pointer(grad_x),
                                               pointer(grad_offset), pointer(grad_mask), pointer(grad_weight),
                                               pointer(grad_bias),   pointer(workspace)};
            FASTDS_DISPATCH_TYPED(dims.dtype == f64, deform_conv2d_backward, dims, tensors, threads);
        },
        "The gradients whose address is not 0; workspace holds deform_conv2d_workspace(dims) bytes");
    m.def(
        "deform_conv2d_workspace", [](const DeformConv2dDims& dims, int) { return deform_conv2d_workspace(dims); },
        arg("dims"), arg("threads") = 1, "Bytes of scratch of the backward; the same for any number of threads");
#if FASTDS_BUILD_CUDA
    m.def(
        "deform_conv2d_forward_cuda",
        [](intptr_t x, intptr_t offset, intptr_t mask, intptr_t weight, intptr_t bias, intptr_t y,
           const DeformConv2dDims& dims, int device, intptr_t stream) {
            py::gil_scoped_release release;
            const DeformConv2dForward tensors{pointer(x),      pointer(offset), pointer(mask),
                                              pointer(weight), pointer(bias),   pointer(y)};
            deform_conv2d_forward_cuda(dims, tensors, device, pointer(stream));
        },
        "y from x; weight (K, C/groups, O); mask and bias may be 0");
    m.def(
        "deform_conv2d_backward_samples_cuda",
        [](intptr_t grad_y, intptr_t x, intptr_t offset, intptr_t mask, intptr_t weight, intptr_t grad_x,
           intptr_t grad_offset, intptr_t grad_mask, intptr_t workspace, const DeformConv2dDims& dims, int device,
           intptr_t stream) {
            py::gil_scoped_release release;
            const DeformConv2dBackward tensors{
                pointer(grad_y),      pointer(x),         pointer(offset), pointer(mask), pointer(weight),   pointer(grad_x),
                pointer(grad_offset), pointer(grad_mask), nullptr,         nullptr,       pointer(workspace)};
            deform_conv2d_backward_samples_cuda(dims, tensors, device, pointer(stream));
        },
        "Adds to grad_x, or with a workspace writes it in an order-free way, and writes grad_offset and grad_mask; 0: not wanted. "
        "weight (K, O, C/groups)");
    m.def(
        "deform_conv2d_backward_weight_cuda",
        [](intptr_t grad_y, intptr_t x, intptr_t offset, intptr_t mask, intptr_t grad_weight, intptr_t workspace,
           const DeformConv2dDims& dims, int device, intptr_t stream) {
            py::gil_scoped_release release;
            const DeformConv2dBackward tensors{
                pointer(grad_y), pointer(x), pointer(offset),      pointer(mask), nullptr,           nullptr,
                nullptr,         nullptr,    pointer(grad_weight), nullptr,       pointer(workspace)};
            deform_conv2d_backward_weight_cuda(dims, tensors, device, pointer(stream));
        },
        "grad_weight; workspace holds deform_conv2d_weight_workspace(dims) bytes");
    m.def("deform_conv2d_ordered_workspace", &deform_conv2d_ordered_workspace, arg("dims"), "Bytes of zeros for grad_x");
    m.def("deform_conv2d_weight_workspace", &deform_conv2d_weight_workspace, arg("dims"), "Bytes of scratch for grad_weight");
#endif
}

}  // namespace fastds
