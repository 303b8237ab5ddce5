// SPDX-License-Identifier: Apache-2.0
// Parallel over blocks of elements that stay in L1. A block of each operand becomes one dense run of the compute type there
// (rows of 24 channels leave no half-empty vectors, and a formula is compiled once for all storage types); operands that are
// dense already are used in place, and so are rows of whole half vectors, two rows at a time.
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

// Two runs of N / 2 elements as one vector. Through memory, as GCC does it by itself, it would wait for the stores.
template <class A, int N>
FASTDS_HD Vec<A, N> joined(const A* first, const A* second) {
    const Vec<A, N / 2> parts[2] = {load_vec<N / 2>(first), load_vec<N / 2>(second)};
#if defined(__AVX512F__)
    if constexpr (sizeof(Vec<A, N>) == 64)
        return (Vec<A, N>)_mm512_insertf64x4(_mm512_castpd256_pd512((__m256d)parts[0]), (__m256d)parts[1], 1);
#endif
#if defined(__AVX__)
    if constexpr (sizeof(Vec<A, N>) == 32)
        return (Vec<A, N>)_mm256_insertf128_pd(_mm256_castpd128_pd256((__m128d)parts[0]), (__m128d)parts[1], 1);
#endif
    Vec<A, N> both;
    __builtin_memcpy(&both, parts, sizeof(both));
    return both;
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

// The same where the first half of a vector ends a row and the second begins the next one.
template <class Formula, class A, int N>
FASTDS_HD void apply_across(A* const* ends, A* const* begins, int64_t i, const GateOptions<A>& options) {
    constexpr int half = N / 2;
    Vec<A, N> values[Formula::inputs], results[Formula::outputs];
#pragma GCC unroll 8
    for (int k = 0; k < Formula::inputs; k++) values[k] = joined<A, N>(ends[k] + i, begins[k]);
    Formula::template apply<A>(values, results, options);
#pragma GCC unroll 8
    for (int k = 0; k < Formula::outputs; k++) {
        Vec<A, half> parts[2];
        __builtin_memcpy(parts, &results[k], sizeof(parts));
        store_vec<half>(ends[Formula::inputs + k] + i, parts[0]);
        store_vec<half>(begins[Formula::inputs + k], parts[1]);
    }
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

    // Whether rows may be read and written where they lie: whole rows of half vectors, all of the compute type.
    static bool by_rows(const GatesParams& p) {
        constexpr int half = kLanes<A> / 2;
        bool fits = p.rows > 1 && p.run % half == 0 && p.run <= kBlock;
        for (int k = 0; k < operands; k++)
            fits = fits && (!p.operands[k].data || p.operands[k].dtype == (sizeof(A) == 8 ? f64 : f32));
        return fits;
    }

    // Several streams of short rows are more than the hardware sees coming: 1.6 ms become 1.2 (lstm_gates, 68 MB).
    static void fetch(const A* row, int64_t run) {
        for (int64_t i = 0; i < run; i += 64 / static_cast<int64_t>(sizeof(A))) __builtin_prefetch(row + i);
    }

    static void run_rows(const GatesParams& p, int64_t begin, int64_t end, int64_t rows_each) {
        alignas(64) A none[kBlock], zeros[kBlock] = {};  // in the place of operands that are not there
        const GateOptions<A> options{static_cast<A>(p.option), static_cast<A>(p.slope)};
        constexpr int lanes = kLanes<A>, half = lanes / 2;
        const int64_t whole = p.run / lanes * lanes, ahead = kBlock / p.run;
        const int64_t last = end * rows_each < p.rows ? end * rows_each : p.rows;
        A *first[operands], *second[operands];
        int64_t steps[operands];
        for (int k = 0; k < operands; k++) {
            const GateOperand& operand = p.operands[k];
            steps[k] = operand.data ? operand.row : 0;
            A* base = operand.data ? static_cast<A*>(operand.data) : k < inputs ? zeros : none;
            first[k] = base + begin * rows_each * steps[k];
        }
        for (int64_t row = begin * rows_each; row < last; row += 2) {
#pragma GCC unroll 16
            for (int k = 0; k < operands; k++) {
                second[k] = first[k] + steps[k];
                if (k < inputs) fetch(first[k] + ahead * steps[k], p.run), fetch(second[k] + ahead * steps[k], p.run);
            }
            for (int64_t i = 0; i < whole; i += lanes) apply_at<Formula, A, lanes>(first, i, options);
            const bool pair = row + 1 < last, odd = whole < p.run;
            if (odd && pair) apply_across<Formula, A, lanes>(first, second, whole, options);
            if (odd && !pair) apply_at<Formula, A, half>(first, whole, options);
            if (pair)
                for (int64_t i = odd ? half : 0; i < p.run; i += lanes) apply_at<Formula, A, lanes>(second, i, options);
            for (int k = 0; k < operands; k++) first[k] = second[k] + steps[k];
        }
    }

    static void run(const GatesParams& p, int64_t begin, int64_t end, int64_t rows_each, int64_t pieces_each) {
        if (by_rows(p)) return run_rows(p, begin, end, rows_each);
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
        int64_t rows_each = p.run < kBlock ? kBlock / p.run : 1;
        if (Blocks<Formula, A>::by_rows(p)) rows_each += rows_each % 2;  // pairs, whatever the number of threads
        const int64_t pieces_each = (p.run + kBlock - 1) / kBlock;
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
