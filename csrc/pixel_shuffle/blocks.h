// SPDX-License-Identifier: Apache-2.0
// Blocks of channels of one coarse pixel, permuted in registers: coarse (c, i, j) to fine rows i of (j, c), and back.
#pragma once
#include "pixel_shuffle/permute.h"
#include "pixel_shuffle/problem.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Channels of the two kinds of blocks: a whole register, or a quarter of one.
template <class U>
constexpr int kWhole = kHasLanes<U> ? kVectorBytes / static_cast<int>(sizeof(U)) : 1;
template <class U>
constexpr int kQuarter = kWhole<U> < 4 ? 1 : kWhole<U> / 4;

// N channels from x to the sub-pixels y; fine_row: elements from a row of sub-pixels to the next.
template <int R, int N, class U>
FASTDS_HD void block_to_fine(const U* x, U* y, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    V v[R][R];
#pragma GCC unroll 4
    for (int g = 0; g < R; g++) {
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) __builtin_memcpy(&v[g][k], x + (g * R + k) * N, sizeof(V));
        deinterleave<R, N>(v[g]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < R; j++) {
        V column[R];
#pragma GCC unroll 8
        for (int g = 0; g < R; g++) column[g] = v[g][j];
        deinterleave<R, N>(column);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) store_line(y + i * fine_row + j * C, column[i], streamed);
    }
}

// The way back.
template <int R, int N, class U>
FASTDS_HD void block_to_coarse(const U* y, U* x, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    V v[R][R];
#pragma GCC unroll 4
    for (int j = 0; j < R; j++) {
        V column[R];
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) __builtin_memcpy(&column[i], y + i * fine_row + j * C, sizeof(V));
        interleave<R, N>(column);
#pragma GCC unroll 8
        for (int g = 0; g < R; g++) v[g][j] = column[g];
    }
#pragma GCC unroll 4
    for (int g = 0; g < R; g++) {
        interleave<R, N>(v[g]);
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) store_line(x + (g * R + k) * N, v[g][k], streamed);
    }
}

// The same where R * R vectors are more than there are registers: as many rows of sub-pixels at a time as fill a vector. Vector
// k of such a row holds elements (c, j) from k * N on; in coarse memory those of the next rows lie behind the R of one.
template <int R, int N>
FASTDS_HD int64_t coarse_place(int first, int k, int i) {
    const int e = k * N + i * R;
    return e / R * R * R + first * R + e % R;
}
template <int R, int N, class U>
FASTDS_HD void rows_to_fine(const U* x, U* y, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    constexpr int rows = N > R ? N / R : 1;
    for (int first = 0; first < R; first += rows) {
        V v[rows][R];
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) {
            V runs[rows];
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) __builtin_memcpy(&runs[i], x + coarse_place<R, N>(first, k, i), sizeof(V));
            transpose_runs<rows, R, N>(runs);
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) v[i][k] = runs[i];
        }
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            deinterleave<R, N>(v[i]);
#pragma GCC unroll 8
            for (int j = 0; j < R; j++) store_line(y + (first + i) * fine_row + j * C, v[i][j], streamed);
        }
    }
}
template <int R, int N, class U>
FASTDS_HD void rows_to_coarse(const U* y, U* x, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    constexpr int rows = N > R ? N / R : 1;
    for (int first = 0; first < R; first += rows) {
        V v[rows][R];
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
            for (int j = 0; j < R; j++) __builtin_memcpy(&v[i][j], y + (first + i) * fine_row + j * C, sizeof(V));
            interleave<R, N>(v[i]);
        }
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) {
            V runs[rows];
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) runs[i] = v[i][k];
            transpose_runs<rows, R, N>(runs);
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) store_line(x + coarse_place<R, N>(first, k, i), runs[i], streamed);
        }
    }
}

// Calls block(Width<N>, w, c) for all channels of some pixels. Channels after the last whole block make one with some of those
// before them, which are moved again.
template <class U, class Block>
FASTDS_HD void for_blocks(int64_t C, int64_t pixels, const Block& block) {
    const auto blocks = [=](auto width) __attribute__((always_inline)) {
        constexpr int N = decltype(width)::value;
        const int64_t whole = C - C % N;
        for (int64_t w = 0; w < pixels; w++) {
            for (int64_t c = 0; c < whole; c += N) block(width, w, c);
            if (whole < C) block(width, w, C - N);
        }
    };
    if (C >= kWhole<U>)
        blocks(Width<kWhole<U>>{});
    else
        blocks(Width<kQuarter<U>>{});
}

template <int R, class U>
__attribute__((noinline)) void blocks_to_fine(int64_t C, bool streamed, const U* coarse, int64_t pixels, U* fine,
                                              int64_t fine_row) {
    for_blocks<U>(C, pixels, [=](auto width, int64_t w, int64_t c) __attribute__((always_inline)) {
        constexpr int N = decltype(width)::value;
        const U* from = coarse + (w * C + c) * R * R;
        U* to = fine + w * R * C + c;
        if constexpr (R * R > 16 && N * sizeof(U) <= 32)  // whole lines are read faster in their order
            rows_to_fine<R, N>(from, to, C, fine_row, streamed);
        else
            block_to_fine<R, N>(from, to, C, fine_row, streamed);
    });
}

template <int R, class U>
__attribute__((noinline)) void blocks_to_coarse(int64_t C, bool streamed, const U* fine, int64_t fine_row, int64_t pixels,
                                                U* coarse) {
    for_blocks<U>(C, pixels, [=](auto width, int64_t w, int64_t c) __attribute__((always_inline)) {
        constexpr int N = decltype(width)::value;
        const U* from = fine + w * R * C + c;
        U* to = coarse + (w * C + c) * R * R;
        if constexpr (R * R > 16)
            rows_to_coarse<R, N>(from, to, C, fine_row, streamed);
        else
            block_to_coarse<R, N>(from, to, C, fine_row, streamed);
    });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
