// SPDX-License-Identifier: Apache-2.0
// In-register matrix transpose for 2- and 4-byte elements. Squares of vectors of 4-byte elements are transposed in registers.
// For 2-byte elements, each 4-byte element combines the values of two consecutive rows.
#pragma once
#include "core/masked_io.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Transposes a block of N rows in place: afterwards the rows hold the columns of the block one after the other. N is a power of
// two.
template <int N, class V>
FASTDS_HD void transpose_registers(V (&rows)[N]) {
    using Lanes = lanes_of<sizeof(V) / sizeof(rows[0][0])>;
    for (int round = 1; round < N; round *= 2) {
        V next[N];
#pragma GCC unroll 8
        for (int i = 0; i < N / 2; i++) {
            next[2 * i] = alternate<0>(rows[i], rows[i + N / 2], Lanes{});
            next[2 * i + 1] = alternate<1>(rows[i], rows[i + N / 2], Lanes{});
        }
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) rows[i] = next[i];
    }
}

constexpr int kSquare = kLanes<float>;
using SquareRow = Vec<float, kSquare>;

// load_row() loads the first n of kSquare values and sets the rest to zero; without n it loads all. store_row() stores the
// first n values of a vector.
FASTDS_HD Vec<uint32_t, kSquare> load_row(const uint32_t* from, int64_t n) {
    return (Vec<uint32_t, kSquare>)load_lanes(reinterpret_cast<const float*>(from), static_cast<int>(n));
}
FASTDS_HD void store_row(uint32_t* to, SquareRow row, int64_t n) {
    store_lanes(reinterpret_cast<float*>(to), row, static_cast<int>(n));
}
#if defined(__AVX512BW__)
FASTDS_HD Vec<uint16_t, kSquare> load_row(const uint16_t* from, int64_t n) {
    return (Vec<uint16_t, kSquare>)_mm256_maskz_loadu_epi16((1u << n) - 1, from);
}
FASTDS_HD void store_row(uint16_t* to, SquareRow row, int64_t n) { _mm512_mask_storeu_epi16(to, (1ull << n) - 1, (__m512i)row); }
#else
FASTDS_HD Vec<uint16_t, kSquare> load_row(const uint16_t* from, int64_t n) {
    Vec<uint16_t, kSquare> row{};
    for (int64_t i = 0; i < n; i++) row[i] = from[i];
    return row;
}
FASTDS_HD void store_row(uint16_t* to, SquareRow row, int64_t n) {
    uint16_t numbers[sizeof(row) / sizeof(uint16_t)];
    __builtin_memcpy(numbers, &row, sizeof(row));
    for (int64_t i = 0; i < n; i++) to[i] = numbers[i];
}
#endif
template <class T>
FASTDS_HD Vec<T, kSquare> load_row(const T* from) {
    Vec<T, kSquare> row;
    __builtin_memcpy(&row, from, sizeof(row));
    return row;
}

// Returns vector i of a square with up to kSquare columns: one row of 4-byte values, or two rows of 2-byte values with the
// second row in the high halves.
template <bool Whole>
FASTDS_HD SquareRow square_row(const uint32_t* from, int64_t row, int64_t i, int64_t rows, int64_t columns) {
    if (Whole) return (SquareRow)load_row(from + i * row);
    return i < rows ? (SquareRow)load_row(from + i * row, columns) : SquareRow{};
}
template <bool Whole>
FASTDS_HD SquareRow square_row(const uint16_t* from, int64_t row, int64_t i, int64_t rows, int64_t columns) {
    using Pairs = Vec<uint32_t, kSquare>;
    const auto upcast = [&](int64_t r) {
        if (!Whole && r >= rows) return Pairs{};
        return __builtin_convertvector(Whole ? load_row(from + r * row) : load_row(from + r * row, columns), Pairs);
    };
    return (SquareRow)(upcast(2 * i) | (upcast(2 * i + 1) << 16));
}

// Transposes one square of up to kSquare columns and up to as many rows as fit into one vector of the output. Whole: the square
// has its full size.
template <bool Whole, class T>
FASTDS_HD void transpose_square(const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to, int64_t to_row) {
    SquareRow square[kSquare];
#pragma GCC unroll 16
    for (int i = 0; i < kSquare; i++) square[i] = square_row<Whole>(from, from_row, i, rows, columns);
    transpose_registers(square);
    if (Whole) {
#pragma GCC unroll 16
        for (int i = 0; i < kSquare; i++) __builtin_memcpy(to + i * to_row, &square[i], sizeof(SquareRow));
    } else {
        for (int i = 0; i < columns; i++) store_row(to + i * to_row, square[i], rows);
    }
}

// Sets to[c * to_row + r] = from[r * from_row + c]. T is uint16_t or uint32_t.
template <class T>
__attribute__((noinline)) void transpose_rows(const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to,
                                              int64_t to_row) {
    constexpr int64_t most = kSquare * sizeof(uint32_t) / sizeof(T);
    for (int64_t r = 0; r < rows; r += most)
        for (int64_t c = 0; c < columns; c += kSquare) {
            const int64_t height = rows - r < most ? rows - r : most, width = columns - c < kSquare ? columns - c : kSquare;
            const T* in = from + r * from_row + c;
            T* out = to + c * to_row + r;
            if (height == most && width == kSquare)
                transpose_square<true>(in, from_row, height, width, out, to_row);
            else
                transpose_square<false>(in, from_row, height, width, out, to_row);
        }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
