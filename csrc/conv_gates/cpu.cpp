// SPDX-License-Identifier: Apache-2.0
// The engine hands over the pre-activations of a channel in registers; the formulas are those of csrc/gates.
#include "conv_gates/params.h"

#include "conv3x3/gates.h"
#include "gates/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class T, class Formula, int First, int Gates>
struct FormulaOutput {
    static constexpr int gates = Gates, others = Formula::inputs - Gates;
    const ConvGates& cell;
    int64_t channels;

    template <class At>
    FASTDS_HD void operator()(const At& at, const V (&values)[gates]) const {
        const GateOptions<float> options{static_cast<float>(cell.option), static_cast<float>(cell.slope)};
        V in[Formula::inputs], out[Formula::outputs];
#pragma GCC unroll 8
        for (int k = 0; k < Formula::inputs; k++) {
            if (k >= First && k < First + gates) {
                in[k] = values[k - First];
            } else {
                const ConvGatesOperand& from = cell.operands[k < First ? k : k - gates];
                in[k] = from.wide ? at.template load<float>(from.view) : at.template load<T>(from.view);
            }
        }
        Formula::template apply<float>(in, out, options);
#pragma GCC unroll 8
        for (int k = 0; k < Formula::outputs; k++) {
            const ConvGatesOperand& to = cell.operands[others + k];
            if (to.wide)
                at.template store<float>(to.view, out[k]);
            else
                at.template store<T>(to.view, out[k]);
        }
        if (cell.pre.data == nullptr) return;
        for (int g = 0; g < gates; g++) {
            Conv3x3View part = cell.pre;
            part.data = static_cast<T*>(part.data) + g * channels;
            at.template store<T>(part, values[g]);
        }
    }
};

template <class T>
void run(const ConvGates& cell, const Conv3x3Plan& plan, float* workspace) {
    switch (cell.formula) {
#define FASTDS_CASE(name, formula, first, gates)                                                                       \
    case GateFormula::name:                                                                                            \
        return conv3x3_run_gates<T>(cell.call, plan, workspace,                                                        \
                                    FormulaOutput<T, formula, first, gates>{cell, cell.call.sinks.view[0].channels});
        FASTDS_CONV_GATES(FASTDS_CASE)
#undef FASTDS_CASE
        default: return;  // refused by the binding
    }
}

}  // namespace

void conv_gates(const ConvGates& cell, const Conv3x3Plan& plan, float* workspace) {
    switch (cell.call.sources.dtype) {
        case f32: return run<float>(cell, plan, workspace);
        case f16: return run<Half>(cell, plan, workspace);
        case bf16: return run<BFloat16>(cell, plan, workspace);
        case f64: return;  // refused by the binding
    }
}

}  // namespace FASTDS_ISA
}  // namespace fastds
