// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>

#include "conv3x3/arguments.h"
#include "conv_cells/params.h"
#include "gates/math.h"

namespace fastds {

namespace conv_cells_bind {

struct PlannedCell {
    ConvGates cell;
    Conv3x3Plan plan;
};

// Inputs and outputs of the formula, and how many of the inputs the convolution gives.
struct Shape {
    int operands, gates;
};

inline Shape shape_of(int formula) {
    switch (static_cast<GateFormula>(formula)) {
#define FASTDS_CASE(name, type, first, count) \
    case GateFormula::name: return {FASTDS_ISA::type::inputs + FASTDS_ISA::type::outputs, count};
        FASTDS_CONV_GATES(FASTDS_CASE)
#undef FASTDS_CASE
        default: break;
    }
    FASTDS_CHECK(false, "conv_gates: no such formula: " + std::to_string(formula));
    return {};
}

inline PlannedCell make_cell(const py::kwargs& given) {
    using Maps = std::vector<TensorArgs>;
    Keywords keywords(given);
    const int formula = keywords.take<int>("formula"), threads = keywords.take<int>("threads");
    const Maps operands = keywords.take<Maps>("operands");
    const auto pre = keywords.take<std::optional<TensorArgs>>("pre", std::nullopt);
    const Shape shape = shape_of(formula);
    PlannedCell planned{};
    ConvGates& cell = planned.cell;
    Conv3x3Call& call = cell.call;
    cell.formula = static_cast<GateFormula>(formula);
    cell.option = keywords.take<double>("option");
    cell.slope = keywords.take<double>("slope");
    FASTDS_CHECK(static_cast<int>(operands.size()) == shape.operands - shape.gates, "conv_gates: wrong number of operands");
    call.geometry = to_geometry(keywords.take<GeometryArgs>("geometry"));
    call.sources = to_views(keywords.take<Maps>("sources"), 1, 0);
    const int64_t channels = std::get<2>(operands.back());
    for (size_t k = 0; k < operands.size(); k++) {
        const int dtype = std::get<1>(operands[k]);
        FASTDS_CHECK(std::get<2>(operands[k]) == channels && (dtype == call.sources.dtype || dtype == f32),
                     "conv_gates: an operand does not fit");
        cell.operands[k] = {to_view(operands[k]), dtype != call.sources.dtype};
    }
    const int64_t outputs = shape.gates * channels;
    const auto fits = [&](const TensorArgs& t) {
        return std::get<1>(t) == call.sources.dtype && std::get<2>(t) == outputs;
    };
    FASTDS_CHECK(!pre || fits(*pre), "conv_gates: pre does not fit the output");
    call.sinks = to_views({pre.value_or(TensorArgs{0, call.sources.dtype, outputs, 0, 0, 0})}, 1, 0);
    set_residual(call, keywords.take<Maps>("residual", {}));
    FASTDS_CHECK(FASTDS_DISPATCH_VECTOR(conv3x3_one_pass, call.sources.channels(), outputs), "conv_gates: too many channels");
    call.packed = static_cast<const float*>(pointer(keywords.take<intptr_t>("packed")));
    call.bias = pointer(keywords.take<intptr_t>("bias", 0));
    call.bias_dtype = to_dtype(keywords.take<int>("bias_dtype", 0));
    call.shuffle = 1;
    call.amx = to_amx(keywords.take<bool>("amx"), call.sources);
    keywords.end();
    planned.plan = FASTDS_DISPATCH_VECTOR(conv3x3_plan, call, true, threads);
    return planned;
}

}  // namespace conv_cells_bind

inline void register_conv_cells(py::module_& m) {
    using namespace conv_cells_bind;
    bind(
        m, "conv_gates_fits", [](int64_t inputs, int64_t outputs) { return FASTDS_DISPATCH_VECTOR(conv3x3_one_pass, inputs, outputs); },
        "Whether ConvGates takes a convolution of that many channels");
    py::class_<PlannedCell>(m, "ConvGates", "A 3x3 convolution and the gates behind it: addresses, sizes and plan")
        .def(py::init(&make_cell))
        .def_property_readonly("bytes", [](const PlannedCell& self) { return self.plan.bytes; })
        .def(
            "run",
            [](const PlannedCell& self, intptr_t workspace) {
                py::gil_scoped_release release;
                FASTDS_DISPATCH_VECTOR(conv_gates, self.cell, self.plan, static_cast<float*>(pointer(workspace)));
            },
            "workspace: `bytes` bytes, 64-byte aligned");
}

}  // namespace fastds
