// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <tuple>
#include <vector>

#include "core/arguments.h"
#include "gates/math.h"

namespace fastds {

namespace gates_bind {

// (address, distance between rows in elements, dtype) of each operand.
using Operands = std::vector<std::tuple<intptr_t, int64_t, int>>;

inline GatesParams make_params(int formula, int64_t rows, int64_t run, const Operands& operands, double option, double slope) {
    FASTDS_CHECK(formula >= 0 && formula < static_cast<int>(GateFormula::count),
                 "gates: unknown formula " + std::to_string(formula));
    size_t expected = 0;
    FASTDS_ISA::dispatch_gate_formula(static_cast<GateFormula>(formula),
                                  [&](auto f) { expected = decltype(f)::inputs + decltype(f)::outputs; });
    FASTDS_CHECK(operands.size() == expected, "gates: expected " + std::to_string(expected) + " operands, got " +
                                                  std::to_string(operands.size()));
    FASTDS_CHECK(rows >= 0 && run >= 0, "gates: sizes must not be negative");
    GatesParams params{static_cast<GateFormula>(formula), std::get<2>(operands[0]) == f64, rows, run, option, slope, {}};
    for (size_t k = 0; k < operands.size(); k++) {
        const auto [address, row, dtype] = operands[k];
        FASTDS_CHECK((to_dtype(dtype) == f64) == params.is_double, "gates: either all operands must be float64 or none");
        params.operands[k] = {to_pointer(address), row, dtype};
    }
    return params;
}

}  // namespace gates_bind

inline void register_gates(py::module_& m) {
    using namespace gates_bind;
    bind(
        m, "gates_cpu",
        [](int formula, int64_t rows, int64_t run, const Operands& operands, double option, double slope, int threads) {
            const GatesParams params = make_params(formula, rows, run, operands, option, slope);
            py::gil_scoped_release release;
            FASTDS_DISPATCH_TYPED(params.is_double, gates_cpu, params, threads);
        },
        "Apply the formula with this number in csrc/gates/params.h.");
#if FASTDS_BUILD_CUDA
    bind(m, "gates_cuda", [](int formula, int64_t rows, int64_t run, const Operands& operands, double option, double slope,
                           int device, intptr_t stream) {
        const GatesParams params = make_params(formula, rows, run, operands, option, slope);
        py::gil_scoped_release release;
        gates_cuda(params, device, to_pointer(stream));
    });
#endif
    py::dict formulas;
#define FASTDS_GATE_NAME(name, ...) formulas[#name] = static_cast<int>(GateFormula::name);
    FASTDS_GATE_FORMULAS(FASTDS_GATE_NAME)
#undef FASTDS_GATE_NAME
    m.attr("GATE_FORMULAS") = formulas;
}

}  // namespace fastds
