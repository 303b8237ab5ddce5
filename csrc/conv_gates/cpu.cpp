// SPDX-License-Identifier: Apache-2.0
// The engine hands over pre-activations tile by tile; the formulas are those of csrc/gates.
#include "conv_gates/params.h"

#include "conv3x3/gates.h"
#include "gates/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class T, class Formula, int First, int Gates>
struct FormulaStage {
    static constexpr int others = Formula::inputs - Gates, operands = others + Formula::outputs;
    const ConvGates& cell;
    int64_t channels;
    bool dense;

    explicit FormulaStage(const ConvGates& cell) : cell(cell), channels(cell.operands[0].view.channels), dense(true) {
        for (int k = 0; k < operands; k++) dense = dense && cell.operands[k].view.w == channels;
    }

    // Of float32 maps no operand is wider than the others.
    FASTDS_HD bool wide(int k) const { return sizeof(T) < sizeof(float) && cell.operands[k].wide; }

    template <class U>
    static FASTDS_HD V load_at(const void* data, int64_t i, int count) {
        const U* p = static_cast<const U*>(data) + i;
        return count == kL ? load_vec<kL>(p) : load_lanes(p, count);
    }
    template <class U>
    static FASTDS_HD void store_at(void* data, int64_t i, V v, int count) {
        U* p = static_cast<U*>(data) + i;
        if (count == kL)
            store_vec<kL>(p, v);
        else
            store_lanes(p, v, count);
    }

    FASTDS_HD void vector(void* const (&data)[operands], const float* pre, int64_t plane, int64_t i, int count) const {
        const GateOptions<float> options{static_cast<float>(cell.option), static_cast<float>(cell.slope)};
        V in[Formula::inputs], out[Formula::outputs];
#pragma GCC unroll 8
        for (int k = 0; k < Formula::inputs; k++) {
            const int other = k < First ? k : k - Gates;
            if (k >= First && k < First + Gates)
                in[k] = load_at<float>(pre + (k - First) * plane, i, count);
            else
                in[k] = wide(other) ? load_at<float>(data[other], i, count) : load_at<T>(data[other], i, count);
        }
        Formula::template apply<float>(in, out, options);
#pragma GCC unroll 8
        for (int k = 0; k < Formula::outputs; k++) {
            if (wide(others + k))
                store_at<float>(data[others + k], i, out[k], count);
            else
                store_at<T>(data[others + k], i, out[k], count);
        }
    }

    FASTDS_HD void operator()(const Tile& tile, int r, int c, int64_t n, const float* pre, int64_t plane) const {
        void* data[operands];
        for (int k = 0; k < operands; k++) {
            const Conv3x3View& view = cell.operands[k].view;
            const int64_t first = tile.b * view.b + (tile.y + r) * view.h + (tile.x + c) * view.w;
            data[k] = static_cast<char*>(view.data) + first * static_cast<int64_t>(wide(k) ? sizeof(float) : sizeof(T));
        }
        int64_t i = 0;
        for (; i + kL <= n; i += kL) vector(data, pre, plane, i, kL);
        if (i < n) vector(data, pre, plane, i, static_cast<int>(n - i));
    }
};

template <class T>
void run(const ConvGates& cell, const Conv3x3Plan& plan, float* workspace) {
    switch (cell.formula) {
#define FASTDS_CASE(name, formula, first, gates) \
    case GateFormula::name:                      \
        return conv3x3_run_gates<T>(cell.call, plan, workspace, FormulaStage<T, formula, first, gates>(cell));
        FASTDS_CONV_GATES(FASTDS_CASE)
#undef FASTDS_CASE
        default: return;  // refused by the binding
    }
}

}  // namespace

bool conv_gates_fits(int64_t inputs, int64_t outputs) { return makes_one_pass(inputs, outputs); }

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
