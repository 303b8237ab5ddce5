// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "conv3x3/bind.h"
#include "conv_lstm_cell/params.h"

namespace py = pybind11;

namespace fastds {
namespace {

struct PlannedCell {
    ConvLstmCell cell;
    Conv3x3Plan plan;
};

PlannedCell make_cell(const GeometryArgs& geometry, const std::vector<TensorArgs>& sources, intptr_t packed, intptr_t bias,
                      int bias_dtype, const TensorArgs& c, const TensorArgs& new_h, const TensorArgs& new_c,
                      const std::optional<TensorArgs>& pre, int threads) {
    PlannedCell planned{};
    Conv3x3Call& call = planned.cell.call;
    call.geometry = to_geometry(geometry);
    call.sources = to_views(sources, 1, 0);
    call.sinks = to_views({new_h}, 1, 0);
    FASTDS_CHECK(call.sinks.dtype == call.sources.dtype, "conv_lstm_cell: x and h differ in dtype");
    FASTDS_CHECK(std::get<1>(c) == f32 && std::get<1>(new_c) == f32, "conv_lstm_cell: the cell state must be float32");
    call.packed = static_cast<const float*>(pointer(packed));
    call.bias = pointer(bias);
    call.bias_dtype = to_dtype(bias_dtype);
    if (pre) {
        FASTDS_CHECK(std::get<1>(*pre) == call.sinks.dtype && std::get<2>(*pre) == 4 * std::get<2>(new_h),
                     "conv_lstm_cell: pre does not fit the output");
        planned.cell.pre = to_view(*pre);
    }
    call.shuffle = 1;
    call.gates = 4;
    planned.cell.c = to_view(c);
    planned.cell.new_c = to_view(new_c);
    planned.cell.new_h = to_view(new_h);
    planned.plan = FASTDS_DISPATCH(conv3x3_plan, call, threads);
    return planned;
}

}  // namespace

void register_conv_lstm_cell(py::module_& m) {
    using py::arg;
    py::class_<PlannedCell>(m, "ConvLstmCell", "One step of a convolutional LSTM: addresses, sizes and plan")
        .def(py::init(&make_cell), py::kw_only(), arg("geometry"), arg("sources"), arg("packed"), arg("bias") = 0,
             arg("bias_dtype") = 0, arg("c"), arg("new_h"), arg("new_c"), arg("pre") = std::nullopt, arg("threads"))
        .def_property_readonly("bytes", [](const PlannedCell& self) { return self.plan.bytes; })
        .def(
            "run",
            [](const PlannedCell& self, intptr_t workspace) {
                py::gil_scoped_release release;
                FASTDS_DISPATCH(conv_lstm_cell, self.cell, self.plan, static_cast<float*>(pointer(workspace)));
            },
            "workspace: `bytes` bytes, 64-byte aligned");
}

}  // namespace fastds
