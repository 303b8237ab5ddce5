// SPDX-License-Identifier: Apache-2.0
// Parallel over blocks of elements that stay in L1. A block of each operand becomes one dense run of the compute type there
// (rows of 24 channels leave no half-empty vectors, and a formula is compiled once for all storage types); operands that are
// dense already are used in place.
#include "core/parallel.h"
#include "core/simd.h"
#include "gates/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kBlock = 384;  // elements of an operand in L1

// The part of all operands that one block covers: rows x columns elements.
struct Piece {
    int64_t row, rows, column, columns;
};

template <class T, class A>
inline void read(A* to, const T* from, int64_t row, const Piece& piece) {
    for (int64_t r = 0; r < piece.rows; r++, from += row, to += piece.columns) {
        int64_t i = 0;
        for (; i + 8 <= piece.columns; i += 8) store_vec<8>(to + i, load_vec<8>(from + i));
        for (; i < piece.columns; i++) to[i] = load(from[i]);
    }
}

template <class T, class A>
inline void write(T* to, const A* from, int64_t row, const Piece& piece) {
    for (int64_t r = 0; r < piece.rows; r++, to += row, from += piece.columns) {
        int64_t i = 0;
        for (; i + 8 <= piece.columns; i += 8) store_vec<8>(to + i, load_vec<8>(from + i));
        for (; i < piece.columns; i++) to[i] = store<T>(from[i]);
    }
}

// Runs f with the address of the piece in its storage type, one that has A as its compute type.
template <class A, class F>
inline void with_storage(const GateOperand& operand, const Piece& piece, const F& f) {
    const int64_t first = piece.row * operand.row + piece.column;
    if constexpr (sizeof(A) == 8) {
        f(static_cast<double*>(operand.data) + first);
    } else {
        switch (operand.dtype) {
            case f32: return f(static_cast<float*>(operand.data) + first);
            case f16: return f(static_cast<Half*>(operand.data) + first);
            case bf16: return f(static_cast<BFloat16*>(operand.data) + first);
        }
    }
}

template <class Formula, class A, int N>
FASTDS_HD void apply_at(A* const* operands, int64_t i, const GateOptions<A>& options) {
    Vec<A, N> values[Formula::inputs], results[Formula::outputs];
#pragma GCC unroll 8
    for (int k = 0; k < Formula::inputs; k++) values[k] = load_vec<N>(operands[k] + i);
    Formula::template apply<A>(values, results, options);
#pragma GCC unroll 8
    for (int k = 0; k < Formula::outputs; k++) store_vec<N>(operands[Formula::inputs + k] + i, results[k]);
}

template <class Formula, class A>
struct Blocks {
    static constexpr int inputs = Formula::inputs, operands = Formula::inputs + Formula::outputs;
    static_assert(operands <= kGateOperands, "more operands than GatesParams holds");

    // Dense operands of the compute type are used where they lie; so is one row of them.
    static bool in_place(const GateOperand& operand, const GatesParams& p, const Piece& piece) {
        const bool same_type = operand.dtype == (sizeof(A) == 8 ? f64 : f32);
        return operand.data && same_type && (piece.rows == 1 || operand.row == p.run);
    }

    static void run(const GatesParams& p, int64_t begin, int64_t end, int64_t rows_each, int64_t pieces_each) {
        alignas(64) A buffers[operands][kBlock];
        const GateOptions<A> options{static_cast<A>(p.option), static_cast<A>(p.slope)};
        for (int k = 0; k < inputs; k++)
            if (!p.operands[k].data) __builtin_memset(buffers[k], 0, sizeof(buffers[k]));
        for (int64_t task = begin; task < end; task++) {
            const int64_t row = task / pieces_each * rows_each, column = task % pieces_each * kBlock;
            const Piece piece{row, p.rows - row < rows_each ? p.rows - row : rows_each, column,
                              p.run - column < kBlock ? p.run - column : kBlock};
            A* dense[operands];
            for (int k = 0; k < operands; k++) {
                const GateOperand& operand = p.operands[k];
                dense[k] = buffers[k];
                if (in_place(operand, p, piece))
                    dense[k] = static_cast<A*>(operand.data) + piece.row * operand.row + piece.column;
                else if (k < inputs && operand.data)
                    with_storage<A>(operand, piece, [&](auto* from) { read(buffers[k], from, operand.row, piece); });
            }
            const int64_t n = piece.rows * piece.columns;
            int64_t i = 0;
            for (; i + kLanes<A> <= n; i += kLanes<A>) apply_at<Formula, A, kLanes<A>>(dense, i, options);
            for (; i < n; i++) apply_at<Formula, A, 1>(dense, i, options);
            for (int k = inputs; k < operands; k++) {
                const GateOperand& operand = p.operands[k];
                if (dense[k] == buffers[k] && operand.data)
                    with_storage<A>(operand, piece, [&](auto* to) { write(to, buffers[k], operand.row, piece); });
            }
        }
    }
};

template <class A>
void run(GatesParams p, int threads) {
    with_gate_formula(p.formula, [&](auto formula) {
        using Formula = decltype(formula);
        bool dense = true;
        for (int k = 0; k < Formula::inputs + Formula::outputs; k++)
            dense = dense && (!p.operands[k].data || p.operands[k].row == p.run);
        if (dense) {
            p.run *= p.rows;
            p.rows = 1;
        }
        if (p.run == 0) return;
        const int64_t rows_each = p.run < kBlock ? kBlock / p.run : 1, pieces_each = (p.run + kBlock - 1) / kBlock;
        parallel_for((p.rows + rows_each - 1) / rows_each * pieces_each, threads, [&](int64_t begin, int64_t end) {
            Blocks<Formula, A>::run(p, begin, end, rows_each, pieces_each);
        });
    });
}

}  // namespace

void gates_cpu(const GatesParams& params, int threads) {
    if (params.wide)
        run<double>(params, threads);
    else
        run<float>(params, threads);
}

}  // namespace FASTDS_ISA
}  // namespace fastds
