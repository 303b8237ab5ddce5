// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "conv3x3/bind.h"
#include "conv_rnn/params.h"
#include "gates/math.h"

namespace fastds {

namespace conv_rnn_bind {

// operands: number of inputs and outputs of a formula. gates: number of the inputs that the convolution computes.
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
    FASTDS_CHECK(false, "conv_gates: unknown formula " + std::to_string(formula));
    return {};
}

using Maps = std::vector<TensorArgs>;

// `pre` is empty, or the tensor that stores the pre-activations.
inline ConvGates to_cell(int formula, double option, double slope, const GeometryArgs& geometry, const Maps& sources,
                         const Maps& residual, const Maps& operands, const Maps& pre) {
    const Shape shape = shape_of(formula);
    ConvGates cell{};
    Conv3x3Call& call = cell.call;
    cell.formula = static_cast<GateFormula>(formula);
    cell.option = option;
    cell.slope = slope;
    FASTDS_CHECK(static_cast<int>(operands.size()) == shape.operands - shape.gates, "conv_gates: wrong number of operands");
    call.geometry = to_geometry(geometry);
    call.sources = to_views(sources, 1, 0);
    const int64_t channels = std::get<2>(operands.back()), outputs = shape.gates * channels;
    for (size_t k = 0; k < operands.size(); k++) {
        const int dtype = std::get<1>(operands[k]);
        FASTDS_CHECK(std::get<2>(operands[k]) == channels && (dtype == call.sources.dtype || dtype == f32),
                     "conv_gates: an operand has the wrong channels or dtype");
        cell.operands[k] = {to_view(operands[k]), dtype != call.sources.dtype};
    }
    const TensorArgs sink = pre.empty() ? TensorArgs{0, call.sources.dtype, outputs, 0, 0, 0, 1} : pre[0];
    FASTDS_CHECK(std::get<1>(sink) == call.sources.dtype && std::get<2>(sink) == outputs,
                 "conv_gates: pre has the wrong channels or dtype");
    call.sinks = to_views({sink}, 1, 0);
    set_residual(call, residual);
    FASTDS_CHECK(FASTDS_DISPATCH_VECTOR(conv3x3_one_pass, call.sources.channels(), outputs), "conv_gates: too many channels");
    call.shuffle = 1;
    return cell;
}

}  // namespace conv_rnn_bind

inline void register_conv_rnn(py::module_& m) {
    using namespace conv_rnn_bind;
    bind(
        m, "conv_gates_fits", [](int64_t inputs, int64_t outputs) { return FASTDS_DISPATCH_VECTOR(conv3x3_one_pass, inputs,
                                                                                                  outputs); },
        "Return whether conv_gates supports a convolution with these numbers of channels.");
    bind(
        m, "conv_gates",
        [](int formula, double option, double slope, const GeometryArgs& geometry, const Maps& sources, const Maps& residual,
           const Maps& operands, const Maps& pre, intptr_t packed, intptr_t bias, int bias_dtype, bool amx, int threads,
           intptr_t workspace, int64_t bytes) {
            ConvGates cell = to_cell(formula, option, slope, geometry, sources, residual, operands, pre);
            cell.call.packed = static_cast<const float*>(to_pointer(packed));
            cell.call.bias = to_pointer(bias);
            cell.call.bias_dtype = to_dtype(bias_dtype);
            cell.call.amx = check_amx(amx, cell.call.sources);
            const Conv3x3Plan plan = FASTDS_DISPATCH_VECTOR(conv3x3_plan, cell.call, true, threads);
            if (plan.bytes > bytes) return plan.bytes;
            py::gil_scoped_release release;
            FASTDS_DISPATCH_VECTOR(conv_gates, cell, plan, static_cast<float*>(to_pointer(workspace)));
            return plan.bytes;
        },
        "Compute a 3x3 convolution followed by gates. Workspace as for conv3x3_run.");
}

}  // namespace fastds
