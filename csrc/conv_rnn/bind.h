// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "conv3x3/bind.h"
#include "conv_rnn/params.h"
#include "conv_rnn/window_params.h"
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

#if FASTDS_BUILD_CUDA

// others: the inputs of the formula that the convolution does not compute. results: its outputs, dense and channels_last. Strides
// of `results` are not read. pre: address of the output for the pre-activations, or 0.
inline ConvGatesWindow to_window_cell(int formula, double option, double slope, const GeometryArgs& geometry, const Maps& sources,
                                      const conv3x3_bind::TapWeightArgs& weight, intptr_t bias, int bias_dtype,
                                      const Maps& residual, const Maps& others, const Maps& results, intptr_t pre) {
    ConvGatesWindow call{};
    conv3x3_bind::set_window_convolution(call, geometry, sources, weight, bias, bias_dtype, residual);
    int inputs = 0, outputs = 0, gates = 0;
    switch (static_cast<GateFormula>(formula)) {
#define FASTDS_CASE(name, type, first, count) \
    case GateFormula::name: inputs = FASTDS_ISA::type::inputs, outputs = FASTDS_ISA::type::outputs, gates = count; break;
        FASTDS_WINDOW_GATES(FASTDS_CASE)
#undef FASTDS_CASE
        default: FASTDS_CHECK(false, "conv_gates: the kernel with a window does not have formula " + std::to_string(formula));
    }
    FASTDS_CHECK(static_cast<int>(others.size()) == inputs - gates && static_cast<int>(results.size()) == outputs &&
                     call.O % gates == 0, "conv_gates: wrong number of operands or outputs");
    call.formula = static_cast<GateFormula>(formula);
    call.option = static_cast<float>(option), call.slope = static_cast<float>(slope);
    call.C = call.O / gates;
    const auto is_float32 = [&](const TensorArgs& t) {
        FASTDS_CHECK(std::get<2>(t) == call.C && (std::get<1>(t) == call.dtype || std::get<1>(t) == f32),
                     "conv_gates: an operand has the wrong channels or dtype");
        return std::get<1>(t) != call.dtype;
    };
    for (size_t k = 0; k < others.size(); k++)
        call.other[k] = conv3x3_bind::to_window_map(others[k]), call.is_float32[k] = is_float32(others[k]);
    for (size_t k = 0; k < results.size(); k++)
        call.result[k] = {to_pointer(std::get<0>(results[k])), is_float32(results[k])};
    call.pre = to_pointer(pre);
    return call;
}

#endif

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
#if FASTDS_BUILD_CUDA
    bind(
        m, "conv_gates_window_cuda",
        [](int formula, double option, double slope, const GeometryArgs& geometry, const Maps& sources,
           const conv3x3_bind::TapWeightArgs& weight, intptr_t bias, int bias_dtype, const Maps& residual, const Maps& others,
           const Maps& results, intptr_t pre, int device, intptr_t stream) {
            const ConvGatesWindow call = to_window_cell(formula, option, slope, geometry, sources, weight, bias, bias_dtype,
                                                        residual, others, results, pre);
            py::gil_scoped_release release;
            conv_gates_window_cuda(call, device, to_pointer(stream));
        },
        "Compute a 3x3 convolution in 16 bits followed by gates on tensor cores. Channels are contiguous and multiples of 8; "
        "results are dense, channels_last.");
    bind(m, "conv_gates_window_fits", &conv_gates_window_fits,
         "Return whether conv_gates_window_cuda has enough shared memory for these numbers of inputs, channels and gates.");
#endif
}

}  // namespace fastds
