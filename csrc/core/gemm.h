// SPDX-License-Identifier: Apache-2.0
// Register-blocked matrix products.
//
// One tile keeps MR x NV vectors of the result in registers and walks the sum: per step it loads NV vectors of B and multiplies
// them with MR broadcast values of A. MR and NV fill the register file and need fewer loads than multiplications, so that the
// multipliers are the limit: 6 x 4 vectors with 32 registers, 6 x 2 with 16.
#pragma once
#include "core/range.h"
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
constexpr int kTileRowsMultiple = 24;  // every tile_rows divides it

// How the sum of a tile multiplies and adds. Terms: products summed by one step.
template <class S>
struct FmaStep {
    using Stored = S;   // element of A and B in memory
    using Unit = S;     // what is broadcast from A
    using A = S;        // accumulator
    static constexpr int terms = 1;
    static FASTDS_HD Vec<A> apply(Vec<A> acc, Unit a, Vec<A> b) { return acc + a * b; }
};
#if defined(__AVX512BF16__)
// Pairs of bfloat16, summed in fp32. B holds the pairs of one column side by side.
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

// acc += sum over `steps`, one at least, of A * B. Strides in stored elements: A has one between rows and one between steps, B
// one between steps (its rows are contiguous).
template <class Step, int MR, int NV>
FASTDS_HD void multiply(Vec<typename Step::A> (&acc)[MR][NV], const typename Step::Stored* a, int64_t a_row, int64_t a_step,
                        const typename Step::Stored* b, int64_t b_step, int64_t steps) {
    using A = typename Step::A;
    if (steps < 1) __builtin_unreachable();  // for none the compiler would copy all sums before and after the loop
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

// Address of the next row of a tile. The compiler would work out all of them ahead of the sum and run out of registers.
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

// Results go through memory where what follows has branches: a loop over them is a fraction of the code. row: elements from
// row to row.
template <class T, int MR, int NV>
FASTDS_HD void store_tile(T* to, const Vec<compute_t<T>> (&acc)[MR][NV], int64_t row = NV * kLanes<compute_t<T>>) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) store_vec<kLanes<compute_t<T>>>(to + i * row + j * kLanes<compute_t<T>>, acc[i][j]);
}

// Columns are cut into blocks of up to `most` vectors as equal as possible (9 vectors: 3 + 3 + 3).
struct ColumnBlocks {
    int64_t vectors, blocks;
    Range vectors_of(int64_t block) const { return part_of(vectors, blocks, block); }
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

// Calls f(Width<NV>, first column) for the blocks of a range.
template <class A, class F>
FASTDS_HD void for_column_blocks(int64_t columns, Range blocks, const F& f, int64_t most = kTileVectors) {
    const ColumnBlocks cut = column_blocks<A>(columns, most);
    for (int64_t i = blocks.begin; i < blocks.end; i++) {
        const Range vectors = cut.vectors_of(i);
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

// For every block.
template <class A, class F>
FASTDS_HD void for_column_blocks(int64_t columns, const F& f, int64_t most = kTileVectors) {
    for_column_blocks<A>(columns, {0, column_blocks<A>(columns, most).blocks}, f, most);
}

// How B is packed: for a product of vectors, or of bfloat16 on matrix tiles (core/amx.h).
struct Blocking {
    bool tiles = false;
    int64_t vectors() const { return tiles ? 2 : kTileVectors; }  // of a block of columns, at most
    template <class Step>
    int64_t whole() const {  // what the terms of a sum are filled up to
        return tiles ? 32 : Step::terms;
    }
};

// Elements of B packed for `columns` columns and `terms` products: blocks one after the other, each (step, column of the block,
// term of the step), padded with zeros to whole vectors and steps.
template <class Step>
FASTDS_HD int64_t packed_size(int64_t columns, int64_t terms, Blocking blocking = {}) {
    return round_up(columns, kLanes<typename Step::A>) * round_up(terms, blocking.whole<Step>());
}

// value(term, column) gives the element of the matrix. With tiles: as csrc/core/amx.h multiplies it.
template <class Step, class Value>
inline void pack(typename Step::Stored* packed, int64_t columns, int64_t terms, const Value& value, Blocking blocking = {}) {
    const int64_t steps = round_up(terms, blocking.whole<Step>()) / Step::terms;
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
