// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "conv3x3/params.h"
#include "core/bind.h"

namespace py = pybind11;

namespace fastds {
namespace {

// address, dtype, channels, strides of batch, row and pixel in elements
using TensorArgs = std::tuple<intptr_t, int, int64_t, int64_t, int64_t, int64_t>;
// B, H, W, Ho, Wo, pad_h, pad_w, mode_h, mode_w
using GeometryArgs = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int, int, int, int>;

int64_t item_size(int dtype) { return dtype == f64 ? 8 : dtype == f32 ? 4 : 2; }

Conv3x3View to_view(const TensorArgs& t) {
    const auto [address, dtype, channels, b, h, w] = t;
    return {pointer(address), nullptr, channels, b, h, w};
}

// The tensors side by side; a shuffled tensor gives one view per sub-pixel. sign: see Conv3x3View, 0: none.
Conv3x3Views to_views(const std::vector<TensorArgs>& tensors, int64_t shuffle, intptr_t sign) {
    FASTDS_CHECK(!tensors.empty() && shuffle >= 1 && shuffle * shuffle * static_cast<int64_t>(tensors.size()) <= kConv3x3Views,
                 "conv3x3: expected 1 to " + std::to_string(kConv3x3Views) + " views");
    Conv3x3Views views{};
    views.dtype = to_dtype(std::get<1>(tensors[0]));
    FASTDS_CHECK(views.dtype != f64, "conv3x3: no kernel for float64");
    for (const TensorArgs& tensor : tensors) {
        FASTDS_CHECK(std::get<1>(tensor) == views.dtype && std::get<2>(tensor) > 0, "conv3x3: tensors of different dtype or empty");
        const Conv3x3View whole = to_view(tensor);
        for (int64_t part = 0; part < shuffle * shuffle; part++) {
            const int64_t shift = (part / shuffle * whole.h + part % shuffle * whole.w) * item_size(views.dtype);
            views.view[views.count++] = {static_cast<char*>(whole.data) + shift,
                                         sign ? static_cast<char*>(pointer(sign)) + shift : nullptr,
                                         whole.channels, whole.b, whole.h * shuffle, whole.w * shuffle};
        }
    }
    return views;
}

Conv3x3Geometry to_geometry(const GeometryArgs& g) {
    const auto [B, H, W, Ho, Wo, pad_h, pad_w, mode_h, mode_w] = g;
    FASTDS_CHECK(B >= 0 && H > 0 && W > 0 && Ho >= 0 && Wo >= 0, "conv3x3: a size is not positive");
    return {B, H, W, Ho, Wo, pad_h, pad_w, mode_h, mode_w};
}

struct PlannedCall {
    Conv3x3Call call;
    Conv3x3Plan plan;
};

PlannedCall make_call(const GeometryArgs& geometry, const std::vector<TensorArgs>& sources, int64_t source_shuffle, intptr_t sign,
                      const std::vector<TensorArgs>& sinks, int64_t sink_shuffle, intptr_t packed, intptr_t bias, int bias_dtype,
                      const std::optional<TensorArgs>& residual, int act, float negative_slope, int threads) {
    PlannedCall planned{};
    Conv3x3Call& call = planned.call;
    call.geometry = to_geometry(geometry);
    call.sources = to_views(sources, source_shuffle, sign);
    call.sinks = to_views(sinks, sink_shuffle, 0);
    call.packed = static_cast<const float*>(pointer(packed));
    call.bias = pointer(bias);
    call.bias_dtype = to_dtype(bias_dtype);
    if (residual) {
        call.residual = to_view(*residual);
        FASTDS_CHECK(std::get<1>(*residual) == call.sinks.dtype && call.residual.channels == call.sinks.channels(),
                     "conv3x3: residual does not fit the output");
    }
    call.shuffle = sink_shuffle;
    call.act = act;
    call.negative_slope = negative_slope;
    planned.plan = FASTDS_DISPATCH(conv3x3_plan, call, threads);
    return planned;
}

Conv3x3GradWeight make_grad_weight(const GeometryArgs& geometry, const std::vector<TensorArgs>& sources,
                                   const TensorArgs& gradient, int64_t shuffle, intptr_t sign, float negative_slope, int dtype,
                                   intptr_t grad_weight, intptr_t grad_bias, int threads) {
    Conv3x3GradWeight call{};
    call.geometry = to_geometry(geometry);
    call.sources = to_views(sources, 1, 0);
    call.gradients = to_views({gradient}, shuffle, sign);
    call.dtype = to_dtype(dtype);
    FASTDS_CHECK(call.dtype != f64, "conv3x3: no kernel for float64");
    call.grad_weight = pointer(grad_weight);
    call.grad_bias = pointer(grad_bias);
    call.shuffle = shuffle;
    call.negative_slope = negative_slope;
    call.threads = threads;
    return call;
}

}  // namespace

void register_conv3x3(py::module_& m) {
    using py::arg;
    py::class_<PlannedCall>(m, "Conv3x3Call", "One run of the engine, forward or grad_x: addresses, sizes and plan")
        .def(py::init(&make_call), py::kw_only(), arg("geometry"), arg("sources"), arg("source_shuffle") = 1, arg("sign") = 0,
             arg("sinks"), arg("sink_shuffle") = 1, arg("packed"), arg("bias") = 0, arg("bias_dtype") = 0,
             arg("residual") = std::nullopt, arg("act") = 0, arg("negative_slope") = 0.f, arg("threads"))
        .def_property_readonly("bytes", [](const PlannedCall& self) { return self.plan.bytes; })
        .def(
            "run",
            [](const PlannedCall& self, intptr_t workspace) {
                py::gil_scoped_release release;
                FASTDS_DISPATCH(conv3x3_run, self.call, self.plan, static_cast<float*>(pointer(workspace)));
            },
            "workspace: `bytes` bytes, 64-byte aligned");
    py::class_<Conv3x3GradWeight>(m, "Conv3x3GradWeight", "One run of the weight gradient, with the bias gradient beside it")
        .def(py::init(&make_grad_weight), py::kw_only(), arg("geometry"), arg("sources"), arg("gradient"), arg("shuffle") = 1,
             arg("sign") = 0, arg("negative_slope") = 0.f, arg("dtype"), arg("grad_weight"), arg("grad_bias") = 0, arg("threads"))
        .def_property_readonly(
            "bytes", [](const Conv3x3GradWeight& self) { return FASTDS_DISPATCH(conv3x3_grad_weight_bytes, self); })
        .def(
            "run",
            [](const Conv3x3GradWeight& self, intptr_t workspace) {
                py::gil_scoped_release release;
                FASTDS_DISPATCH(conv3x3_grad_weight, self, static_cast<float*>(pointer(workspace)));
            },
            "workspace: `bytes` bytes, 64-byte aligned; the numbers do not depend on threads");
    m.def("conv3x3_packed_size",
          [](int64_t inputs, int64_t outputs) { return FASTDS_DISPATCH(conv3x3_packed_size, inputs, outputs); });
    m.def(
        "conv3x3_pack_weight",
        [](intptr_t weight, int dtype, int64_t O, int64_t C, int64_t stride_o, int64_t stride_c, int64_t stride_h, int64_t stride_w,
           bool adjoint, int64_t shuffle, intptr_t packed, intptr_t copy, int threads) {
            const Conv3x3Weight w{pointer(copy), to_dtype(dtype), O, C, stride_o, stride_c, stride_h, stride_w};
            FASTDS_CHECK(dtype != f64, "conv3x3: no kernel for float64");
            py::gil_scoped_release release;
            std::memcpy(pointer(copy), pointer(weight), O * C * 9 * item_size(dtype));
            FASTDS_DISPATCH(conv3x3_pack_weight, w, adjoint, shuffle, static_cast<float*>(pointer(packed)), threads);
        },
        "Transforms the filters of a dense weight for forward or (adjoint) grad_x, from a copy that it makes first; packed: "
        "conv3x3_packed_size floats, copy: the bytes of the weight");
    m.def(
        "conv3x3_same",
        [](intptr_t a, intptr_t b, int64_t bytes) { return std::memcmp(pointer(a), pointer(b), bytes) == 0; },
        "Whether two weights have the same bytes");
}

}  // namespace fastds
