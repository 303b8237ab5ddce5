// SPDX-License-Identifier: Apache-2.0
// Recurrent cells as an epilogue of the conv3x3 engine. The engine passes the pre-activations of one or several pixels of a row
// at a time to the formulas of csrc/gates.
#include "conv_rnn/params.h"

#include "core/simd.h"
#include "gates/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kL = kLanes<float>;
using V = Vec<float>;

// run() applies the formula to n pre-activations of each gate, which are the inputs [First, First + Gates) of the formula. It
// reads the other inputs from the operands of the cell and writes the outputs to operands. T is the type of the operands
// without is_float32.
template <class T, class Formula, int First, int Gates>
struct Row {
    static constexpr int others = Formula::inputs - Gates, operands = others + Formula::outputs;

    // If T is float, the mark of an operand has no effect.
    static FASTDS_HD bool is_float32(const ConvGates& cell,
                                     int k) { return sizeof(T) < sizeof(float) && cell.operands[k].is_float32; }
    static FASTDS_HD int64_t size(const ConvGates& cell, int k) { return is_float32(cell, k) ? sizeof(float) : sizeof(T); }

    static void run(const void* context, int64_t b, int64_t y, int64_t x, int64_t n, const float* pre, int64_t plane) {
        const ConvGates& cell = *static_cast<const ConvGates*>(context);
        const GateOptions<float> options{static_cast<float>(cell.option), static_cast<float>(cell.slope)};
        char* data[operands];
        for (int k = 0; k < operands; k++) {
            const Conv3x3View& view = cell.operands[k].view;
            data[k] = static_cast<char*>(view.data) + (b * view.b + y * view.h + x * view.w) * size(cell, k);
        }
        // Values after the last whole vector are computed in copies.
        alignas(64) float last[operands][kL] = {}, last_pre[Gates][kL] = {};  // zeros, for the reason in core/memory.h (ZeroedBuffer)
        char* real[operands] = {};
        int64_t i = 0, end = n / kL * kL;
        while (true) {
            if (i < end) vectors(cell, data, pre, plane, i, end, options);
            i = end;
            if (i >= n) break;
            for (int g = 0; g < Gates; g++) __builtin_memcpy(last_pre[g], pre + g * plane + i, (n - i) * sizeof(float));
            for (int k = 0; k < operands; k++) {
                const int64_t item = size(cell, k);
                real[k] = data[k] + i * item;
                if (k < others) __builtin_memcpy(last[k], real[k], (n - i) * item);
                data[k] = reinterpret_cast<char*>(last[k]) - i * item;
            }
            pre = last_pre[0] - i;
            plane = kL;
            end += kL;
        }
        const int64_t rest = n % kL;
        for (int k = others; rest > 0 && k < operands; k++) __builtin_memcpy(real[k], last[k], rest * size(cell, k));
    }

    // This function calls no other function, so that the constants of the formula stay in registers.
    static __attribute__((noinline)) void vectors(const ConvGates& cell, char* const (&data)[operands], const float* pre,
                                                  int64_t plane, int64_t i, int64_t end, const GateOptions<float>& options) {
        for (; i < end; i += kL) {
            V in[Formula::inputs], out[Formula::outputs];
#pragma GCC unroll 8
            for (int k = 0; k < Formula::inputs; k++) {
                const int other = k < First ? k : k - Gates;
                if (k >= First && k < First + Gates)
                    in[k] = load_vec<kL>(pre + (k - First) * plane + i);
                else if (is_float32(cell, other))
                    in[k] = load_vec<kL>(reinterpret_cast<const float*>(data[other]) + i);
                else
                    in[k] = load_vec<kL>(reinterpret_cast<const T*>(data[other]) + i);
            }
            Formula::template apply<float>(in, out, options);
#pragma GCC unroll 8
            for (int k = 0; k < Formula::outputs; k++) {
                if (is_float32(cell, others + k))
                    store_vec<kL>(reinterpret_cast<float*>(data[others + k]) + i, out[k]);
                else
                    store_vec<kL>(reinterpret_cast<T*>(data[others + k]) + i, out[k]);
            }
        }
    }
};

template <class T>
Conv3x3Cell cell_of(const ConvGates& cell) {
    switch (cell.formula) {
#define FASTDS_CASE(name, formula, first, gates)                           \
    case GateFormula::name: {                                              \
        using R = Row<T, formula, first, gates>;                           \
        const int64_t channels = cell.operands[0].view.channels;           \
        bool dense = true;                                                 \
        for (int k = 0; k < R::operands; k++) dense = dense && cell.operands[k].view.w == channels; \
        return {R::run, &cell, channels, dense};                           \
    }
        FASTDS_CONV_GATES(FASTDS_CASE)
#undef FASTDS_CASE
        default: return {};  // rejected by the binding
    }
}

}  // namespace

void conv_gates(const ConvGates& cell, const Conv3x3Plan& plan, float* workspace) {
    const DType dtype = cell.call.sources.dtype;
    const Conv3x3Cell row = dtype == f16 ? cell_of<Half>(cell) : dtype == bf16 ? cell_of<BFloat16>(cell) : cell_of<float>(cell);
    conv3x3_run_cell(cell.call, plan, row, workspace);
}

}  // namespace FASTDS_ISA
}  // namespace fastds
