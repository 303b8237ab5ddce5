// SPDX-License-Identifier: Apache-2.0
// Register-blocked matrix products.
//
// One register tile of the result has MR rows and NV vectors. Each step of the sum loads NV vectors of B and multiplies them by
// MR broadcast values of A. MR and NV are chosen to fill the vector registers: for example 6 x 4 of 32 registers or 6 x 2 of
// 16. A step then has fewer loads than multiplications, so that the multiplications limit the speed.
#pragma once
#include "core/parallel.h"
#include "core/simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

#if FASTDS_MANY_REGISTERS
constexpr int kTileVectors = 4;
constexpr int tile_rows(int nv) { return nv == 4 ? 6 : nv == 3 ? 8 : 12; }
#else
constexpr int kTileVectors = 2;
constexpr int tile_rows(int nv) { return nv == 2 ? 6 : 12; }
#endif
constexpr int kTileRowsMultiple = 24;  // multiple of every value that tile_rows() returns

// Multiply-add operation of a product. `terms` is the number of products that one step adds to the sum.
template <class S>
struct FmaStep {
    using Stored = S;   // element type of A and B in memory
    using Unit = S;     // unit of A that is broadcast
    using A = S;        // type of the accumulator
    static constexpr int terms = 1;
    static FASTDS_HD Vec<A> apply(Vec<A> acc, Unit a, Vec<A> b) { return acc + a * b; }
};
#if defined(__AVX512BF16__)
// Multiplies pairs of bfloat16 values and adds the two products to a float32 sum. In packed B the two values of a pair are
// adjacent.
struct Bf16DotStep {
    using Stored = BFloat16;
    using Unit = uint32_t;
    using A = float;
    static constexpr int terms = 2;
    static FASTDS_HD Vec<A> apply(Vec<A> acc, Unit a, Vec<A> b) {
        return (Vec<A>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(a), (__m512bh)(__m512)b);
    }
};
#endif

// Computes acc += sum over `steps` (at least 1) of A * B. Strides are in stored elements: `a_row` between rows of A, `a_step`
// and `b_step` between steps. The rows of B are contiguous.
template <class Step, int MR, int NV>
FASTDS_HD void multiply(Vec<typename Step::A> (&acc)[MR][NV], const typename Step::Stored* a, int64_t a_row, int64_t a_step,
                        const typename Step::Stored* b, int64_t b_step, int64_t steps) {
    using A = typename Step::A;
    if (steps < 1) __builtin_unreachable();  // otherwise the compiler adds copies of all accumulators for the case of no steps
    for (int64_t s = 0; s < steps; s++) {
        Vec<A> bv[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) __builtin_memcpy(&bv[j], (const char*)b + j * kVectorBytes, kVectorBytes);
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) {
            typename Step::Unit unit;
            __builtin_memcpy(&unit, a + i * a_row, sizeof(unit));
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) acc[i][j] = Step::apply(acc[i][j], unit, bv[j]);
        }
        a += a_step;
        b += b_step;
    }
}

// Returns the address of the next row of a tile. The asm statement stops the compiler from computing the addresses of all rows
// in advance, which needs more registers than exist.
template <class T>
FASTDS_HD T* next_row(T* row, int64_t step) {
    row += step;
    asm volatile("" : "+r"(row));
    return row;
}

template <class A, int MR, int NV>
FASTDS_HD void clear(Vec<A> (&acc)[MR][NV]) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) acc[i][j] = Vec<A>{};
}

// Writes the accumulators to memory. An epilogue with branches then loops over memory, which needs much less code than branches
// for each register. `row` is the distance between rows in elements.
template <class T, int MR, int NV>
FASTDS_HD void store_tile(T* to, const Vec<compute_t<T>> (&acc)[MR][NV], int64_t row = NV * kLanes<compute_t<T>>) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) store_vec<kLanes<compute_t<T>>>(to + i * row + j * kLanes<compute_t<T>>, acc[i][j]);
}

// Partition of the columns into blocks of at most `most` vectors with sizes as equal as possible (9 vectors: 3 + 3 + 3).
struct ColumnBlocks {
    int64_t vectors, blocks;
    Range get_vectors(int64_t block) const { return get_part(vectors, blocks, block); }
};
template <class A>
FASTDS_HD ColumnBlocks column_blocks(int64_t columns, int64_t most = kTileVectors) {
    const int64_t vectors = (columns + kLanes<A> - 1) / kLanes<A>;
    return {vectors, (vectors + most - 1) / most};
}

template <int NV>
struct Width {
    static constexpr int value = NV;
};

// Calls f(Width<NV>, first column) for each block of a range.
template <class A, class F>
FASTDS_HD void for_column_blocks(int64_t columns, Range blocks, const F& f, int64_t most = kTileVectors) {
    const ColumnBlocks cut = column_blocks<A>(columns, most);
    for (int64_t i = blocks.begin; i < blocks.end; i++) {
        const Range vectors = cut.get_vectors(i);
        const int64_t column = vectors.begin * kLanes<A>;
        switch (vectors.end - vectors.begin) {
            case 1: f(Width<1>{}, column); break;
            case 2: f(Width<2>{}, column); break;
#if FASTDS_MANY_REGISTERS
            case 3: f(Width<3>{}, column); break;
            case 4: f(Width<4>{}, column); break;
#endif
        }
    }
}

// Calls f(Width<NV>, first column) for each block.
template <class A, class F>
FASTDS_HD void for_column_blocks(int64_t columns, const F& f, int64_t most = kTileVectors) {
    for_column_blocks<A>(columns, {0, column_blocks<A>(columns, most).blocks}, f, most);
}

// Layout of the packed matrix B of a product: that for vector instructions or, if `tiles` is true, that for AMX tiles with
// bfloat16 values (core/amx.h).
struct Blocking {
    bool tiles = false;
    int64_t vectors() const { return tiles ? 2 : kTileVectors; }  // maximum number of vectors in a block of columns
    template <class Step>
    int64_t term_multiple() const {  // the number of terms is rounded up to a multiple of this
        return tiles ? 32 : Step::terms;
    }
};

// Returns the number of elements of B packed for `columns` columns and `terms` terms. Blocks follow each other; each is ordered
// as (step, column of the block, term of the step) and padded with zeros to whole vectors and steps.
template <class Step>
FASTDS_HD int64_t packed_size(int64_t columns, int64_t terms, Blocking blocking = {}) {
    return round_up(columns, kLanes<typename Step::A>) * round_up(terms, blocking.term_multiple<Step>());
}

// Packs a matrix whose elements are value(term, column), in the layout that packed_size() describes. With `blocking.tiles` the
// layout is that of core/amx.h.
template <class Step, class Value>
inline void pack(typename Step::Stored* packed, int64_t columns, int64_t terms, const Value& value, Blocking blocking = {}) {
    const int64_t steps = round_up(terms, blocking.term_multiple<Step>()) / Step::terms;
    const auto pack_block = [&](auto width, int64_t column) {
        constexpr int64_t lanes = decltype(width)::value * kLanes<typename Step::A>;
        for (int64_t s = 0; s < steps; s++)
            for (int64_t j = 0; j < lanes; j++)
                for (int64_t t = s * Step::terms; t < (s + 1) * Step::terms; t++)
                    *packed++ = t < terms && column + j < columns ? value(t, column + j) : typename Step::Stored{};
    };
    for_column_blocks<typename Step::A>(columns, pack_block, blocking.vectors());
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
