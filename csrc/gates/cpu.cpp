// SPDX-License-Identifier: Apache-2.0
// CPU driver of the pointwise formulas, parallel over blocks of elements that stay in the L1 cache. A block of each operand is
// copied to a contiguous buffer of the compute type, so that rows of 24 channels leave no half-empty vectors and each formula
// is compiled once for all storage types. Contiguous operands of the compute type are used in place, and so are rows whose
// length is a multiple of half a vector, two rows at a time. Only the two loops of struct Loops depend on the formula.
#include "core/masked_io.h"
#include "core/parallel.h"
#include "gates/math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kBlock = 192;       // elements of an operand in a block
constexpr int64_t kLongestRow = 384;  // longest row that is used in place

// The part of all operands that one block covers: rows x columns elements.
struct BlockRange {
    int64_t row, rows, column, columns;
};

// read() copies rows to a contiguous buffer, and write() copies them back. If masked loads are fast, read() may write the last
// vector of a row beyond the row; the next row overwrites the excess. The buffer has room for a vector after the last row.
template <class T, class A>
inline void read(A* to, const T* from, int64_t row, const BlockRange& range) {
    for (int64_t r = 0; r < range.rows; r++, from += row, to += range.columns) {
        if constexpr (kFastMasks && sizeof(A) == sizeof(float)) {
            for_vectors(range.columns, [&](int64_t i, int lanes) { store_vec<kL>(to + i, load_partial(from + i, lanes)); });
        } else {
            int64_t i = 0;
            for (; i + 8 <= range.columns; i += 8) store_vec<8>(to + i, load_vec<8>(from + i));
            for (; i < range.columns; i++) to[i] = load(from[i]);
        }
    }
}

template <class T, class A>
inline void write(T* to, const A* from, int64_t row, const BlockRange& range) {
    for (int64_t r = 0; r < range.rows; r++, to += row, from += range.columns) {
        if constexpr (kFastMasks && sizeof(A) == sizeof(float)) {
            for_vectors(range.columns, [&](int64_t i, int lanes) {
                const V v = load_vec<kL>(from + i);
                lanes == kL ? store_vec<kL>(to + i, v) : store_lanes(to + i, v, lanes);
            });
        } else {
            int64_t i = 0;
            for (; i + 8 <= range.columns; i += 8) store_vec<8>(to + i, load_vec<8>(from + i));
            for (; i < range.columns; i++) to[i] = store<T>(from[i]);
        }
    }
}

// Calls f with the address of the range in the storage type of the operand, which has A as its compute type.
template <class A, class F>
inline void dispatch_storage(const GateOperand& operand, const BlockRange& range, const F& f) {
    const int64_t first = range.row * operand.row + range.column;
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

// Combines two runs of N / 2 elements into one vector. For AVX it uses insert instructions, because the generic code writes to
// memory and has to wait for the stores.
template <class A, int N>
FASTDS_HD Vec<A, N> concatenate(const A* first, const A* second) {
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

// The loops of a formula.
template <class A>
struct Loops {
    int inputs, outputs;
    // Processes n elements of contiguous operands, in whole vectors. It contains no function call, so that the constants of the
    // formula stay in registers.
    void (*dense)(A* const* operands, int64_t n, const GateOptions<A>& options);
    // Processes pairs of rows of `run` elements. Each pair is one sequence of vectors, so that a vector may contain the end of
    // one row and the start of the other. `rows` holds the addresses of the operands' first rows and is advanced beyond the
    // last row. `steps` holds the distances between rows.
    void (*pairs)(A** rows, const int64_t* steps, int64_t run, int64_t pairs, const GateOptions<A>& options);
};

template <class Formula, class A>
void dense_loop(A* const* operands, int64_t n, const GateOptions<A>& options) {
    constexpr int lanes = kLanes<A>, inputs = Formula::inputs;
    static_assert(inputs + Formula::outputs <= kGateOperands, "more operands than GatesParams holds");
    for (int64_t i = 0; i < n; i += lanes) {
        Vec<A> values[inputs], results[Formula::outputs];
#pragma GCC unroll 8
        for (int k = 0; k < inputs; k++) values[k] = load_vec<lanes>(operands[k] + i);
        Formula::template apply<A>(values, results, options);
#pragma GCC unroll 8
        for (int k = 0; k < Formula::outputs; k++) store_vec<lanes>(operands[inputs + k] + i, results[k]);
    }
}

// Prefetches a row ahead, because the hardware does not prefetch several streams of short rows.
template <class A>
FASTDS_HD void fetch(const A* row, int64_t run) {
    for (int64_t i = 0; i < run; i += 64 / static_cast<int64_t>(sizeof(A))) __builtin_prefetch(row + i);
}

template <class Formula, class A>
void pairs_loop(A** rows, const int64_t* steps, int64_t run, int64_t pairs, const GateOptions<A>& options) {
    constexpr int lanes = kLanes<A>, half = lanes / 2, inputs = Formula::inputs, operands = inputs + Formula::outputs;
    const int64_t ahead = kLongestRow / run;
    for (int64_t pair = 0; pair < pairs; pair++) {
        A* at[2][operands];
#pragma GCC unroll 16
        for (int k = 0; k < operands; k++) {
            at[0][k] = rows[k];
            at[1][k] = rows[k] + steps[k];
            rows[k] += 2 * steps[k];
            if (k < inputs) fetch(at[0][k] + ahead * steps[k], run), fetch(at[1][k] + ahead * steps[k], run);
        }
        for (int64_t e = 0; e < 2 * run; e += lanes) {
            const bool across = e < run && e + lanes > run;
            A* const* row = at[e >= run];
            const int64_t i = e >= run ? e - run : e;
            Vec<A> values[inputs], results[Formula::outputs];
            if (across) {
#pragma GCC unroll 8
                for (int k = 0; k < inputs; k++) values[k] = concatenate<A, lanes>(row[k] + i, at[1][k]);
            } else {
#pragma GCC unroll 8
                for (int k = 0; k < inputs; k++) values[k] = load_vec<lanes>(row[k] + i);
            }
            Formula::template apply<A>(values, results, options);
            if (across) {
#pragma GCC unroll 8
                for (int k = 0; k < Formula::outputs; k++) {
                    Vec<A, half> parts[2];
                    __builtin_memcpy(parts, &results[k], sizeof(parts));
                    store_vec<half>(row[inputs + k] + i, parts[0]);
                    store_vec<half>(at[1][inputs + k], parts[1]);
                }
            } else {
#pragma GCC unroll 8
                for (int k = 0; k < Formula::outputs; k++) store_vec<lanes>(row[inputs + k] + i, results[k]);
            }
        }
    }
}

template <class A>
struct Blocks {
    const GatesParams& p;
    const Loops<A> loops;
    const int inputs = loops.inputs, operands = loops.inputs + loops.outputs;
    const GateOptions<A> options{static_cast<A>(p.option), static_cast<A>(p.slope)};

    static constexpr int compute_dtype = sizeof(A) == 8 ? f64 : f32;

    // Returns whether an operand is used in place: contiguous, or a single row, of the compute type.
    bool in_place(const GateOperand& operand, const BlockRange& range) const {
        return operand.data && operand.dtype == compute_dtype && (range.rows == 1 || operand.row == p.run);
    }

    // Returns whether rows are read and written in place. This requires float32 operands, several rows, and a row length that
    // is a multiple of half a vector and at most kLongestRow.
    bool by_rows() const {
        constexpr int half = kLanes<A> / 2;
        bool fits = loops.pairs != nullptr && p.rows > 1 && p.run % half == 0 && p.run <= kLongestRow;
        for (int k = 0; k < operands; k++) fits = fits && (!p.operands[k].data || p.operands[k].dtype == compute_dtype);
        return fits;
    }

    // Prefetches the next range, including the results, which are written after the whole block is computed.
    void fetch(const BlockRange& range) const {
        for (int k = 0; k < operands; k++) {
            if (!p.operands[k].data || in_place(p.operands[k], range)) continue;
            dispatch_storage<A>(p.operands[k], range, [&](const auto* row) {
                constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(*row));
                for (int64_t r = 0; r < range.rows; r++, row += p.operands[k].row)
                    for (int64_t i = 0; i < range.columns; i += line)
                        k < inputs ? __builtin_prefetch(row + i) : __builtin_prefetch(row + i, 1);
            });
        }
    }

    // Processes n elements of contiguous operands. Elements after the last whole vector are computed in copies.
    void run_dense(A* const* at, int64_t n) const {
        constexpr int lanes = kLanes<A>;
        const int64_t whole = n / lanes * lanes, rest = n - whole;
        if (whole > 0) loops.dense(at, whole, options);
        if (rest == 0) return;
        alignas(64) A last[kGateOperands][lanes] = {};  // zeros, for the reason in core/memory.h (ZeroedBuffer)
        A* copies[kGateOperands];
        for (int k = 0; k < operands; k++) {
            copies[k] = last[k];
            if (k < inputs) __builtin_memcpy(last[k], at[k] + whole, rest * sizeof(A));
        }
        loops.dense(copies, lanes, options);
        for (int k = inputs; k < operands; k++) __builtin_memcpy(at[k] + whole, last[k], rest * sizeof(A));
    }

    void run_rows(int64_t begin, int64_t end, int64_t rows_each) const {
        alignas(64) A none[kLongestRow], zeros[kLongestRow] = {};  // used for operands whose address is null
        const int64_t first = begin * rows_each, last = end * rows_each < p.rows ? end * rows_each : p.rows;
        A* rows[kGateOperands];
        int64_t steps[kGateOperands];
        for (int k = 0; k < operands; k++) {
            const GateOperand& operand = p.operands[k];
            steps[k] = operand.data ? operand.row : 0;
            rows[k] = (operand.data ? static_cast<A*>(operand.data) : k < inputs ? zeros : none) + first * steps[k];
        }
        loops.pairs(rows, steps, p.run, (last - first) / 2, options);
        if ((last - first) % 2 != 0) run_dense(rows, p.run);
    }

    BlockRange get_range(int64_t task, int64_t rows_each, int64_t ranges_each) const {
        const int64_t row = task / ranges_each * rows_each, column = task % ranges_each * kBlock;
        return {row, p.rows - row < rows_each ? p.rows - row : rows_each, column,
                p.run - column < kBlock ? p.run - column : kBlock};
    }

    void run_ranges(int64_t begin, int64_t end, int64_t rows_each, int64_t ranges_each) const {
        alignas(64) A buffers[kGateOperands][kBlock + kLanes<A>];
        for (int k = 0; k < inputs; k++)
            if (!p.operands[k].data) __builtin_memset(buffers[k], 0, sizeof(buffers[k]));
        for (int64_t task = begin; task < end; task++) {
            const BlockRange range = get_range(task, rows_each, ranges_each);
            if (task + 1 < end) fetch(get_range(task + 1, rows_each, ranges_each));
            A* dense[kGateOperands];
            for (int k = 0; k < operands; k++) {
                const GateOperand& operand = p.operands[k];
                dense[k] = buffers[k];
                if (in_place(operand, range))
                    dense[k] = static_cast<A*>(operand.data) + range.row * operand.row + range.column;
                else if (k < inputs && operand.data)
                    dispatch_storage<A>(operand, range, [&](auto* from) { read(buffers[k], from, operand.row, range); });
            }
            run_dense(dense, range.rows * range.columns);
            for (int k = inputs; k < operands; k++) {
                const GateOperand& operand = p.operands[k];
                if (dense[k] == buffers[k] && operand.data)
                    dispatch_storage<A>(operand, range, [&](auto* to) { write(to, buffers[k], operand.row, range); });
            }
        }
    }
};

template <class A>
void run(GatesParams p, int threads) {
    Loops<A> loops{};
    dispatch_gate_formula(p.formula, [&](auto formula) {
        using Formula = decltype(formula);
        loops = {Formula::inputs, Formula::outputs, dense_loop<Formula, A>, nullptr};
        if constexpr (sizeof(A) == 4) loops.pairs = pairs_loop<Formula, A>;  // float64 is used only for checks
    });
    bool dense = true;
    for (int k = 0; k < loops.inputs + loops.outputs; k++) dense = dense && (!p.operands[k].data || p.operands[k].row == p.run);
    if (dense) {
        p.run *= p.rows;
        p.rows = 1;
    }
    if (p.run == 0) return;
    const Blocks<A> blocks{p, loops};
    const bool by_rows = blocks.by_rows();
    const int64_t most = by_rows ? kLongestRow : kBlock;
    int64_t rows_each = p.run < most ? most / p.run : 1;
    if (by_rows) rows_each += rows_each % 2;  // rows are processed in pairs, independent of the number of threads
    const int64_t ranges_each = (p.run + most - 1) / most;
    parallel_for((p.rows + rows_each - 1) / rows_each * ranges_each, threads, [&](int64_t begin, int64_t end) {
        if (by_rows)
            blocks.run_rows(begin, end, rows_each);
        else
            blocks.run_ranges(begin, end, rows_each, ranges_each);
    });
}

}  // namespace

void gates_cpu(const GatesParams& params, int threads) {
#if FASTDS_DOUBLE
    if (params.is_double) return run<double>(params, threads);
#endif
    run<float>(params, threads);
}

}  // namespace FASTDS_ISA
}  // namespace fastds
