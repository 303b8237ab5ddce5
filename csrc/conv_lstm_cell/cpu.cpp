// SPDX-License-Identifier: Apache-2.0
// The engine hands over the four pre-activations of a channel in registers; the formula is that of lstm_gates.
#include "conv3x3/gates.h"
#include "conv_lstm_cell/params.h"
#include "gates/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class T>
struct CellOutput {
    static constexpr int gates = 4;
    Conv3x3View c, new_c, new_h, pre;
    int64_t channels;

    template <class At>
    FASTDS_HD void operator()(const At& at, const V (&values)[gates]) const {
        const V in[5] = {values[0], values[1], values[2], values[3], at.template load<float>(c)};
        V out[2];
        LstmGates::apply<float>(in, out, GateOptions<float>{});
        at.template store<T>(new_h, out[0]);
        at.template store<float>(new_c, out[1]);
        if (pre.data == nullptr) return;
        for (int g = 0; g < gates; g++) {
            Conv3x3View part = pre;
            part.data = static_cast<T*>(part.data) + g * channels;
            at.template store<T>(part, values[g]);
        }
    }
};

template <class T>
void run(const ConvLstmCell& cell, const Conv3x3Plan& plan, float* workspace) {
    const CellOutput<T> output{cell.c, cell.new_c, cell.new_h, cell.pre, cell.new_h.channels};
    conv3x3_run_gates<T>(cell.call, plan, workspace, output);
}

}  // namespace

void conv_lstm_cell(const ConvLstmCell& cell, const Conv3x3Plan& plan, float* workspace) {
    switch (cell.call.sources.dtype) {
        case f32: return run<float>(cell, plan, workspace);
        case f16: return run<Half>(cell, plan, workspace);
        case bf16: return run<BFloat16>(cell, plan, workspace);
        case f64: return;  // refused by the binding
    }
}

}  // namespace FASTDS_ISA
}  // namespace fastds
