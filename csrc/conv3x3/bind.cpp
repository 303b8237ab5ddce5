// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "conv3x3/bind.h"
#include "core/parallel.h"

namespace py = pybind11;

namespace fastds {
namespace {

// Weights of this size are worth a comparison by all threads.
constexpr int64_t kSharedBytes = 256 << 10;

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
    m.def(
        "conv3x3_packed_size",
        [](int64_t O, int64_t C, bool adjoint) {
            const Conv3x3Weight w{nullptr, f32, O, C, 0, 0, 0, 0};
            return FASTDS_DISPATCH(conv3x3_packed_size, w, adjoint);
        },
        arg("O"), arg("C"), arg("adjoint"));
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
        [](intptr_t a, intptr_t b, int64_t bytes, int threads) {
            const char *one = static_cast<const char*>(pointer(a)), *other = static_cast<const char*>(pointer(b));
            if (bytes < kSharedBytes) return std::memcmp(one, other, bytes) == 0;
            py::gil_scoped_release release;
            int different = 0;
            once::parallel_for(bytes, threads, [&](int64_t begin, int64_t end) {
                if (std::memcmp(one + begin, other + begin, end - begin) != 0) __atomic_store_n(&different, 1, __ATOMIC_RELAXED);
            });
            return different == 0;
        },
        "Whether two weights have the same bytes");
}

}  // namespace fastds
